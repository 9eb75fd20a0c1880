"""Short measurements of a distillation before it begins: levels, balance of the losses, cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dfmsd.distill import Distiller
from dfmsd.training.log import Logging
from dfmsd.training.loop import Batches, fit
from dfmsd.training.optim import Schedule
from dfmsd.training.steps import Batch

Levels = dict[int, list[Tensor]]


class _Spy(nn.Module):
    """A method that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.seen: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})

    def forward(
        self, student: dict[int, Tensor], teacher: dict[int, Tensor], _context: object
    ) -> dict[str, Tensor]:
        """No losses."""
        self.seen = (student, teacher)
        return {}


@torch.no_grad()
def seen_features(
    student: nn.Module, teacher: nn.Module, samples: Sequence[tuple[Tensor, dict[str, Any]]]
) -> tuple[Levels, Levels]:
    """Student's and teacher's features of each image: stride → list of (1, C, H, W).

    The images go one by one, so that there is no padding, the way that training takes them.

    Args:
        student: a torchvision detector; its batch norms see the images.
        teacher: the teacher.
        samples: (image (3, H, W), target) on the student's device.
    """
    spy = _Spy()
    distiller = Distiller(student, teacher, spy).train()
    both: tuple[Levels, Levels] = ({}, {})
    for image, target in samples:
        distiller([image], [target])
        for levels, features in zip(both, spy.seen, strict=True):
            for stride, feature in features.items():
                levels.setdefault(stride, []).append(feature.float().cpu())
    return both


def level_statistics(features: Sequence[Tensor]) -> dict[str, float]:
    """Mean, sd, share of dead channels, and constant share of one level over several images.

    A channel is dead when its standard deviation is under a thousandth of the level's. The constant
    share is how much of the variance over cells the mean picture of all images explains, 0..1; NaN
    with fewer than two images, or with images of several sizes.

    Args:
        features: (1, C, H, W) of each image.
    """
    cells = torch.cat([feature.flatten(2)[0] for feature in features], 1)  # (C, all cells)
    spread = cells.std(1)
    constant = float("nan")
    if len(features) > 1 and len({feature.shape for feature in features}) == 1:
        stack = torch.cat(list(features))
        centred = stack - stack.mean((0, 2, 3), keepdim=True)
        constant = float(centred.mean(0).square().mean() / centred.square().mean())
    return {
        "mean": float(cells.mean()),
        "sd": float(cells.std()),
        "dead": float((spread <= 1e-3 * cells.std()).float().mean()),
        "constant": constant,
    }


def balance(
    distiller: Distiller, batch: Batch, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> dict[str, float]:
    """Weighted distillation against task: ratio of the losses, and of the trunk's gradients.

    `cosine` is that of the two gradients, 1 where both pull the same way.

    Args:
        distiller: with a method.
        batch: images and targets on its device.
        autocast: context of the forward pass.
    """
    with autocast():
        losses = distiller.train()(*batch)
    weights = distiller.weights
    ours = sum(weights[name] * loss for name, loss in losses.items() if name in weights)
    task = sum(loss for name, loss in losses.items() if name not in weights)
    trunk = [p for p in distiller.student.backbone.parameters() if p.requires_grad]
    how = {"retain_graph": True, "materialize_grads": True}
    parts = [torch.autograd.grad(loss, trunk, **how) for loss in (ours, task)]
    pulls = [torch.cat([part.flatten() for part in gradient]) for gradient in parts]
    norms = [float(pull.norm()) for pull in pulls]
    return {
        "task": float(task.detach()),
        "distillation": float(ours.detach()),
        "ratio": float((ours / task).detach()),
        "gradient_ratio": norms[0] / max(norms[1], 1e-12),
        "cosine": float(torch.cosine_similarity(*pulls, dim=0)),
    }


class _Clock:
    """Batches that note when they were asked for and when they came."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches, self.device = batches, device
        self.asked: list[float] = []
        self.came: list[float] = []
        self.images = 0

    def now(self) -> float:
        """The time in seconds, after everything that the GPU was told to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def iterate(self, *place: int) -> Iterator[Batch]:
        """The batches of `place`: start, rank, world."""
        arrivals = self.batches.iterate(*place)
        while True:
            self.asked.append(self.now())
            batch = next(arrivals)
            self.came.append(time.perf_counter())
            if len(self.came) > 1:  # the first step warms up
                self.images += len(batch[0])
            yield batch


def cost(
    distiller: Distiller,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    schedule: Schedule,
    *,
    accelerator: Accelerator,
    **options: Any,
) -> dict[str, float]:
    """Images per second, share of the time spent waiting for data, and peak GPU memory in GiB.

    The steps are those of `fit`; the first is not timed. On several processes the images of all
    count. Peak memory is 0 without a GPU.

    Args:
        distiller: what is trained; its weights change.
        optimizer: over its parameters.
        batches: the training data.
        schedule: as many steps as are made, at least 2.
        accelerator: device, precision and processes.
        options: passed on to `fit`.

    Raises:
        torch.cuda.OutOfMemoryError: the batch does not fit.
        NonFiniteLossError: a loss is NaN or infinite.
    """
    device = accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clock, options = _Clock(batches, device), {"log": Logging(show=False)} | options
    fit(distiller, clock, optimizer, schedule, accelerator=accelerator, **options)
    whole = clock.now() - clock.asked[1]
    waited = sum(clock.came[1:]) - sum(clock.asked[1:])
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    images = clock.images * accelerator.num_processes
    return {"images_s": images / whole, "waiting": waited / whole, "peak_gib": peak}
