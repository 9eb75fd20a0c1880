"""The log of a run: losses per logged step, evaluations in between, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfmsd.detectors.files import CheckpointError, named, write_atomic

Row = dict[str, float]
Watch = Callable[[Row], None]


@dataclass(frozen=True)
class Logging:
    """How a run is logged and shown."""

    every: int = 1  # steps between rows of the history
    watch: Watch | None = None  # called with every row of the history
    title: str = "train"  # before the progress line
    show: bool = True  # draw the progress line


@dataclass
class History:
    """What a run leaves to look at: losses per logged step, and evaluations in between."""

    rows: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    file: Path | None = None  # takes a line for every row that is added

    @classmethod
    def resume(
        cls, folder: Path | None, *, before: tuple[int, int], saved: str | None = None
    ) -> History:
        """The rows of a run that lie before (stage, step); its log is written anew with them.

        A checkpoint stands before the evaluation of its step, so this evaluation is left out too.
        `folder` has the `log.jsonl`, None is no log. `saved` is the `text` of the history when the
        checkpoint was made, whatever has become of the log since; without it the log is read, and
        CheckpointError names a damaged line.
        """
        if folder is None:
            return cls()
        history, file, (stage, step) = cls(), folder / "log.jsonl", before
        folder.mkdir(parents=True, exist_ok=True)
        if saved is not None or file.exists():
            content = file.read_bytes() if saved is None else saved.encode()
            *lines, _half = content.split(b"\n")  # a kill may leave half a line
            for number, line in enumerate(lines if before > (0, 0) else [], start=1):
                try:
                    row = json.loads(line)
                    if (row["stage"], row["step"]) < (stage, step - ("AP" in row)):
                        history.add(row)
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    hint = "move the log away, and the same command goes on without it"
                    raise CheckpointError(f"{file}, line {number}: damaged; {hint}") from error
            write_atomic(file, history.text)
        history.file = file  # from now on
        return history

    @property
    def text(self) -> str:
        """All rows as lines of JSON, in the order of the steps."""
        rows = sorted(self.rows + self.evaluations, key=lambda row: (row["stage"], row["step"]))
        return "".join(f"{json.dumps(row)}\n" for row in rows)

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
    event files; `lengths` are the steps of each stage. ValueError without TensorBoard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        text = "engine.tensorboard=True: needs the package tensorboard (pip install tensorboard)"
        raise ValueError(text) from error
    writer = None

    def write(row: Row) -> None:
        nonlocal writer
        step = sum(lengths[: row["stage"]]) + row["step"]
        writer = writer or SummaryWriter(str(folder), purge_step=step)  # known only now
        with named(folder):
            for name in row.keys() - {"stage", "step"}:
                writer.add_scalar(name, row[name], step)

    return write
