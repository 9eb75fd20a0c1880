"""The log of a run: losses per logged step, evaluations in between, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfmsd.detectors.checkpoints import named, write_atomic

Row = dict[str, float]


@dataclass
class History:
    """What a run leaves to look at: losses per logged step, and evaluations in between."""

    rows: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path, *, before: tuple[int, int]) -> History:
        """The rows of a log that lie before (stage, step); later ones are cut off the file.

        A checkpoint stands before the evaluation of its step, so this evaluation is left out too.
        """
        history = cls()
        stage, step = before
        if path.exists():
            for line in path.read_text().splitlines():
                if not line.endswith("}"):  # a kill may leave half a line
                    continue
                row = json.loads(line)
                evaluation = "AP" in row
                if (row["stage"], row["step"]) < (stage, step - evaluation):
                    (history.evaluations if evaluation else history.rows).append(row)
            kept = sorted(history.rows + history.evaluations, key=lambda r: (r["stage"], r["step"]))
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
        return history

    def add(self, row: Row, path: Path | None, watch: Callable[[Row], None] | None = None) -> None:
        """Keep one row, append it to the log and show it to `watch`."""
        (self.evaluations if "AP" in row else self.rows).append(row)
        if path is not None:
            with named(path), open(path, "a") as file:
                file.write(json.dumps(row) + "\n")
        if watch is not None:
            watch(row)


def tensorboard(folder: Path, lengths: Sequence[int]) -> Callable[[dict[str, float]], None]:
    """A function that writes one row of the log as scalars, counting steps over all stages.

    What a run that was interrupted wrote beyond its checkpoint is taken back.

    Args:
        folder: takes the event files.
        lengths: steps of each stage.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "engine.tensorboard=True: needs the package tensorboard (pip install tensorboard)"
        ) from error
    writers: list[SummaryWriter] = []

    def write(row: dict[str, float]) -> None:
        step = sum(lengths[: row["stage"]]) + row["step"]
        if not writers:  # the first step is known only now
            writers.append(SummaryWriter(str(folder), purge_step=step))
        for name, value in row.items():
            if name not in ("stage", "step"):
                writers[0].add_scalar(name, value, step)

    return write
