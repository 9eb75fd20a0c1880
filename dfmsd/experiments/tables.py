"""Records → the tables of README and notebooks, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dfmsd.experiments.arms import ARMS
from dfmsd.experiments.outcomes import Gain, Outcome, arm_outcomes, newest
from dfmsd.experiments.records import markdown_table, paired_difference, select, spread

SIZES = ("AP_S", "AP_M", "AP_L")
VERDICTS = (
    "significantly higher",
    "not significant (the interval holds 0)",
    "significantly lower",
    "one seed in common, so no interval",
    "no seed in common",
)

PAPER_FIGURE_3 = (
    ("Faster R-CNN R50, no distillation", 38.4),
    ("stage 1: from Swin-T", 42.2),
    ("stage 2: then from Swin-S", 42.9),
    ("straight from Swin-S", 42.3),
)
"""COCO val2017 AP as figure 3 of the paper states it."""


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
    return {
        outcome.title: outcome.values()
        for outcome in arm_outcomes(records).values()
        if outcome.records
    }


def outcomes_table(outcomes: Mapping[str, Outcome]) -> str:
    """Markdown: one row per outcome; AP as mean ± sd, the paired gain with its 95 % interval.

    A star after the interval says that it excludes 0. CPU seconds are those of the runs that were
    never interrupted; `extra CPU` is the mean share of CPU time
    beyond that of the row which the gain is counted from. Rows without a record say "not run".
    """
    rows = []
    for outcome in outcomes.values():
        if not outcome.records:
            rows.append([outcome.title, "not run", *[""] * 8])
            continue
        extra, count, times = outcome.extra_cpu(), len(outcome.records), outcome.cpu().values()
        rows.append(
            [
                outcome.title,
                solid(outcome.steps),
                count if count == outcome.seeds else f"{count} of {outcome.seeds}",
                solid(spread(outcome.values(), scale=1)),
                words(outcome.gain()),
                *(solid(spread(outcome.values(size), scale=1)) for size in SIZES),
                f"{sum(times) / len(times):.0f}" if times else "",
                f"{extra.mean:+.0f} %" if extra else "",
            ]
        )
    header = ["student", "steps", "seeds", "AP", "gain (95 %)", *SIZES, "CPU s", "extra CPU"]
    return markdown_table(header, rows)


def detail_table(outcomes: Mapping[str, Outcome]) -> str:
    """Markdown: AP50 and AP75, and the gain by size of the objects with its 95 % interval."""
    rows = [
        [
            outcome.title,
            *(solid(spread(outcome.values(m), scale=1)) for m in ("AP50", "AP75")),
            *(words(outcome.gain(size)) for size in SIZES),
        ]
        for outcome in outcomes.values()
        if outcome.records
    ]
    return markdown_table(["student", "AP50", "AP75", *(f"{s}: gain (95 %)" for s in SIZES)], rows)


def gains_table(outcomes: Mapping[str, Outcome], metrics: Sequence[str] = ("AP", "AP_S")) -> str:
    """Markdown: one row per outcome; each metric as mean ± sd, and its gain with the interval."""
    rows = []
    for outcome in outcomes.values():
        count = len(outcome.records)
        row = [
            outcome.title,
            count if count in (0, outcome.seeds) else f"{count} of {outcome.seeds}",
        ]
        for metric in metrics:
            row += [solid(spread(outcome.values(metric), scale=1)), words(outcome.gain(metric))]
        rows.append(row if count else [outcome.title, "not run", *[""] * (2 * len(metrics))])
    columns = [column for metric in metrics for column in (metric, f"{metric}: gain (95 %)")]
    return markdown_table(["student", "seeds", *columns], rows)


def words(gain: Gain | None, digits: int = 1) -> str:
    """`+3.0 (+1.2 to +4.8) *`: mean, interval if there is one, a star where it excludes 0.

    Its spaces do not break, so that a cell of a table stays on one line.
    """
    if gain is None:
        return ""
    shown = f"{gain.mean:+.{digits}f}"
    if gain.interval is None:
        return shown
    low, high = gain.interval
    star = " *" if gain.significant else ""
    return solid(f"{shown} ({low:+.{digits}f} to {high:+.{digits}f}){star}")


def solid(text: str) -> str:
    """The same text, spaces that do not break."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def findings(outcomes: Mapping[str, Outcome], metric: str = "AP") -> str:
    """Markdown list: which rows gain or lose significantly, which do not, which were not run.

    "Significant" is said only where the 95 % interval of the paired gain excludes 0.
    """
    lines = []
    for base in dict.fromkeys(o.base_title for o in outcomes.values() if o.base_title):
        groups: dict[str, list[tuple[float, str]]] = {}
        for outcome in outcomes.values():
            if outcome.base_title == base and outcome.records:
                gain = outcome.gain(metric)
                text = f"{outcome.title} {words(gain)}".rstrip("* \N{NO-BREAK SPACE}")
                order = -gain.mean if gain else 0.0
                groups.setdefault(_verdict(gain), []).append((order, text))
        for verdict in VERDICTS:
            if verdict in groups:
                listed = "; ".join(text for _, text in sorted(groups[verdict]))
                lines.append(f"- {metric} against “{base}”, {verdict}: {listed}.")
    missing = [outcome.title for outcome in outcomes.values() if not outcome.records]
    if missing:
        lines.append(f"- Not run: {'; '.join(missing)}.")
    return "\n".join(lines)


def _verdict(gain: Gain | None) -> str:
    if gain is None:
        return VERDICTS[4]
    if gain.interval is None:
        return VERDICTS[3]
    if not gain.significant:
        return VERDICTS[1]
    return VERDICTS[0 if gain.mean > 0 else 2]
