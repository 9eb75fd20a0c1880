"""Sums over all processes, so that a batch spread over several counts as one batch.

With one process every function gives back what it got. With several each is a collective: all
processes must call it, in the same order. A loss that every process computes from these sums, and
whose gradients are averaged over the processes (as DistributedDataParallel does), has the value
and the gradient that one process would find with the whole batch.

torchvision's losses of RetinaNet and of the RPN are means over images and need nothing; but Faster
R-CNN divides by the number of regions it sampled and FCOS by the number of positive cells, and
these differ from process to process: see `counting` and `whole_batch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.roi_heads import RoIHeads

REGIONS = ("loss_classifier", "loss_box_reg")


def processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def nobody_lost() -> Iterator[None]:
    """Context in which the end of another process is told in plain words.

    Raises:
        ChildProcessError: another process has ended while this one needed it.
    """
    try:
        yield
    except RuntimeError as error:
        if processes() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ChildProcessError(
            "another process of this run has ended, and says itself why; the same command "
            "continues from the last checkpoint"
        ) from error


class _Sum(torch.autograd.Function):
    """The sum over the processes, and of its gradients: each process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """See the class."""
        summed = value.contiguous().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """See the class."""
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed


def total(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, with its gradient."""
    return value if processes() == 1 else _Sum.apply(value)


def average(count: Tensor) -> Tensor:
    """The mean of a count over all processes, without gradient.

    A sum over one process's elements, divided by the average count, is a mean over the whole batch
    once the processes' results are averaged.
    """
    return count if processes() == 1 else _Sum.apply(count.detach().float()) / processes()


@contextmanager
def counting(detector: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Context that fills a dict, loss → how many regions or cells this process divided it by.

    Args:
        detector: a torchvision detector, which runs once in the context.
    """
    counts: dict[str, Tensor] = {}
    heads = getattr(detector, "roi_heads", None)
    if isinstance(heads, RoIHeads):

        def regions(_module: nn.Module, _inputs: tuple, output: tuple) -> None:
            count = output[0].new_tensor(float(len(output[0])))
            counts.update(dict.fromkeys(REGIONS, count))

        hook = heads.box_predictor.register_forward_hook(regions)
        try:
            yield counts
        finally:
            hook.remove()
    elif isinstance(detector, FCOS):
        compute = detector.head.compute_loss

        def cells(targets: Any, outputs: Any, anchors: Any, matched: list[Tensor]) -> Any:
            count = torch.stack([(match >= 0).sum() for match in matched]).sum().float()
            losses = compute(targets, outputs, anchors, matched)
            counts.update(dict.fromkeys(losses, count))
            return losses

        detector.head.compute_loss = cells
        try:
            yield counts
        finally:
            del detector.head.compute_loss  # the class's own shows again
    else:
        yield counts


def whole_batch(losses: dict[str, Tensor], counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses as if divided by the counts of the whole batch, once averaged over processes.

    Choice: what one process would compute; plain data-parallel training (torchvision's) takes the
    mean of the processes' means.
    """
    if processes() == 1:
        return losses
    scaled = dict(losses)
    for name, count in counts.items():  # torchvision divides by at least 1
        scaled[name] = losses[name] * count.clamp_min(1) / average(count).clamp_min(1 / processes())
    return scaled
