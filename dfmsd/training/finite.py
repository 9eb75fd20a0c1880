"""Losses that are not finite: the run stops, and the batch that did it is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfmsd.detectors.checkpoints import save_state


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite; names the term, the step and every term's value."""


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum of the named losses; a name without weight counts once."""
    return sum(weights.get(name, 1.0) * value for name, value in losses.items())


def check_finite(values: dict[str, float], step: int) -> None:
    """NonFiniteLossError for losses by name if their weighted sum, "loss", is not finite."""
    if not math.isfinite(values["loss"]):
        terms = {name: value for name, value in values.items() if name != "loss"}
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        listing = ", ".join(f"{name} = {value:.4g}" for name, value in terms.items())
        raise NonFiniteLossError(
            f"step {step}: {', '.join(bad) or 'the weighted sum'} is not finite ({listing}); "
            "lower the learning rate or the weight of that term"
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
