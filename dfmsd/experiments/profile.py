"""Short measurements of a distillation before it begins: levels, balance of the losses, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
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


@torch.no_grad()
def collect_features(
    distiller: Distiller, samples: Sequence[tuple[Tensor, dict[str, Any]]]
) -> tuple[Levels, Levels]:
    """What the method is given of student and teacher: stride → list of (1, C, H, W), on the CPU.

    The samples, (image (3, H, W), target) on the distiller's device, go one by one as in training,
    so that there is no padding; the student's batch norms see them.
    """
    levels: tuple[Levels, Levels] = ({}, {})

    def keep(_method: nn.Module, inputs: tuple[Any, ...]) -> None:
        for maps, features in zip(levels, inputs[:2], strict=True):
            for stride, feature in features.items():
                maps.setdefault(stride, []).append(feature.float().cpu())

    distiller.train()
    with distiller.method.register_forward_pre_hook(keep):
        for image, target in samples:
            distiller([image], [target])
    return levels


def level_statistics(features: Sequence[Tensor]) -> dict[str, float]:
    """Mean, sd, share of dead channels, and constant share of one level over several images.

    A channel is dead when its standard deviation is under a thousandth of the level's. The constant
    share is how much of the variance over cells the mean picture of all images explains, 0..1; NaN
    with fewer than two images, or with images of several sizes. `features`: (1, C, H, W) of each.
    """
    cells = torch.cat([feature.flatten(2)[0] for feature in features], 1)  # (C, all cells)
    constant = float("nan")
    if len(features) > 1 and len({feature.shape for feature in features}) == 1:
        stack = torch.cat(list(features))
        centred = stack - stack.mean((0, 2, 3), keepdim=True)
        constant = float(centred.mean(0).square().mean() / centred.square().mean())
    return {
        "mean": float(cells.mean()),
        "sd": float(cells.std()),
        "dead": float((cells.std(1) <= 1e-3 * cells.std()).float().mean()),
        "constant": constant,
    }


def loss_balance(
    distiller: Distiller, batch: Batch, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> dict[str, float]:
    """Weighted distillation against task: ratio of the losses, and of the trunk's gradients.

    `cosine` is that of the two gradients, 1 where both pull the same way. The batch is on the
    distiller's device; `autocast` gives the context of the forward pass.
    """
    with autocast():
        losses = distiller.train()(*batch)
    weights = distiller.weights
    method = sum(weights[name] * loss for name, loss in losses.items() if name in weights)
    task = sum(loss for name, loss in losses.items() if name not in weights)
    trunk = [p for p in distiller.student.backbone.parameters() if p.requires_grad]
    options = {"retain_graph": True, "materialize_grads": True}
    gradients = [torch.autograd.grad(loss, trunk, **options) for loss in (method, task)]
    method_pull, task_pull = (torch.cat([part.flatten() for part in g]) for g in gradients)
    return {
        "ratio": float((method / task).detach()),
        "gradient_ratio": float(method_pull.norm()) / max(float(task_pull.norm()), 1e-12),
        "cosine": float(torch.cosine_similarity(method_pull, task_pull, dim=0)),
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what the GPU was told to do counts
    return time.perf_counter()


def throughput(
    distiller: Distiller,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    schedule: Schedule,
    *,
    accelerator: Accelerator,
    **options: Any,
) -> dict[str, float]:
    """Images per second, share of the time spent waiting for data, and peak GPU memory in GiB.

    The steps are those of `fit`, which takes the same arguments and raises the same errors; there
    are at least 2, because the first is not timed. On several processes the images of all count.
    Peak memory is 0 without a GPU.
    """
    device, gpu = accelerator.device, accelerator.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    notes: list[tuple[float, float, int]] = []  # when asked, how long it took, how many images

    def iterate(*position: int) -> Iterator[Batch]:
        source = batches.iterate(*position)
        while True:
            asked = _now(device)
            batch = next(source)
            notes.append((asked, time.perf_counter() - asked, len(batch[0])))
            yield batch

    options = {"log": Logging(show=False), "accelerator": accelerator} | options
    fit(distiller, SimpleNamespace(iterate=iterate), optimizer, schedule, **options)
    asked, waits, sizes = zip(*notes[1:], strict=True)  # the first step warms up
    seconds = _now(device) - asked[0]
    return {
        "images_s": sum(sizes) * accelerator.num_processes / seconds,
        "waiting": sum(waits) / seconds,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if gpu else 0.0,
    }
