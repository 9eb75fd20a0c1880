"""Stage-wise adaptive learning (SAL): one teacher after another, as a plain loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from dfmsd.align import alignment_loss, match_levels
from dfmsd.context import Context
from dfmsd.detectors.checkpoints import CheckpointError, state_dict_diff
from dfmsd.detectors.features import strided_levels, to_levels
from dfmsd.distill import Distiller
from dfmsd.training.checkpoint import Checkpointing, CheckpointManager
from dfmsd.training.log import History
from dfmsd.training.loop import Batches, Evaluation, fit
from dfmsd.training.optim import Schedule, make_optimizer
from dfmsd.training.steps import parts


@dataclass
class Stage:
    """One teacher's turn."""

    name: str  # in progress lines and records
    schedule: Schedule
    teacher: nn.Module | None = None  # a torchvision detector; None trains without distillation
    method: nn.Module | None = None  # built for the channels of both; None without a teacher
    fitted: int = 0  # batches that the method's adapters are fitted on before; 0: they are not
    anchor: float = 0.0  # weight of the student of the stage before, see `Anchored`; 0 is off


def run_stages(
    student: nn.Module,
    stages: Sequence[Stage],
    batches: Batches,
    *,
    optimizer: dict[str, Any],
    checkpoints: Checkpointing | None = None,
    evaluation: Evaluation | None = None,
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
            CheckpointError when the newest one belongs to another run.
        evaluation: what is measured on the way; its steps count over all stages.
        after_stage: called with (number, stage, student, history) when a stage is complete.
        accelerator: device, precision and processes; a plain one unless given.
        options: passed on to `fit`.
    """
    accelerator, checkpoints = accelerator or Accelerator(), checkpoints or Checkpointing()
    checkpoints = replace(checkpoints, run=describe(stages, seed=options.get("seed", 0)))
    if (export := checkpoints.export) is not None:  # `fit` trains a distiller and exports that
        checkpoints = replace(checkpoints, export=lambda m, *to, **at: export(m.student, *to, **at))
    manager = CheckpointManager(checkpoints, accelerator)
    first, done = _resume(manager, student)
    options |= {"checkpoints": checkpoints, "accelerator": accelerator}
    for number, stage in enumerate(stages[first:], start=first):
        start = replace(stage, fitted=0) if number == first and done else stage  # they are saved
        how = {"accelerator": accelerator, "accumulate": options.get("accumulate", 1)}
        distiller = begin_stage(student, start, batches, first=not number, **how)
        adamw_or_sgd = make_optimizer(distiller, lr=stage.schedule.lr, **optimizer)
        before = sum(earlier.schedule.steps for earlier in stages[:number])
        options["evaluation"] = evaluation and replace(evaluation, before=before)
        history = fit(distiller, batches, adamw_or_sgd, stage.schedule, stage=number, **options)
        if after_stage is not None:
            after_stage(number, stage, student, history)
        state = {"stage": number + 1, "step": 0, "log": history.text}
        manager.save(state | {"student": student.state_dict()}, distiller)
    return student


def describe(stages: Sequence[Stage], *, seed: int) -> str:
    """What stages train, on one line: names, steps, rates, methods and their weights, and the seed.

    It tells the checkpoints of two runs apart; that the data are the same is up to the caller.
    """
    words = []
    for stage in stages:
        rates, method = stage.schedule, stage.method
        words.append(f"{stage.name} {rates.steps} steps, learning rate {rates.lr:g}")
        if method is not None:
            weights = ", ".join(f"{term} {weight:g}" for term, weight in method.weights.items())
            words[-1] += f", {type(method).__name__} ({weights})"
    return "; ".join([*words, f"seed {seed}"])


def begin_stage(
    student: nn.Module,
    stage: Stage,
    batches: Batches,
    *,
    first: bool,
    accelerator: Accelerator,
    accumulate: int = 1,
) -> Distiller:
    """The distiller of a stage on its device: fitted and, unless it is the `first`, anchored."""
    method = stage.method
    if stage.anchor and method is not None and not first:
        method = Anchored(method, student, stage.anchor)
    distiller = Distiller(student, stage.teacher, method).to(accelerator.device)
    if stage.fitted:
        how = {"accelerator": accelerator, "accumulate": accumulate}
        fit_adapters(distiller, stage.method, batches, stage.fitted, **how)
    return distiller


class Anchored(nn.Module):
    """A method, with the student as it is now as a second target: one more term, {"anchor"}.

    The mean over the student's levels of `alignment_loss` between its features and those of its
    frozen copy, so that a stage does not undo the stage before. Source: SMSKD (arXiv 2601.15657).
    Choice: aligned features, all levels; `weight` is beside the 10 of the alignment to a teacher.
    The copy, of the backbone, is in the state dict: a stage that continues needs it as it was. It
    runs in eval mode, so a student with batch norm is a little away from it before it has moved.
    """

    def __init__(self, method: nn.Module, student: nn.Module, weight: float) -> None:
        super().__init__()
        self.method, self.weights = method, method.weights | {"anchor": weight}
        self.needs_scores = getattr(method, "needs_scores", False)
        self.names = {stride: name for stride, (name, _) in strided_levels(student).items()}
        self.before = copy.deepcopy(student.backbone).requires_grad_(False)

    def forward(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], context: Context
    ) -> dict[str, Tensor]:
        """The method's terms and the anchor's; arguments of a method."""
        with torch.no_grad():
            before, losses = to_levels(self.before.eval()(context.images)), []
        for stride, feature in student.items():
            valid = context.padding_mask(feature)
            losses.append(alignment_loss(feature, before[self.names[stride]], valid))
        return self.method(student, teacher, context) | {"anchor": torch.stack(losses).mean()}


@torch.no_grad()
def fit_adapters(
    distiller: Distiller,
    method: nn.Module,
    batches: Batches,
    count: int,
    *,
    accelerator: Accelerator | None = None,
    accumulate: int = 1,
) -> None:
    """Set the 1x1 adapters of `method` to the least squares from student to teacher features.

    A new teacher then does not begin with noise. The fit is to the teacher's raw features, over
    the valid cells of the first `count` batches, as training sees them. It has the smallest squared
    error, and for each channel the highest correlation, hence also the smallest alignment loss.
    Choice: directions in which the student varies by less than 1e-6 of its largest variance are
    left out. Nothing else changes: no buffer, no random state; training gets the same batches.
    Processes of the `accelerator` share each batch, and each takes its share in `accumulate` parts.
    """
    world, sums = accelerator or Accelerator(), {}

    def add(_method: nn.Module, features: tuple[Any, ...]) -> None:
        student, teacher, context = features
        for stride, *pair in match_levels(student, teacher, method.match, pairs=method.pairs):
            cells = torch.cat([torch.ones_like(pair[0][:, :1]), *pair], 1).movedim(1, 3)
            cells = cells[context.valid(pair[1])[:, 0]].double()  # (cells, 1 + C_s + C_t)
            sums[stride] = sums.get(stride, 0) + cells.T @ cells

    buffers = [(buffer, buffer.clone()) for buffer in distiller.buffers()]
    device = next(distiller.parameters()).device
    generators = [device] if device.type == "cuda" else []  # beside that of the CPU
    with torch.random.fork_rng(generators), method.register_forward_pre_hook(add):
        torch.manual_seed(0)
        for share in islice(batches.iterate(0, world.process_index, world.num_processes), count):
            for part in parts(send_to_device(share, device), accumulate):
                distiller.train()(*part)
    for buffer, value in buffers:
        buffer.copy_(value)
    for stride, total in world.reduce(sums).items():
        adapter = method.adapters[str(stride)].map
        if not isinstance(adapter, nn.Conv2d):
            raise ValueError(f"fitted: no adapter at stride {stride}; build it with adapter='conv'")
        mean, size = total[0, 1:] / total[0, 0], adapter.in_channels
        covariance = total[1:, 1:] / total[0, 0] - mean.outer(mean)
        inverse = torch.linalg.pinv(covariance[:size, :size], rtol=1e-6, hermitian=True)
        weight = covariance[size:, :size] @ inverse  # (C_t, C_s)
        adapter.weight.copy_(weight[:, :, None, None])
        adapter.bias.copy_(mean[size:] - weight @ mean[:size])


def _resume(manager: CheckpointManager, student: nn.Module) -> tuple[int, int]:
    """Stage and step of the newest checkpoint, after loading its student; (0, 0) without one."""
    state = manager.load()
    if state is None:
        return 0, 0
    stage, step = state["stage"], state["step"]
    if step == 0:  # else `fit` loads it with the method
        if difference := state_dict_diff(student.state_dict(), state["student"]):
            raise CheckpointError(f"{manager.path}: belongs to another model ({difference})")
        student.load_state_dict(state["student"])
    return stage, step
