"""The log of a run for TensorBoard, where that is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


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
