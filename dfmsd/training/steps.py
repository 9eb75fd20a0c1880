"""One step of training: a batch forward and backward, whole or in parts, on one or many processes.

Everything random is a function of counters (seed, stage, step and process), never of generator
state: a run that was killed and resumed computes the very same losses as one that was
never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from dfmsd.training.finite import check_finite, total_loss

Batch = tuple[list[Tensor], list[dict[str, Any]]]


@dataclass(frozen=True)
class Place:
    """Which step of which run."""

    seed: int
    stage: int
    step: int


def step_seed(seed: int, stage: int, step: int, rank: int = 0) -> int:
    """The seed of everything random in one step: RPN and RoI sampling, drop-out, random masks."""
    return ((seed * 1_000_003 + stage * 7_919) * 1_000_003 + step * 1_009 + rank) % 2**63


@contextmanager
def peer_errors() -> Iterator[None]:
    """Context in which the end of another process is told in plain words.

    Raises:
        ChildProcessError: another process has ended while this one needed it.
    """
    try:
        yield
    except RuntimeError as error:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not several or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ChildProcessError(
            "another process of this run has ended, and says itself why; the same command "
            "continues from the last checkpoint"
        ) from error


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on `device`."""
    images, targets = batch
    moved = [
        {k: v.to(device) if isinstance(v, Tensor) else v for k, v in t.items()} for t in targets
    ]
    return [image.to(device, non_blocking=True) for image in images], moved


def parts(batch: Batch, count: int) -> Iterator[tuple[range, Batch]]:
    """The batch in `count` equal parts, each with the places of its images in the batch.

    Raises:
        ValueError: when it cannot be divided so.
    """
    images, targets = batch
    size, rest = divmod(len(images), count)
    if rest:
        raise ValueError(f"accumulate={count}: {len(images)} images make no {count} equal parts")
    for first in range(0, len(images), size):
        yield range(first, first + size), (images[first : first + size], targets[first:][:size])


def backward(
    accelerator: Accelerator,
    model: nn.Module,
    batch: Batch,
    place: Place,
    *,
    weights: dict[str, float],
    accumulate: int = 1,
    wishes: Sequence[bool] = (),
) -> tuple[dict[str, float], list[bool]]:
    """The losses by name with their weighted sum "loss", and the wishes of all; leaves gradients.

    The losses are means over the processes, and a wish of one process is a wish of all, so that
    every process draws the same conclusions.

    Several parts give the gradient of the whole batch as far as the losses are means over images
    and nothing in them is random: not where they look at the batch as a whole (batch norm; features
    standardised over the batch; means over the sampled regions of Faster R-CNN, the positive cells
    of FCOS, the cells of padded images).

    Args:
        accelerator: device, precision and processes.
        model: gives a dict of losses; prepared by `accelerator`.
        batch: this process's images and targets.
        place: where the run stands.
        weights: weight of each loss by name.
        accumulate: parts of the batch.
        wishes: what this process would like to happen.

    Raises:
        NonFiniteLossError: a loss of any process is NaN or infinite; before any backward pass of
            that part.
    """
    reports = []
    for numbers, (images, targets) in parts(batch, accumulate):
        last = numbers.stop == len(batch[0])
        with nullcontext() if last else accelerator.no_sync(model):
            losses = model(images, targets)
            loss = total_loss(losses, weights)
            names, report = _agreed(accelerator, {"loss": loss} | losses, wishes)
            check_finite(dict(zip(names, report, strict=False)), place.step)
            accelerator.backward(loss / accumulate if accumulate > 1 else loss)
        reports.append(report)
    means = [sum(values) / len(reports) for values in zip(*reports, strict=True)]
    return dict(zip(names, means, strict=False)), [mean > 0 for mean in means[len(names) :]]


def _agreed(
    accelerator: Accelerator, losses: dict[str, Tensor], wishes: Sequence[bool]
) -> tuple[list[str], list[float]]:
    """Names of the losses; their values and, after them, the wishes, averaged over processes."""
    values = torch.stack([value.detach().float() for value in losses.values()])
    asked = torch.tensor([float(wish) for wish in wishes], device=values.device)
    return list(losses), accelerator.reduce(torch.cat([values, asked]), "mean").tolist()


def lay_out(
    detector: nn.Module, *, channels_last: bool = False, compiled: bool = False, **options: Any
) -> nn.Module:
    """The same detector, whose weights keep their names and values.

    Args:
        detector: a torchvision detector.
        channels_last: store the convolutions' weights channels-last.
        compiled: compile trunk and pyramid, which are most of the work. The heads stay as they are:
            their shapes change with every batch. Choice: the children of the backbone, so that the
            hooks on the backbone itself stay outside.
        options: passed on to torch.compile.
    """
    if channels_last:
        detector.to(memory_format=torch.channels_last)
    if compiled:
        for part in detector.backbone.children():
            part.compile(**options)
    return detector


def share_norms(detector: nn.Module, device: torch.device) -> nn.Module:
    """The same detector, its batch norms over all processes; their weights keep their names.

    Raises:
        ValueError: on a CPU, where torch has no such norm.
    """
    if device.type == "cpu":
        raise ValueError("engine.sync_norm=True: needs GPUs; set student.frozen_norm=True instead")
    return convert_sync_batchnorm(detector)  # in place: a detector is no norm itself
