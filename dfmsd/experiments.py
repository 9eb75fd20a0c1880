"""Experiments: grids of runs, as data. `dfmsd experiment NAME` runs what has no record yet."""

from __future__ import annotations

from dataclasses import dataclass

BALANCE = {
    "dfmsd": 1.0,
    "fitnet": 0.064,
    "mgd": 0.0138,
    "amd": 0.0163,
    "dmkd": 0.0163,
    "pkd": 0.284,
    "fgd": 0.037,
    "cwd": 0.191,
}
"""Method → factor on its published weights at which its weighted loss, at the first step of the
scenes, equals that of DFMSD with its defaults: 4.1 times the task loss. Measured on seed 100."""
MULTIPLES = (0.1, 0.3, 1.0, 3.0)
"""What the balance is multiplied by to choose each method's weight: one grid for all."""
HELD_OUT = 100
"""Weights are chosen on this seed, which no table reports."""
TITLES = {
    "fitnet": "FitNet",
    "mgd": "MGD",
    "amd": "AMD (our reading)",
    "dmkd": "DMKD (our reading)",
    "pkd": "PKD",
    "fgd": "FGD",
    "cwd": "CWD",
    "dfmsd": "DFMSD, one stage",
}


@dataclass(frozen=True)
class Row:
    """One row of a table: an arm of the preset under some settings."""

    title: str
    arm: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """A question, and the runs that answer it: every row with every seed."""

    question: str
    preset: str
    rows: dict[str, Row]
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = ()
    """what all rows share"""


def _weights() -> dict[str, Row]:
    """Every method with every multiple of its balanced weight, DFMSD also in two stages."""
    rows = {}
    for name, balance in BALANCE.items():
        for multiple in MULTIPLES:
            chosen = (f"method.name={name}", f"method.factor={balance * multiple:.3g}")
            rows[f"{name}-{multiple:g}"] = Row(f"{TITLES[name]} × {multiple:g}", "one", chosen)
            if name == "dfmsd":
                title = f"DFMSD, two stages × {multiple:g}"
                rows[f"dfmsd-two-{multiple:g}"] = Row(title, "two", chosen)
    return rows


SCENES = ("scale=quick", "train.steps=800")
"""Generated scenes, 800 steps: the budget of the scenes' tables."""

EXPERIMENTS = {
    "scenes-weights": Experiment(
        "Which weight does each method want, on a seed that no table reports?",
        "scenes",
        _weights(),
        (HELD_OUT,),
        SCENES,
    ),
}
