"""Records → outcomes: every row of an experiment with its gain, its interval and its cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dfmsd.experiments.arms import ARMS
from dfmsd.experiments.fingerprint import PLACES, YOUNGER
from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.records import paired_difference, select
from dfmsd.experiments.settings import Settings, flat

# Student's t at 97.5 %, by degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Gain(NamedTuple):
    """The mean of paired differences."""

    mean: float
    interval: tuple[float, float] | None
    """95 %, by Student's t; None for a single difference"""

    @property
    def significant(self) -> bool:
        """Whether there is an interval and it excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Outcome:
    """One row of a table: what was run, and what its gain is counted from."""

    title: str
    records: tuple[dict[str, Any], ...]
    """the newest of every seed, in order of the seed; none: not run"""
    base: tuple[dict[str, Any], ...]
    """records of the row that the gain is counted from; none: no gain"""
    base_title: str
    seeds: int
    """how many were asked for"""

    @property
    def steps(self) -> str:
        """Steps of every stage, `400 + 400`."""
        return " + ".join(map(str, self.records[0]["steps"])) if self.records else ""

    def values(self, metric: str = "AP") -> list[float]:
        """The metric in points (0..100), one per seed that has it."""
        found = [record["metrics"].get(metric) for record in self.records]
        return [100 * value for value in found if value is not None]

    def gain(self, metric: str = "AP") -> Gain | None:
        """Points over the base in the same seeds; None without a seed in common."""
        return gain_of([100 * d for d in paired_difference(self.records, self.base, metric)])

    def cpu(self) -> dict[int, float]:
        """Seed → CPU seconds of its run; a run that was interrupted knows only its last piece."""
        return {r["seed"]: r["cpu_s"] for r in self.records if not r.get("resumed")}

    def extra_cpu(self) -> Gain | None:
        """Per cent of CPU time beyond the base's in the same seeds; None without one in common."""
        own, base = self.cpu(), replace(self, records=self.base).cpu()
        return gain_of([100 * (own[seed] / base[seed] - 1) for seed in own if seed in base])

    def curve(self, metric: str = "AP") -> list[tuple[int, float]]:
        """(step, mean over the seeds in points) of the evaluations while training."""
        found: dict[int, list[float]] = {}
        for record in self.records:
            for row in record["curve"]:
                step = sum(record["steps"][: row["stage"]]) + row["step"] + 1
                found.setdefault(step, []).append(100 * row[metric])
        return [(step, statistics.fmean(values)) for step, values in sorted(found.items())]


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean of paired differences, by Student's t; None for fewer than 2."""
    count = len(differences)
    if count < 2:
        return None
    middle = statistics.fmean(differences)
    half = quantile(count - 1) * statistics.stdev(differences) / count**0.5
    return middle - half, middle + half


def quantile(freedom: int) -> float:
    """Student's t at 97.5 %; from ten degrees of freedom on to 1e-4.

    Source: Abramowitz and Stegun, 26.7.5, four terms around the normal quantile.
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


def gain_of(differences: Sequence[float]) -> Gain | None:
    """Mean and interval of paired differences; None for none."""
    if not differences:
        return None
    return Gain(statistics.fmean(differences), interval(differences))


def experiment_records(
    name: str, records: Iterable[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Row of an experiment → its newest record per seed, in order of the seed; none: not run.

    A record is a row's when arm, seed and every setting that can change a result agree. Experiments
    share records, so give those of the whole folder (`results.read_folder`).
    """
    plan = EXPERIMENTS[name]
    listed = [
        (record, YOUNGER | deciding(record.get("settings", {})))
        for record in records
        if record.get("seed") in plan.seeds and record.get("arm") in ARMS
    ]
    found = {}
    for key, row in plan.rows.items():
        wanted = deciding(resolve(plan.preset, [*plan.settings, *row.settings])).items()
        own = [r for r, had in listed if r["arm"] == row.arm and wanted <= had.items()]
        found[key] = select(own)
    return found


def deciding(settings: Settings | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name → value of the settings that can change a result.

    Files and folders are left out, because a reader of records need not have them.
    """
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in flat(settings).items()
        if key not in PLACES and not key.endswith(("_file", "weights", "root"))
    }


def experiment_outcomes(name: str, records: Iterable[dict[str, Any]]) -> dict[str, Outcome]:
    """Row of an experiment → its outcome, the gain over the row that it names as its base."""
    plan, found = EXPERIMENTS[name], experiment_records(name, records)
    outcomes = {
        key: Outcome(row.title, tuple(found[key]), (), "", len(plan.seeds))
        for key, row in plan.rows.items()
    }
    return {
        key: _against(outcome, outcomes.get(plan.rows[key].base))
        for key, outcome in outcomes.items()
    }


def newest(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with the settings of the newest one (preset, scale and fingerprint)."""
    runs = [record for record in records if record.get("arm") in ARMS]
    if not runs:
        return []
    last = max(runs, key=lambda record: record["finished"])
    keys = ("preset", "scale", "fingerprint")
    return [record for record in runs if all(record[k] == last[k] for k in keys)]


def arm_outcomes(records: Iterable[dict[str, Any]]) -> dict[str, Outcome]:
    """Arm → its outcome, for records of `dfmsd distill`; arms that were asked for without one too.

    The title names the steps, because arms differ in them; the gain is over "no distillation" with
    as many steps in all.
    """
    listed = newest(records)
    asked = {name for record in listed for name in record["settings"]["arms"]}
    seeds = len({record["seed"] for record in listed})
    outcomes = {
        name: _with_steps(Outcome(arm.title, tuple(select(listed, arm=name)), (), "", seeds))
        for name, arm in ARMS.items()
        if name in asked
    }
    bases = {name: "none-long" if sum(ARMS[name].lengths) == 2 else "none" for name in outcomes}
    return {name: _against(own, outcomes.get(bases[name])) for name, own in outcomes.items()}


def _with_steps(outcome: Outcome) -> Outcome:
    return replace(outcome, title=", ".join(filter(None, (outcome.title, outcome.steps))))


def against(outcomes: Mapping[str, Outcome], key: str) -> dict[str, Outcome]:
    """The same rows, their gains counted from row `key`."""
    return {name: _against(outcome, outcomes[key]) for name, outcome in outcomes.items()}


def _against(outcome: Outcome, base: Outcome | None) -> Outcome:
    if base is None or base is outcome:
        return replace(outcome, base=(), base_title="")
    return replace(outcome, base=base.records, base_title=base.title)
