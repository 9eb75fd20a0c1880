"""Losses that are not finite: the run stops, and the batch that did it is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from dfmsd.detectors.checkpoints import save_state


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite; names the term, the step and every term's value.

    Args:
        message: the words.
        losses: term → value, with their weighted sum as "loss".
    """

    def __init__(self, message: str, losses: dict[str, float] | None = None) -> None:
        """See the class."""
        super().__init__(message)
        self.losses = losses or {}


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum of the named losses; a name without weight counts once."""
    return sum(weights.get(name, 1.0) * value for name, value in losses.items())


def check_finite(values: dict[str, float], step: int) -> None:
    """None; `values` are the losses of a step by name and, as "loss", their weighted sum.

    Raises:
        NonFiniteLossError: when the sum is not finite; the message names the term.
    """
    if math.isfinite(values["loss"]):
        return
    terms = {name: value for name, value in values.items() if name != "loss"}
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    shown = ", ".join(f"{name} = {value:.4g}" for name, value in terms.items())
    raise NonFiniteLossError(
        f"step {step}: {', '.join(bad) or 'the weighted sum'} is not finite ({shown}); "
        "lower the learning rate or the weight of that term",
        values,
    )


@contextmanager
def evidence(path: Path | None, **facts: Any) -> Iterator[None]:
    """Context that keeps `facts` in file `path` when a loss in it is not finite.

    Beside them the file holds "error", the message, and "losses", term → value. `load_state` and
    `torch.load` read it.

    Args:
        path: the file; None keeps nothing.
        facts: tensors, numbers, text, lists and dicts of them.

    Raises:
        NonFiniteLossError: the one from inside, which now names the file.
    """
    try:
        yield
    except NonFiniteLossError as error:
        if path is None:
            raise
        try:
            save_state(_on_cpu(facts | {"error": str(error), "losses": error.losses}), path)
        except (OSError, RuntimeError) as problem:
            reason = f"{error}; its batch could not be kept ({problem})"
        else:
            reason = f"{error}; its batch is kept in {path}"
        raise NonFiniteLossError(reason, error.losses) from None


def _on_cpu(value: Any) -> Any:
    """The same with every tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_on_cpu(item) for item in value]
    return value
