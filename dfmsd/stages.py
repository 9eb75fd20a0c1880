"""Stage-wise adaptive learning (SAL): one teacher after another, as a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from dfmsd.detectors.checkpoints import CheckpointError, state_dict_diff
from dfmsd.distill import Distiller
from dfmsd.training.checkpoint import Export, Keeper
from dfmsd.training.loop import Batches, History, fit
from dfmsd.training.optim import Schedule, make_optimizer


@dataclass
class Stage:
    """One teacher's turn.

    Args:
        name: shown in progress lines and records.
        schedule: steps and learning rate of this stage.
        teacher: a torchvision detector, or None for training without distillation.
        method: compares student and teacher, built for their channels; None without a teacher.
    """

    name: str
    schedule: Schedule
    teacher: nn.Module | None = None
    method: nn.Module | None = None


def run_stages(
    student: nn.Module,
    stages: Sequence[Stage],
    batches: Batches,
    *,
    optimizer: dict[str, Any],
    folder: Path | None = None,
    export: Export | None = None,
    after_stage: Callable[[int, Stage, nn.Module, History], None] | None = None,
    accelerator: Accelerator | None = None,
    **options: Any,
) -> nn.Module:
    """The student after all stages; a killed run continues at the stage and step it had reached.

    The student carries over from stage to stage; teacher, adapters and optimiser state do not.

    Args:
        student: a torchvision detector; trained in place.
        stages: in order, the weaker teacher first.
        batches: the training data (see `fit`).
        optimizer: arguments of `make_optimizer`.
        folder: where checkpoints and the log live; None keeps everything in memory.
        export: `export(student, path, stage=…, step=…)` writes the plain student beside each
            checkpoint; None writes none.
        after_stage: called with (number, stage, student, history) when a stage is complete.
        accelerator: device, precision and processes; a plain one unless given.
        options: passed on to `fit`.

    Raises:
        CheckpointError: the checkpoint in `folder` belongs to another run.
    """
    accelerator = accelerator or Accelerator()
    keeper = Keeper(folder, accelerator, export)
    state = keeper.load()
    first = state["stage"] if state else 0
    if first > len(stages) or (first == len(stages) and state["step"]):
        raise CheckpointError(f"{keeper.path}: stands at stage {first}, this run has {len(stages)}")
    if state and state["step"] == 0:
        difference = state_dict_diff(student.state_dict(), state["student"])
        if difference:
            raise CheckpointError(f"{keeper.path}: belongs to another model ({difference})")
        student.load_state_dict(state["student"])
    for number, stage in enumerate(stages):
        if number < first:
            continue
        distiller = Distiller(student, stage.teacher, stage.method)
        history = fit(
            distiller,
            batches,
            make_optimizer(distiller, lr=stage.schedule.lr, **optimizer),
            stage.schedule,
            weights=distiller.weights,
            stage=number,
            folder=folder,
            export=_of_distiller(export),
            accelerator=accelerator,
            **options,
        )
        if after_stage is not None:
            after_stage(number, stage, student, history)
        keeper.save({"stage": number + 1, "step": 0, "student": student.state_dict()}, student)
    return student


def _of_distiller(export: Export | None) -> Export | None:
    """`export` for the distiller that `fit` trains."""
    if export is None:
        return None
    return lambda distiller, path, **place: export(distiller.student, path, **place)
