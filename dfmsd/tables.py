"""Records → the tables of README and notebooks, beside what the paper states."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from dfmsd.arms import ARMS
from dfmsd.config import Settings, flat
from dfmsd.experiments import EXPERIMENTS
from dfmsd.identity import PLACES, YOUNGER
from dfmsd.presets import resolve
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


# Student's t at 97.5 %, by degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of paired differences, by Student's t; None for fewer than 2.

    Raises:
        ValueError: for more than ten differences.
    """
    count = len(differences)
    if count < 2:
        return None
    if count - 1 > len(_T):
        raise ValueError(f"differences: got {count}, expected at most {len(_T) + 1}")
    middle = statistics.fmean(differences)
    half = _T[count - 2] * statistics.stdev(differences) / count**0.5
    return middle - half, middle + half


def fits(record: dict[str, Any], settings: Settings) -> bool:
    """Whether a record was made under these settings, as far as they can change a result.

    Files and folders are left out, because a reader of records need not have them.
    """
    had = YOUNGER | flat(record["settings"])
    for key, value in flat(settings).items():
        if key in PLACES or key.endswith(("_file", "weights", "root")):
            continue
        found = had.get(key)
        if (tuple(found) if isinstance(found, list) else found) != value:
            return False
    return True


def experiment_records(
    name: str, records: Iterable[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Row of an experiment → its newest record per seed, in order of the seed; none: not run."""
    plan, listed = EXPERIMENTS[name], list(records)
    found = {}
    for key, row in plan.rows.items():
        settings = resolve(plan.preset, [*plan.settings, *row.settings])
        own = [r for r in listed if r["seed"] in plan.seeds and fits(r, settings)]
        found[key] = select(own, arm=row.arm)
    return found


def experiment_table(
    name: str, records: Iterable[dict[str, Any]], *, base: str = "none", metric: str = "AP"
) -> str:
    """Markdown: one row per row of the experiment; AP as mean ± sd, the gain with its interval.

    The gain is the mean difference to the row `base` in the same seeds, with its 95 % interval by
    Student's t. Rows without a record say "not run".
    """
    found = experiment_records(name, records)
    rows = []
    for key, row in EXPERIMENTS[name].rows.items():
        if not found[key]:
            rows.append([row.title, "not run", *[""] * 10])
            continue
        gain = paired_difference(found[key], found[base], metric) if key != base else []
        metrics = [record["metrics"] for record in found[key]]
        count = len(found[key])
        rows.append(
            [
                row.title,
                " + ".join(map(str, found[key][0]["steps"])),
                count,
                spread([m[metric] for m in metrics]),
                _gain(gain),
                *(spread([m[part] for m in metrics]) for part in ("AP50", "AP75", *SIZES)),
                f"{sum(r['cpu_s'] for r in found[key]) / count:.0f}",
                f"{max(r['peak_memory_mb'] for r in found[key])}",
            ]
        )
    header = ["student", "steps", "seeds", metric, "gain (95 %)", "AP50", "AP75", *SIZES]
    return markdown_table([*header, "CPU s", "MB"], rows)


def _gain(differences: Sequence[float]) -> str:
    if not differences:
        return ""
    middle, ends = statistics.fmean(differences), interval(differences)
    words = f"{100 * middle:+.1f}"
    return words if ends is None else f"{words} ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
