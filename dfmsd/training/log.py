"""The log of a run: losses per logged step, evaluations in between, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfmsd.detectors.checkpoints import named, write_atomic

Row = dict[str, float]
Watch = Callable[[Row], None]


@dataclass(frozen=True)
class Logging:
    """How a run is logged and shown."""

    every: int = 1
    """steps between rows of the history"""
    watch: Watch | None = None
    """called with every row of the history"""
    title: str = "train"
    """before the progress line"""
    show: bool = True
    """draw the progress line"""


@dataclass
class History:
    """What a run leaves to look at: losses per logged step, and evaluations in between."""

    rows: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    file: Path | None = None
    """takes a line for every row that is added"""

    @classmethod
    def resume(cls, folder: Path | None, *, before: tuple[int, int]) -> History:
        """The rows of a folder's log that lie before (stage, step); later ones are cut off it.

        A checkpoint stands before the evaluation of its step, so this evaluation is left out too.
        """
        history = cls(file=folder / "log.jsonl" if folder is not None else None)
        stage, step = before
        if history.file is None or not history.file.exists():
            return history
        for line in history.file.read_text().splitlines():
            row = json.loads(line) if line.endswith("}") else {}  # a kill may leave half a line
            evaluation = "AP" in row
            if row and (row["stage"], row["step"]) < (stage, step - evaluation):
                (history.evaluations if evaluation else history.rows).append(row)
        kept = sorted(history.rows + history.evaluations, key=lambda r: (r["stage"], r["step"]))
        write_atomic(history.file, "".join(json.dumps(row) + "\n" for row in kept))
        return history

    def add(self, row: Row, watch: Watch | None = None) -> None:
        """Keep one row, append it to the log and show it to `watch`."""
        (self.evaluations if "AP" in row else self.rows).append(row)
        if self.file is not None:
            with named(self.file), open(self.file, "a") as file:
                file.write(json.dumps(row) + "\n")
        if watch is not None:
            watch(row)


def tensorboard(folder: Path, lengths: Sequence[int]) -> Watch:
    """A function that writes one row of the log as scalars, counting steps over all stages.

    What a run that was interrupted wrote beyond its checkpoint is taken back. `folder` takes the
    event files; `lengths` are the steps of each stage.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        needs = "needs the package tensorboard (pip install tensorboard)"
        raise ValueError(f"engine.tensorboard=True: {needs}") from error
    writers: list[SummaryWriter] = []

    def write(row: Row) -> None:
        step = sum(lengths[: row["stage"]]) + row["step"]
        if not writers:  # the first step is known only now
            writers.append(SummaryWriter(str(folder), purge_step=step))
        for name, value in row.items():
            if name not in ("stage", "step"):
                writers[0].add_scalar(name, value, step)

    return write
