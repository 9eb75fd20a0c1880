"""Records → the tables of README and notebooks, beside what the paper states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dfmsd.arms import ARMS
from dfmsd.results import markdown_table, paired_difference, select, spread

SIZES = ("AP_S", "AP_M", "AP_L")

PAPER_FIGURE_3 = (
    ("Faster R-CNN R50, no distillation", 38.4),
    ("stage 1: from Swin-T", 42.2),
    ("stage 2: then from Swin-S", 42.9),
    ("straight from Swin-S", 42.3),
)
"""COCO val2017 AP as figure 3 of the paper states it."""


def newest(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with the settings of the newest one (preset, scale and fingerprint)."""
    runs = [record for record in records if record.get("arm") in ARMS]
    if not runs:
        return []
    last = max(runs, key=lambda record: record["finished"])
    keys = ("preset", "scale", "fingerprint")
    return [record for record in runs if all(record[k] == last[k] for k in keys)]


def arms_table(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: one row per arm, AP as mean ± sd over the seeds, the paired gain, sizes and time.

    Arms that were asked for and left no record say "not run". The gain is per seed, over "no
    distillation" with as many steps in all.
    """
    listed = newest(records)
    asked = {name for record in listed for name in record["settings"]["arms"]}
    rows = []
    for name, arm in ARMS.items():
        if asked and name not in asked:
            continue
        found = select(listed, arm=name)
        if not found:
            rows.append([arm.title, "not run", *[""] * 8])
            continue
        base = select(listed, arm="none-long" if sum(arm.lengths) == 2 else "none")
        gain = paired_difference(found, base) if not name.startswith("none") else []
        metrics = [record["metrics"] for record in found]
        rows.append(
            [
                arm.title,
                " + ".join(str(steps) for steps in found[0]["steps"]),
                len(found),
                spread([m["AP"] for m in metrics]),
                spread(gain) if gain else "",
                spread([m["AP50"] for m in metrics]),
                *(spread([m[key] for m in metrics]) for key in SIZES),
                f"{sum(r['cpu_s'] for r in found) / len(found):.0f}",
            ]
        )
    header = ["student", "steps", "seeds", "AP", "gain", "AP50", *SIZES, "CPU s"]
    return markdown_table(header, rows)


def paper_table() -> str:
    """Markdown: figure 3 of the paper."""
    rows = [[name, f"{value:.1f}"] for name, value in PAPER_FIGURE_3]
    return markdown_table(["paper, COCO val2017 (figure 3)", "AP"], rows)


def ap_by_arm(records: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """Row title with its steps → AP (0..100) of each seed, for a figure of the same rows."""
    listed = newest(records)
    rows = {}
    for name, arm in ARMS.items():
        found = select(listed, arm=name)
        if found:
            steps = " + ".join(map(str, found[0]["steps"]))
            rows[f"{arm.title}, {steps}"] = [100 * record["metrics"]["AP"] for record in found]
    return rows
