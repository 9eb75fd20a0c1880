"""The rows of a table: which teachers in turn, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One row of a table: which teachers in turn, and how long each, in units of `train.steps`."""

    title: str
    teachers: tuple[str, ...]
    lengths: tuple[float, ...]


ARMS: dict[str, Arm] = {
    "none": Arm("no distillation", (), (1.0,)),
    "one": Arm("DFMSD, one stage (strong)", ("strong",), (1.0,)),
    "two": Arm("DFMSD, two stages (weak → strong)", ("weak", "strong"), (0.5, 0.5)),
    "two-early": Arm("DFMSD, two stages (a fifth weak → strong)", ("weak", "strong"), (0.2, 0.8)),
    "none-long": Arm("no distillation", (), (2.0,)),
    "one-long": Arm("DFMSD, one stage (strong)", ("strong",), (2.0,)),
    "two-long": Arm("DFMSD, two stages (weak → strong)", ("weak", "strong"), (1.0, 1.0)),
}
"""Two budgets: a stage of "two-long" is as long as the only stage of "one". "two-early" goes on to
the stronger teacher after a fifth of the steps; it is meant for `train.schedule_over=run`."""
