"""Sums over all processes, so that a batch spread over several counts as one batch.

With one process every function gives back what it got. With several each is a collective: all
processes must call it, in the same order. A loss that every process computes from these sums, and
whose gradients are averaged over the processes (as DistributedDataParallel does), has the value
and the gradient that one process would find with the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
