"""Stage-wise adaptive learning (SAL): one teacher after another, as a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from torch import nn

from dfmsd.detectors.checkpoints import CheckpointError, state_dict_diff
from dfmsd.distill import Distiller
from dfmsd.training.checkpoint import Checkpointing, CheckpointManager
from dfmsd.training.log import History
from dfmsd.training.loop import Batches, fit
from dfmsd.training.optim import Schedule, make_optimizer


@dataclass
class Stage:
    """One teacher's turn."""

    name: str  # in progress lines and records
    schedule: Schedule
    teacher: nn.Module | None = None  # a torchvision detector; None trains without distillation
    method: nn.Module | None = None  # built for the channels of both; None without a teacher


def run_stages(
    student: nn.Module,
    stages: Sequence[Stage],
    batches: Batches,
    *,
    optimizer: dict[str, Any],
    checkpoints: Checkpointing | None = None,
    after_stage: Callable[[int, Stage, nn.Module, History], None] | None = None,
    accelerator: Accelerator | None = None,
    **options: Any,
) -> nn.Module:
    """The student after all stages; a killed run continues at the stage and step it had reached.

    The student carries over from stage to stage; teacher, method and optimiser state do not.

    Args:
        student: a torchvision detector; trained in place.
        stages: in order, the weaker teacher first.
        batches: the training data (see `fit`).
        optimizer: arguments of `make_optimizer`.
        checkpoints: where and how often the run is saved; its `export` is given the student.
        after_stage: called with (number, stage, student, history) when a stage is complete.
        accelerator: device, precision and processes; a plain one unless given.
        options: passed on to `fit`.

    Raises CheckpointError when the newest checkpoint belongs to another run.
    """
    accelerator, checkpoints = accelerator or Accelerator(), checkpoints or Checkpointing()
    if (export := checkpoints.export) is not None:  # `fit` trains a distiller and exports that
        checkpoints = replace(checkpoints, export=lambda m, *to, **at: export(m.student, *to, **at))
    manager = CheckpointManager(checkpoints, accelerator)
    first = _resume(manager, student, len(stages))
    options |= {"checkpoints": checkpoints, "accelerator": accelerator}
    for number, stage in enumerate(stages[first:], start=first):
        distiller = Distiller(student, stage.teacher, stage.method)
        adamw_or_sgd = make_optimizer(distiller, lr=stage.schedule.lr, **optimizer)
        history = fit(distiller, batches, adamw_or_sgd, stage.schedule, stage=number, **options)
        if after_stage is not None:
            after_stage(number, stage, student, history)
        state = {"stage": number + 1, "step": 0, "student": student.state_dict()}
        manager.save(state, distiller)
    return student


def _resume(manager: CheckpointManager, student: nn.Module, count: int) -> int:
    """The stage that the newest checkpoint stands at, after loading its student; 0 without one."""
    state = manager.load()
    if state is None:
        return 0
    stage, step = state["stage"], state["step"]
    if stage > count or (stage == count and step):
        raise CheckpointError(f"{manager.path}: stands at stage {stage}, this run has {count}")
    if step == 0:  # else `fit` loads it with the method
        difference = state_dict_diff(student.state_dict(), state["student"])
        if difference:
            raise CheckpointError(f"{manager.path}: belongs to another model ({difference})")
        student.load_state_dict(state["student"])
    return stage
