"""Weights (safetensors) and training states (`torch.save`): atomic writing, safe reading."""

from __future__ import annotations

import io
import json
import os
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dfmsd.detectors.errors import CheckpointError, PathLike, one_line_errors
from dfmsd.detectors.wrappers import flatten, sample, select

_METADATA = "dfmsd"  # the one safetensors metadata key, holding JSON
_LONGEST = 10**6  # characters of it
_STATISTICS = ("running_mean", "running_var")


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


def _names(path: PathLike) -> list[str]:
    """Dotted names of all that a `torch.save` file asks for; ValueError when it is damaged.

    `torch.load` looks neither at the sums nor at what an archive unpacks to (torch packs nothing).
    """
    with open(path, "rb") as file:
        pickles: list[BinaryIO] = [file] * 4  # before torch 1.6 a file was several in a row
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                    raise ValueError("it unpacks to more than its size")
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
                parts = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                pickles = [io.BytesIO(archive.read(name)) for name in parts]
        codes = (code for part in pickles for code in pickletools.genops(part))
        pairs = {tuple(text.split(" ", 1)) for code, text, _ in codes if code.name == "GLOBAL"}
    # protocol 2 says what Python 2 called them
    new = (
        NAME_MAPPING.get(pair, (IMPORT_MAPPING.get(pair[0], pair[0]), pair[1])) for pair in pairs
    )
    return [".".join(pair) for pair in new]


def load_state(path: PathLike, *, inert: bool = False) -> dict[str, Any]:
    """The dict in a `torch.save` file, on the CPU; nothing of the file is run.

    With `inert` an object of any class comes back as a `Placeholder`, else it is refused. Raises
    CheckpointError when the file is absent, damaged, asks for code, or holds no dict.
    """
    with one_line_errors(path, "not a readable state"):
        names = _names(path)
        if "builtins.bytearray" in names:  # torch would make one of any length
            raise CheckpointError("it asks for bytearray; only tensors, numbers and text are taken")
        stand_ins = torch.serialization.safe_globals([(Placeholder, n) for n in names if inert])
        with stand_ins, warnings.catch_warnings(action="ignore"):  # torch's, of odd protocols
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            kinds = {Placeholder: "an object (a whole model?)"}
            found = kinds.get(type(state), type(state).__name__)
            raise CheckpointError(f"expected a dict, found {found}; save model.state_dict()")
    return state


def is_safetensors(path: PathLike) -> bool:
    """Whether a file says, or its first bytes do, that it is one of safetensors."""
    if Path(path).suffix == ".safetensors":
        return True
    with one_line_errors(path, "not readable"), open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read_content(path: PathLike) -> dict[str, Any]:
    """All that a safetensors or `torch.save` file holds, on the CPU; see `load_state`.

    Raises CheckpointError, also when its tensors overlap: they would take more than the file.
    """
    if not is_safetensors(path):
        content = load_state(path, inert=True)
    else:
        with one_line_errors(path, "not a readable safetensors file"):
            content = safetensors.torch.load_file(path)
    with one_line_errors(path, "not a readable state"):
        tensors = [value for value in flatten(content).values() if value is not None]
        if sum(tensor.nbytes for tensor in tensors) > 4 * os.path.getsize(path):
            raise CheckpointError("its tensors overlap")
    return content


def read_tensors(path: PathLike) -> dict[str, Tensor]:
    """Dotted name → tensor of all that `read_content` gives."""
    return {name: value for name, value in flatten(read_content(path)).items() if value is not None}


def read_selected(
    path: PathLike, wanted: Callable[[str], bool], *, prefix: str = ""
) -> tuple[dict[str, Tensor], str]:
    """The `wanted` tensors of a file, and a line on the rest; see `read_content` and `select`."""
    content = read_content(path)
    with one_line_errors(path, "not a readable state"):
        return select(flatten(content), wanted, prefix)


def read_metadata(path: PathLike) -> dict[str, Any]:
    """The metadata given to `save_weights`; {} for a `.pth` or a file of other origin."""
    if not is_safetensors(path):
        return {}
    with one_line_errors(path, "no readable metadata"), safetensors.safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(_METADATA, "{}")
        if len(text) > _LONGEST:
            raise CheckpointError(f"metadata of more than {_LONGEST} characters")
        if not isinstance(metadata := json.loads(text), dict):
            raise CheckpointError(f"metadata: expected a dict, found {type(metadata).__name__}")
        return metadata


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
    """One line on how two state dicts differ in keys, shapes and types; None when they agree."""
    groups = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [key for key in given if key not in expected],
        "of another shape": [
            f"{key} (expected {tuple(value.shape)}, found {tuple(given[key].shape)})"
            for key, value in expected.items()
            if key in given and given[key].shape != value.shape
        ],
        "without a fraction": [  # counts and quantised values are no weights
            f"{key} ({given[key].dtype})"
            for key, value in expected.items()
            if key in given and value.is_floating_point() > given[key].is_floating_point()
        ],
    }
    parts = [
        f"{len(keys)} {name}: {sample(keys, count=3)}" for name, keys in groups.items() if keys
    ]
    return "; ".join(parts) or None


def refuse_difference(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless `tensors` are a whole state dict of `model`."""
    if difference := state_dict_diff(model.state_dict(), tensors):
        raise CheckpointError(f"does not fit {type(model).__name__}: {difference}")


def refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for the first of `tensors` that holds a NaN or an infinity."""
    for name, value in tensors.items():
        if value.is_floating_point() and not (finite := torch.isfinite(value)).all():
            count = int((~finite).sum())
            raise CheckpointError(f"{name}: {count} of {value.numel()} numbers are not finite")


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], origin: PathLike) -> None:
    """Load all `tensors` of `origin` into `model`.

    Raises CheckpointError before touching the model: they do not fit, or are not finite.
    """
    with one_line_errors(origin, "does not fit"):
        refuse_difference(model, tensors)
        refuse_non_finite(tensors)
        model.load_state_dict(tensors, strict=True)


def load_weights(model: nn.Module, path: PathLike) -> dict[str, Any]:
    """The file's metadata, its tensors loaded into `model` as by `read_tensors`, `load_tensors`."""
    load_tensors(model, read_selected(path, model.state_dict().__contains__)[0], path)
    return read_metadata(path)
