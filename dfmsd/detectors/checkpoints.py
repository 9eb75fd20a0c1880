"""Weights (safetensors) and training states (`torch.save`): atomic writing, safe reading."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

PathLike = str | os.PathLike[str]
_METADATA = "dfmsd"  # the one safetensors metadata key, holding JSON
_STATISTICS = ("running_mean", "running_var")
_TORCH_SAVE = (".pth", ".pt", ".bin", ".tar")
_UNREADABLE = (RuntimeError, OSError, EOFError, ValueError)
_UNREADABLE += (pickle.UnpicklingError, zipfile.BadZipFile, safetensors.SafetensorError)


class CheckpointError(ValueError):
    """A file that cannot be read, or whose tensors do not fit the model."""


@contextmanager
def one_line_errors(path: PathLike, failure: str) -> Iterator[None]:
    """Context in which an error is a CheckpointError of one line, "`path`: `failure` (reason)"."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except _UNREADABLE as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if code:
            reason = f"it asks for {code[1]}; only tensors, numbers and text are taken"
        raise CheckpointError(f"{path}: {failure} ({reason})") from error


@contextmanager
def named(path: PathLike) -> Iterator[None]:
    """Context in which an error of the system that names no file (disk full) names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def atomic_file(path: PathLike) -> Iterator[BinaryIO]:
    """Context with a binary handle whose content replaces file `path` at the end, on the disk.

    An error leaves the old file as it was. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(path), temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: PathLike, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`: the old or the new content, never a part."""
    with atomic_file(path) as handle:
        handle.write(content.encode() if isinstance(content, str) else content)


def save_state(state: Mapping[str, Any], path: PathLike) -> None:
    """Write a training state (tensors, numbers, text, lists, dicts) to `path`, atomically."""
    with atomic_file(path) as handle:
        try:
            torch.save(dict(state), handle)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides "no space left on device"
                raise error.__context__ from None
            raise


class Placeholder:
    """Stands for an object of a file that is of no use here; it keeps and runs nothing."""

    def __new__(cls, *_arguments: Any) -> Placeholder:
        """A new one, whatever the file would have built it from."""
        return object.__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        """Take whatever state the file holds."""


def load_state(path: PathLike, *, ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    """The dict in a `torch.save` file, on the CPU; nothing of the file is run.

    `ignored` are dotted names of classes and functions whose objects come back as `Placeholder`;
    any other that is not plain data is refused. Raises CheckpointError when the file is absent, cut
    short, asks for code, or holds no dict.
    """
    with one_line_errors(path, "not a readable state"):
        if zipfile.is_zipfile(path):  # `torch.load` does not look at the sums
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
        with torch.serialization.safe_globals([(Placeholder, name) for name in ignored]):
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise CheckpointError(f"expected a dict, found {type(state).__name__}")
    return state


def unwrap_state_dict(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in {"state_dict": ...}, {"model": ...} or `state` itself, or CheckpointError."""
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state.get(key), dict) else state
    foreign = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(f"expected tensors only, found other values {foreign[:3]}")
    return dict(state)


def read_tensors(path: PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors or `torch.save` file (`.pth`), on the CPU; see `load_state`."""
    if Path(path).suffix not in _TORCH_SAVE:
        with one_line_errors(path, "not a readable safetensors file"):
            return safetensors.torch.load_file(path)
    state = load_state(path)
    with one_line_errors(path, "not a readable state"):
        return unwrap_state_dict(state)


def read_metadata(path: PathLike) -> dict[str, Any]:
    """The metadata given to `save_weights`; {} for a `.pth` or a file of other origin."""
    if Path(path).suffix in _TORCH_SAVE:
        return {}
    with one_line_errors(path, "no readable metadata"), safetensors.safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get(_METADATA, "{}"))


def save_weights(
    model: nn.Module, path: PathLike, metadata: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write the state dict of `model` to safetensors file `path`, atomically.

    `metadata` is what JSON can hold, for `read_metadata`. `half` stores float32 tensors as float16,
    running statistics excepted: their variances span more than fp16 does. Loading gives float32
    again. Raises ValueError for other metadata, or values too big for `half`.
    """
    try:
        text = json.dumps(dict(metadata))
    except TypeError as error:
        raise ValueError(f"metadata: expected JSON values, {error}") from error
    tensors = {}
    for key, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        shrink = half and value.dtype == torch.float32 and not key.endswith(_STATISTICS)
        if shrink and value.numel() and value.abs().max() > torch.finfo(torch.float16).max:
            raise ValueError(f"half=True: {key} holds values beyond fp16, expected at most 65504")
        tensors[key] = value.half() if shrink else value.clone()  # tied tensors are stored twice
    write_atomic(path, safetensors.torch.save(tensors, {"format": "pt", _METADATA: text}))


def state_dict_diff(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """One line on how two state dicts differ in keys and shapes, None when they agree."""
    groups = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [key for key in given if key not in expected],
        "of another shape": [
            f"{key} (expected {tuple(value.shape)}, found {tuple(given[key].shape)})"
            for key, value in expected.items()
            if key in given and given[key].shape != value.shape
        ],
    }
    parts = [f"{len(keys)} {name}: {', '.join(keys[:3])}" for name, keys in groups.items() if keys]
    return "; ".join(parts) or None


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], origin: PathLike) -> None:
    """Load all `tensors` of `origin` into `model`, or raise CheckpointError before touching it."""
    difference = state_dict_diff(model.state_dict(), tensors)
    if difference:
        raise CheckpointError(f"{origin}: does not fit {type(model).__name__}: {difference}")
    model.load_state_dict(tensors, strict=True)


def load_weights(model: nn.Module, path: PathLike) -> dict[str, Any]:
    """The file's metadata, its tensors loaded into `model` as by `read_tensors`, `load_tensors`."""
    tensors, metadata = read_tensors(path), read_metadata(path)
    load_tensors(model, tensors, path)
    return metadata
