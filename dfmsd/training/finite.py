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
    """Refuse the losses of a step, by name and, as "loss", their weighted sum.

    Raises:
        NonFiniteLossError: the sum is not finite; the message names the term.
    """
    if math.isfinite(values["loss"]):
        return
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

    Beside it the file holds "seed", "stage", "step", "rng" (the state of the CPU's generator at the
    beginning) and "error" (the message); `load_state` and `torch.load` read it. A `folder` of None
    keeps nothing; `batch` is made of tensors, numbers, text, lists and dicts of them.

    Raises:
        NonFiniteLossError: the one from inside, which now names the file.
    """
    rng = torch.get_rng_state()
    try:
        yield
    except NonFiniteLossError as error:
        if folder is None:
            raise
        path = folder / f"nonfinite-{stage:02d}-{step:07d}-process{rank}.pt"
        state = {"batch": batch, "rng": rng, "seed": seed, "stage": stage, "step": step}
        try:
            save_state(state | {"error": str(error)}, path)
        except (OSError, RuntimeError) as problem:
            raise NonFiniteLossError(f"{error}; its batch could not be kept ({problem})") from None
        raise NonFiniteLossError(f"{error}; its batch is kept in {path}") from None
