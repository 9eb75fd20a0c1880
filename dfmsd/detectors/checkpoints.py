"""Weights (safetensors) and training states (`torch.save`): atomic writing, safe reading."""

from __future__ import annotations

import io
import json
import os
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dfmsd.detectors.files import CheckpointError, PathLike, one_line_errors, sample, write_atomic

_METADATA, _LONGEST = "dfmsd", 10**6  # the one metadata key, holding JSON, and its characters
_MOST, _LONGEST_NAME, _DEEPEST = 100_000, 400, 16  # values of a file, characters and parts
_STATISTICS = ("running_mean", "running_var")


def save_state(state: Mapping[str, Any], path: PathLike) -> None:
    """Write a training state (tensors, numbers, text, lists, dicts) to `path`, atomically."""
    content = io.BytesIO()  # torch hides that a disk is full when it writes the file itself
    torch.save(dict(state), content)
    write_atomic(path, content.getbuffer())


class Placeholder:
    """Stands for an object of a file that is of no use here; it keeps and runs nothing."""

    def __init__(self, *_arguments: Any) -> None:
        """Whatever the file would have built it from."""

    def __setstate__(self, _state: Any) -> None:
        """Whatever state the file holds."""


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
    return [".".join(NAME_MAPPING.get((a, b), (IMPORT_MAPPING.get(a, a), b))) for a, b in pairs]


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
            found = type(state).__name__.replace("Placeholder", "an object (a whole model?)")
            raise CheckpointError(f"expected a dict, found {found}; save model.state_dict()")
    return state


def is_safetensors(path: PathLike) -> bool:
    """Whether a file says, or its first bytes do, that it is one of safetensors."""
    if Path(path).suffix == ".safetensors":
        return True
    with one_line_errors(path, "not readable"), open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name → tensor, or anything else but a dict, of nested dicts.

    Raises CheckpointError for more than 100,000 values or a name of more than 400 characters.
    """
    found: dict[str, Any] = {}
    pending = [(str(name), value) for name, value in content.items()]
    for name, value in pending:  # it grows on the way
        if len(name) > _LONGEST_NAME:
            raise CheckpointError(f"a name of more than {_LONGEST_NAME} characters: {name[:40]}…")
        if len(pending) > _MOST:
            raise CheckpointError(f"more than {_MOST} values")
        if isinstance(value, dict):
            pending += [(f"{name}.{k}", v) for k, v in value.items() if isinstance(k, str | int)]
        else:
            found[name] = value
    return found


def select(
    values: Mapping[str, Any], wanted: Callable[[str], bool], prefix: str = ""
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a model without the wrappers before their names, and a line on the rest.

    Choice: the wrapper ("state_dict.", "model.module.", "_orig_mod.", any other) stands before most
    of the names that are `wanted`; of equals a running average of the weights (EMA) comes last.
    `prefix` admits only names that begin so, or raises CheckpointError when none is wanted. The
    line is empty when all were taken as they are.
    """
    counts = Counter(
        ".".join([*parts[:number], ""])
        for parts in (name.split(".") for name in values if name.startswith(prefix))
        for number in range(min(len(parts), _DEEPEST))
        if wanted(".".join(parts[number:]))
    )
    if prefix and not counts:
        raise CheckpointError(f"prefix {prefix}: nothing wanted there, found {sample(values)}")
    most = max(counts.values(), default=0)
    best = [name for name in counts if counts[name] == most] or [""]
    before = min(best, key=lambda name: "ema" in name.lower())
    taken = {n: v for n, v in values.items() if isinstance(v, Tensor) and n.startswith(before)}
    left = {n.removeprefix(before).split(".")[0]: None for n in values if n not in taken}
    said = {"taken from": [before.rstrip(".")] if before else [], "left out": left}
    said["as complete is"] = [n.rstrip(".") for n in best if not n.startswith(before)][:1]
    line = "; ".join(f"{word} {sample(names)}" for word, names in said.items() if names)
    return {name.removeprefix(before): value for name, value in taken.items()}, line


def read_content(path: PathLike) -> dict[str, Any]:
    """What `flatten` gives of a safetensors or `torch.save` file, on the CPU; see `load_state`.

    Raises CheckpointError, also when its tensors overlap: they would take more than the file.
    """
    of_safetensors = is_safetensors(path)
    with one_line_errors(
        path, f"not a readable {'safetensors file' if of_safetensors else 'state'}"
    ):
        load = safetensors.torch.load_file if of_safetensors else partial(load_state, inert=True)
        values = flatten(load(path))
        size = sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
        if size > 4 * os.path.getsize(path):
            raise CheckpointError("its tensors overlap")
    return values


def read_tensors(path: PathLike) -> dict[str, Tensor]:
    """Dotted name → tensor of all tensors that `read_content` gives."""
    return {name: v for name, v in read_content(path).items() if isinstance(v, Tensor)}


def read_selected(
    path: PathLike, wanted: Callable[[str], bool], *, prefix: str = ""
) -> tuple[dict[str, Tensor], str]:
    """The `wanted` tensors of a file, and a line on the rest; see `read_content` and `select`."""
    with one_line_errors(path, "not a readable state"):
        return select(read_content(path), wanted, prefix)


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
        if shrink and (value.abs() > torch.finfo(torch.float16).max).any():
            raise ValueError(f"half=True: {key} holds values beyond fp16, expected at most 65504")
        tensors[key] = value.half() if shrink else value.clone()  # tied tensors are stored twice
    write_atomic(path, safetensors.torch.save(tensors, {"format": "pt", _METADATA: text}))


def state_dict_diff(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """One line on how two state dicts differ in keys, shapes and types; None when they agree."""
    both = [(key, value, given[key]) for key, value in expected.items() if key in given]
    groups = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [key for key in given if key not in expected],
        "of another shape": [
            f"{key} (expected {tuple(value.shape)}, found {tuple(other.shape)})"
            for key, value, other in both
            if other.shape != value.shape
        ],
        "without a fraction": [  # counts and quantised values are no weights
            f"{key} ({other.dtype})"
            for key, value, other in both
            if value.is_floating_point() > other.is_floating_point()
        ],
    }
    parts = (
        f"{len(keys)} {name}: {sample(keys, count=3)}" for name, keys in groups.items() if keys
    )
    return "; ".join(parts) or None


def refuse_difference(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless `tensors` are a whole state dict of `model`."""
    if difference := state_dict_diff(model.state_dict(), tensors):
        raise CheckpointError(f"does not fit {type(model).__name__}: {difference}")


def refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for the first of `tensors` that holds a NaN or an infinity."""
    for name, value in tensors.items():
        if count := int((~torch.isfinite(value)).sum()):
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
