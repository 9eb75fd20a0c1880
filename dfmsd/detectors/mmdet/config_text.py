"""The config that mmdetection stores in a checkpoint as Python text: read, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

_LONGEST, _MOST = 10**6, 100_000  # characters, values
_SUPPORTED: dict[str, dict[str, list]] = {  # of settings that no shape shows; the default first
    "backbone": {"conv_cfg": [None], "qk_scale": [None], "dilations": [[1, 1, 1, 1]]},
    "neck": {
        **{"conv_cfg": [None], "act_cfg": [None], "end_level": [-1]},
        "upsample_cfg": [{"mode": "nearest"}],
        "add_extra_convs": [False, True, None, "on_input", "on_output"],
    },
}


def read_config(text: str) -> dict[str, Any]:
    """Name → value of the assignments in `text`, {} when it is no whole config.

    Literals, `dict(...)` and assigned names are understood; any other value is None. A text with
    `_base_`, or with a name assigned twice, is a part of a config: its rest is not there. Nor is
    one read that is too deep for Python, or above 100,000 values with all names written out.
    """
    known: dict[str, ast.expr] = {}
    try:
        for statement in ast.parse(text[: _LONGEST + 1]).body:
            match statement:
                case ast.Assign([ast.Name(name), *_], value):
                    if name in ("_base_", *known):
                        return {}
                    known[name] = value
        visits = count()
        return {name: _value(node, known, visits) for name, node in known.items()}
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # also of Python's own parser
        return {}


def _value(node: ast.expr, known: dict[str, ast.expr], visits: Iterator[int]) -> Any:
    """The value of `node`; ValueError after too many `visits`, as names may hold names."""
    if next(visits) > _MOST:
        raise ValueError("a config that is too large")
    read = partial(_value, known=known, visits=visits)
    match node:
        case ast.Name(name):
            return read(known[name]) if name in known else None
        case ast.List(items) | ast.Tuple(items):
            return [read(item) for item in items]
        case ast.Dict(nodes, values):
            keys = [key and read(key) for key in nodes]
        case ast.Call(ast.Name("dict"), _, words):
            keys, values = [word.arg for word in words], [word.value for word in words]
        case _:
            try:
                return ast.literal_eval(node)
            except (ValueError, TypeError):
                return None
    merged: dict[str, Any] = {}
    for key, value in zip(keys, map(read, values), strict=True):
        if isinstance(key, str):
            merged[key] = value
        elif key is None and isinstance(value, dict):  # put in with `**`
            merged |= value
    return merged


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """All dicts in a nested value, outer ones first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _dicts(item)


def _pixels(config: dict[str, Any]) -> dict[str, Any]:
    """Mean, std and order of the pixels; mmdetection 3 says them in the model, 2 in the data."""
    norm, turns = config["model"].get("data_preprocessor"), "bgr_to_rgb"
    if not isinstance(norm, dict) or "mean" not in norm:
        norm = next((step for step in _dicts(config) if step.get("type") == "Normalize"), {})
        turns = "to_rgb"
    if not norm.get("mean") or not norm.get("std"):
        return {}
    rgb = norm.get(turns, turns == "to_rgb")  # mmdetection's defaults: 3 keeps BGR, 2 turns to RGB
    return {"mean": norm["mean"], "std": norm["std"], "order": "rgb" if rgb else "bgr"}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What `config` says of what shapes cannot tell; only keys that it settles.

    Keys: `style` ("pytorch", "caffe"), `source` of the first extra level ("input", "output"),
    `relu` before the later ones, `levels` of the pyramid, `mean`, `std` and `order`
    ("rgb", "bgr") of the pixels in 0..255, and `other`, what changes the features unseen.
    """
    match config:
        case {"model": {"backbone": dict(backbone), "neck": dict(neck)} as model}:
            pass
        case _:
            return {}
    other = [
        f"{part}.{key}={model[part][key]}"
        for part, rules in _SUPPORTED.items()
        for key, known in rules.items()
        if model[part].get(key, known[0]) not in known
    ]
    convs = neck.get("add_extra_convs")
    if convs is True:  # before mmdetection 2.8 a second word said which
        convs = "on_input" if neck.get("extra_convs_on_inputs", True) else "on_output"
    said = {
        "style": backbone.get("style", "pytorch"),
        "source": convs.removeprefix("on_") if isinstance(convs, str) else None,
        "relu": neck.get("relu_before_extra_convs", False),
        "levels": neck.get("num_outs"),
        "other": other,
    }
    return {key: value for key, value in (said | _pixels(config)).items() if value is not None}
