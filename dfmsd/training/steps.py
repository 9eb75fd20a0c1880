"""One step of training: a batch forward and backward, whole or in parts, on one or many processes.

A loss that is not finite stops the run, and the batch that did it is kept.

Everything random is a function of counters (seed, stage, step and process), never of generator
state: a resumed run computes the very same losses as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from dfmsd.detectors.checkpoints import save_state

Batch = tuple[list[Tensor], list[dict[str, Any]]]


def step_seed(seed: int, stage: int, step: int, rank: int = 0) -> int:
    """The seed of everything random in one step: RPN and RoI sampling, drop-out, random masks."""
    return ((seed * 1_000_003 + stage * 7_919) * 1_000_003 + step * 1_009 + rank) % 2**63


@contextmanager
def peer_errors() -> Iterator[None]:
    """Context that raises ChildProcessError when another process, or a loader's, has ended."""
    again = "the same command continues from the last checkpoint"
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):  # between two batches; torch's own words
            raise ChildProcessError(f"a loader process was lost: {error}; {again}") from error
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not several or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        why = "another process of this run has ended, and says itself why"
        raise ChildProcessError(f"{why}; {again}") from error


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite; names the term, the step and every term's value."""


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum of the named losses; a name without weight counts once."""
    return sum(weights.get(name, 1.0) * value for name, value in losses.items())


def check_finite(values: dict[str, float], step: int) -> None:
    """NonFiniteLossError for losses by name if their weighted sum, "loss", is not finite."""
    if not math.isfinite(values["loss"]):
        bad = [key for key in values if key != "loss" and not math.isfinite(values[key])]
        raise NonFiniteLossError(
            f"step {step}: {', '.join(bad) or 'the weighted sum'} is not finite "
            f"({_listing(values)}); lower the learning rate or the weight of that term"
        )


def _listing(values: dict[str, float]) -> str:
    return ", ".join(f"{key} = {value:.4g}" for key, value in values.items() if key != "loss")


def check_gradients(model: nn.Module, values: dict[str, float], step: int) -> None:
    """NonFiniteLossError if a gradient of the step of these losses is NaN or infinite.

    The host waits for the device: ask only before a checkpoint, which must not keep such weights.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not math.isfinite(torch.nn.utils.get_total_norm(gradients)):
        raise NonFiniteLossError(
            f"step {step}: a gradient is not finite, although the losses are "
            f"({_listing(values)}); lower the learning rate"
        )


@contextmanager
def save_batch_on_error(
    folder: Path | None, batch: Any, *, rank: int, seed: int, stage: int, step: int
) -> Iterator[None]:
    """Context that writes `batch` to `nonfinite-STAGE-STEP-processRANK.pt` if a loss is not finite.

    The file, for `load_state` or `torch.load`, also holds "seed", "stage", "step", "rng" (the state
    of the CPU's generator at the beginning) and "error" (the message); the NonFiniteLossError from
    inside then names it. A `folder` of None keeps nothing; `batch` is made of tensors, numbers,
    text, lists and dicts of them.
    """
    state = {"batch": batch, "rng": torch.get_rng_state()}
    state |= {"seed": seed, "stage": stage, "step": step}
    try:
        yield
    except NonFiniteLossError as error:
        if folder is None:
            raise
        path = folder / f"nonfinite-{stage:02d}-{step:07d}-process{rank}.pt"
        kept = f"is kept in {path}"
        try:
            save_state(state | {"error": str(error)}, path)
        except (OSError, RuntimeError) as problem:
            kept = f"could not be kept ({problem})"
        raise NonFiniteLossError(f"{error}; its batch {kept}") from None


def parts(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch in `count` equal parts; ValueError when it cannot be divided so."""
    images, targets = batch
    size, rest = divmod(len(images), count)
    if rest:
        raise ValueError(f"accumulate={count}: {len(images)} images make no {count} equal parts")
    for first in range(0, len(images), size):
        yield images[first : first + size], targets[first : first + size]


def backward(
    accelerator: Accelerator,
    model: nn.Module,
    batch: Batch,
    step: int,
    *,
    weights: dict[str, float],
    accumulate: int = 1,
    flags: Sequence[bool] = (),
) -> tuple[dict[str, float], list[bool]]:
    """The losses by name with their weighted sum "loss", and the flags of all; leaves gradients.

    The losses are means over the processes, and a flag that one process raises is raised for all,
    so that every process draws the same conclusions. The gradient of several parts is that of the
    whole batch as far as the losses are means over images and nothing is random: not where they
    look at the batch as a whole (batch norm; features standardised over the batch; means over the
    sampled regions of Faster R-CNN, the positive cells of FCOS, the cells of padded images).

    Args:
        accelerator: device, precision and processes; it has prepared the model.
        model: gives a dict of losses.
        batch: this process's images and targets.
        step: number of the step, for the error's message.
        weights: of each loss by name; others count once.
        accumulate: parts of the batch.
        flags: what this process asks for.

    Raises NonFiniteLossError when a loss of any process and part is NaN or infinite; before the
    last backward pass, and so before any weight changes.
    """
    rows = []
    for number, (images, targets) in enumerate(parts(batch, accumulate), start=1):
        with nullcontext() if number == accumulate else accelerator.no_sync(model):
            losses = model(images, targets)
            loss = total_loss(losses, weights)
            names = ["loss", *losses]
            values = torch.stack([value.detach().float() for value in (loss, *losses.values())])
            asked = [values.new_full((1,), float(flag)) for flag in flags]  # made on the device
            rows.append(torch.cat([values, *asked]))
            if number == accumulate:  # the one time that the host waits for the device
                reports = accelerator.reduce(torch.stack(rows), "mean").tolist()
                for report in reports:
                    check_finite(dict(zip(names, report, strict=False)), step)
            accelerator.backward(loss / accumulate if accumulate > 1 else loss)
    means = [sum(parted) / accumulate for parted in zip(*reports, strict=True)]
    return dict(zip(names, means, strict=False)), [mean > 0 for mean in means[len(names) :]]


def compile_detector(detector: nn.Module, **options: Any) -> nn.Module:
    """The same detector with compiled trunk and pyramid; its weights keep their names and values.

    The heads stay as they are: their shapes change with every batch. Choice: the children of the
    backbone are compiled, so that the hooks on the backbone itself stay outside. `options` go to
    torch.compile.
    """
    for part in detector.backbone.children():
        part.compile(**options)
    return detector
