"""Reading `.pth` files without running them, and one clear line on tensors that do not fit."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile)


class CheckpointError(ValueError):
    """A file that cannot be read, or whose tensors do not fit the model."""


class Ignored:
    """Stands for an object of a file that is of no use here; it keeps nothing and runs nothing."""

    def __new__(cls, *_arguments: Any) -> Ignored:
        """Return a new one, whatever the file would have built it from."""
        return object.__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        """Take whatever the file would have built it from."""

    def __setstate__(self, _state: Any) -> None:
        """Take whatever state the file holds."""


def load_state(path: str | os.PathLike[str], *, ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the dict in a `torch.save` file, on the CPU; nothing of the file is run.

    Args:
        path: the file.
        ignored: dotted names of classes and functions whose objects come back as `Ignored`; any
            other that is not plain data is refused.

    Raises:
        CheckpointError: the file is absent, cut short, asks for code, or holds no dict.
    """
    try:
        _check_sums(path)
        with torch.serialization.safe_globals([(Ignored, name) for name in ignored]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (RuntimeError, OSError, EOFError, ValueError, *_UNREADABLE) as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if wanted:
            reason = f"it asks for {wanted[1]}; only tensors, numbers and text are taken"
        raise CheckpointError(f"{path}: not a readable state ({reason})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dict, found {type(state).__name__}")
    return state


def _check_sums(path: str | os.PathLike[str]) -> None:
    """Raise ValueError when a part of the file is damaged, which `torch.load` does not look at."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")


def mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return one line on how two state dicts differ in keys and shapes, None when they agree."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} (expected {tuple(value.shape)}, found {tuple(found[key].shape)})"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    parts = [f"{len(g)} {name}: {', '.join(g[:3])}" for name, g in groups.items() if g]
    return "; ".join(parts) or None
