"""What an experiment is: a question, rows and seeds; and what its methods' weights start from."""

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
    "norm_cwd": 3.84,
    "score_l2": 0.0922,
}
"""Method → factor on its published weights at which its weighted loss, at the first step of the
scenes, equals that of DFMSD with its defaults: 4.1 times the task loss. Measured on seed 100."""
HELD_OUT = (100, 101, 102)
"""Weights and readings are chosen on these seeds, which no table reports."""


@dataclass(frozen=True)
class Row:
    """One row of a table: an arm of the preset under some settings."""

    title: str
    arm: str
    settings: tuple[str, ...] = ()
    base: str = "none"  # the row that its gain is counted from
    recorded: tuple[str, str] | None = None  # experiment and row of its runs, if they are another's


@dataclass(frozen=True)
class Experiment:
    """A question, and the runs that answer it: every row with every seed."""

    question: str
    rows: dict[str, Row]
    seeds: tuple[int, ...] = (0, 1, 2)
    preset: str = "scenes"
    settings: tuple[str, ...] = ()  # what all rows share
