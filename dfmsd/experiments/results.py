"""Records → a frame of runs by row and seed, and what their paired differences say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import pandas as pd
from scipy import special

from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.records import data_of, finished
from dfmsd.experiments.settings import ARMS, flat

METRICS = ["AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L"]


class Gain(NamedTuple):
    """The mean of paired differences, and its 95 % interval by Student's t; None for a single."""

    mean: float
    interval: tuple[float, float] | None

    @property
    def significant(self) -> bool:
        """Whether there is an interval and it excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def gain_of(differences: Iterable[float]) -> Gain | None:
    """Mean and interval of paired differences, NaN left out; None for none.

    Choice: t to three decimals, as tables print it, so that a reader can repeat it by hand.
    """
    known = pd.Series(differences, dtype=float).dropna()
    if len(known) < 2:
        return Gain(known.item(), None) if len(known) else None
    mean, half = known.mean(), round(special.stdtrit(len(known) - 1, 0.975), 3) * known.sem()
    return Gain(float(mean), (float(mean - half), float(mean + half)))


def detectable(differences: Iterable[float], power: float = 0.8) -> float | None:
    """The mean difference that so many pairs of such spread would show with that probability.

    "Show": a two-sided paired t test at 5 %, as the interval of `gain_of`, so it is the smallest
    effect that could have been seen; None for fewer than two pairs. Source: the noncentral t
    distribution (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988).
    """
    known = pd.Series(differences, dtype=float).dropna()
    if len(known) < 2:
        return None
    limit = special.stdtrit(len(known) - 1, 0.975)
    # the shift in standard errors; the wrong tail adds nothing near 80 %
    return float(special.nctdtrinc(len(known) - 1, 1 - power, limit) * known.sem())


def gains(frame: pd.DataFrame, column: str = "gain AP") -> dict[str, Gain | None]:
    """Title of every row → the mean of a column of differences, for figures."""
    return {title: gain_of(runs) for title, runs in frame.groupby("title", sort=False)[column]}


def results_frame(name: str, records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The runs of an experiment: a line for every row and seed that it asks for, NaN where not run.

    Experiments share records: give those of the whole folder (`records.read_folder`), newest last.
    Columns: `title`, `base` (title of the row that gains are counted from), `record`, `steps`, the
    metrics and their gains (`AP`, `gain AP`) in points (0..100), `cpu_s` (NaN for an interrupted
    run: it knows only its last piece), `hardware`, `extra CPU` in per cent (NaN across machines).
    """
    plan = EXPERIMENTS[name]
    asked = {
        (key, seed): (*(row.recorded or (name, key)), seed)
        for key, row in plan.rows.items()
        for seed in plan.seeds
    }
    labelled = [((r.get("experiment"), r.get("row"), r.get("seed")), r) for r in records]
    found = [pair for pair in labelled if pair[0] in asked.values()]
    data = data_of(max((r for _, r in found), key=finished, default={}))  # never of two data sets
    known = dict(pair for pair in found if data_of(pair[1]) == data)
    runs = {key: known.get(labels) for key, labels in asked.items()}
    frame = _frame(runs, {key: row.title for key, row in plan.rows.items()})
    return relative_to(frame, {key: row.base for key, row in plan.rows.items()})


def arms_frame(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The frame (see `results_frame`) of the newest records of `dfmsd distill`, by arm and seed.

    It holds every arm that was asked for. Titles name the steps, because arms differ in them; gains
    are over "no distillation" with as many steps in all.
    """
    records = newest(records)
    known = {(record["arm"], record["seed"]): record for record in records}
    asked = {name for record in records for name in record["settings"]["arms"]} or ARMS
    seeds = sorted({record["seed"] for record in records}) or [0]
    runs = {(arm, seed): known.get((arm, seed)) for arm in ARMS if arm in asked for seed in seeds}
    frame = _frame(runs, arm_titles(records))
    steps = frame["steps"].groupby(level="row").transform("max")
    frame["title"] += (", " + steps).where(steps != "", "")
    totals = {name: sum(arm.lengths) for name, arm in ARMS.items()}
    return relative_to(frame, {n: "none-long" if totals[n] == 2 else "none" for n in ARMS})


def arm_titles(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Arm → its title with the method of the records, which is one; DFMSD unless they say so."""
    method = flat(records[0]["settings"]).get("method.name", "dfmsd") if records else "dfmsd"
    label = "DFMSD" if method == "dfmsd" else method
    return {name: arm.title.replace("DFMSD", label) for name, arm in ARMS.items()}


def newest(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with the settings of the newest one (preset, scale and fingerprint)."""
    runs = [record for record in records if record.get("arm") in ARMS]
    last = max(runs, key=finished, default={})
    same = itemgetter("preset", "scale", "fingerprint")
    return [record for record in runs if same(record) == same(last)]


def left_out(records: Sequence[dict[str, Any]]) -> str:
    """One line on the runs that `newest` leaves out; empty when it leaves out none."""
    shown = newest(records)
    others = [r for r in records if r.get("arm") in ARMS and r not in shown]
    foreign = sum(data_of(record) != data_of(shown[0]) for record in others)
    text = f"not shown, because of other settings: {len(others)} (of other data: {foreign})"
    return text if others else ""


def _frame(runs: Mapping[tuple[str, int], Any], titles: Mapping[str, str]) -> pd.DataFrame:
    """(row, seed) → record (None: not run) as a frame, without gains."""
    index = pd.MultiIndex.from_tuples(list(runs), names=["row", "seed"])
    records = [record or {} for record in runs.values()]
    metrics = [record.get("metrics", {}) for record in records]
    frame = 100 * pd.DataFrame(metrics, index, METRICS, dtype=float)
    frame["title"] = [titles[row] for row, _ in runs]
    frame["record"] = pd.Series(list(runs.values()), index, dtype=object)
    frame["steps"] = [" + ".join(map(str, record.get("steps", []))) for record in records]
    times = [None if record.get("resumed") else record.get("cpu_s") for record in records]
    frame["cpu_s"] = pd.Series(times, index, dtype=float)
    places = [record.get("environment", {}) for record in records]
    frame["hardware"] = [f"{p.get('processor')}, {p.get('accelerators')}" for p in places]
    return frame


def relative_to(frame: pd.DataFrame, base: str | Mapping[str, str]) -> pd.DataFrame:
    """The same runs, their gains counted from row `base` in the same seed, or from a row each."""
    rows, seeds = (frame.index.get_level_values(level) for level in ("row", "seed"))
    bases = [base if isinstance(base, str) else base[row] for row in rows]
    bases = ["" if name == row else name for name, row in zip(bases, rows, strict=True)]
    reference = frame.reindex(pd.MultiIndex.from_arrays([bases, seeds])).set_axis(frame.index)
    titles = dict(zip(rows, frame["title"], strict=True))
    frame = frame.assign(base=[titles.get(name, "") for name in bases])
    for metric in METRICS:
        frame[f"gain {metric}"] = frame[metric] - reference[metric]
    same = frame["hardware"] == reference["hardware"]
    frame["extra CPU"] = 100 * (frame["cpu_s"] / reference["cpu_s"] - 1).where(same)
    return frame


def ranked(rows: Mapping[str, Gain | None]) -> dict[str, Gain | None]:
    """The same rows, the highest mean first; those without a gain stand last."""
    return dict(sorted(rows.items(), key=lambda row: -row[1].mean if row[1] else math.inf))


def learning_curve(records: Iterable[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step of the whole run, mean AP over the runs, 0..100) of the evaluations while training."""
    points = [
        (sum(record["steps"][: row["stage"]]) + row["step"] + 1, 100 * row["AP"])
        for record in records
        for row in record["curve"]
    ]
    return list(pd.DataFrame(points, columns=["step", "AP"]).groupby("step")["AP"].mean().items())
