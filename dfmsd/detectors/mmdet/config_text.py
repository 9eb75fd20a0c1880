"""The config that mmdetection stores in a checkpoint as Python text: read, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Any

# settings that no shape shows, with the values that are supported
_BACKBONE = {"conv_cfg": None, "qk_scale": None, "dilations": [1, 1, 1, 1]}
_LONGEST, _MOST, _DEEPEST = 10**6, 100_000, 50  # characters, values, values inside values
_NECK = {"conv_cfg": None, "act_cfg": None, "end_level": -1, "upsample_cfg": {"mode": "nearest"}}


def read_config(text: str) -> dict[str, Any]:
    """Name → value of the assignments in `text`, {} when it is no whole config.

    Literals, `dict(...)` and assigned names are understood; any other value is None. A text with
    `_base_`, or with a name assigned twice, is a part of a config: its rest is not there. Nor is
    one read that is nested deeper than 50, or above 100,000 values with all names written out.
    """
    known: dict[str, ast.expr] = {}
    try:
        for statement in ast.parse(text[: _LONGEST + 1]).body:
            match statement:
                case ast.Assign([ast.Name(name), *_], value):
                    if name in ("_base_", *known):
                        return {}
                    known[name] = value
        config = _Config(known)
        return {name: config.value(node) for name, node in known.items()}
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # also of Python's own parser
        return {}


class _Config:
    """The values of expressions; ValueError beyond the limits, as names may hold names."""

    def __init__(self, known: dict[str, ast.expr]) -> None:
        self.known, self.count = known, 0

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """The value of `node`, which stands inside `depth` others."""
        self.count += 1
        if self.count > _MOST or depth > _DEEPEST:
            raise ValueError("a config that is too large or too deep")
        match node:
            case ast.Name(name):
                return self.value(self.known[name], depth + 1) if name in self.known else None
            case ast.List(items) | ast.Tuple(items):
                return [self.value(item, depth + 1) for item in items]
            case ast.Dict(keys, values):
                names = [key and self.value(key, depth + 1) for key in keys]
                return self._merged(zip(names, values, strict=True), depth + 1)
            case ast.Call(ast.Name("dict"), _, words):
                return self._merged(((word.arg, word.value) for word in words), depth + 1)
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            return None

    def _merged(self, pairs: Iterable[tuple[Any, ast.expr]], depth: int) -> dict[str, Any]:
        """The dict of `pairs`; a value under None is a dict that was put in with `**`."""
        merged: dict[str, Any] = {}
        for key, node in pairs:
            value = self.value(node, depth)
            if isinstance(key, str):
                merged[key] = value
            elif key is None and isinstance(value, dict):
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
    # mmdetection's defaults: 3 keeps BGR, 2 turns to RGB
    rgb = norm.get(turns, turns == "to_rgb")
    return {"mean": norm["mean"], "std": norm["std"], "order": "rgb" if rgb else "bgr"}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What `config` says of what shapes cannot tell; only keys that it settles.

    Keys: `style` ("pytorch", "caffe"), `source` of the first extra level ("input", "output"),
    `relu` before the later ones, `levels` of the pyramid, `mean`, `std` and `order`
    ("rgb", "bgr") of the pixels in 0..255, and `other`, what changes the features unseen.
    """
    model = config.get("model") if isinstance(config.get("model"), dict) else {}
    backbone, neck = (model.get(part) for part in ("backbone", "neck"))
    if not isinstance(backbone, dict) or not isinstance(neck, dict):
        return {}
    other = [
        f"{part}.{key}={values[key]}"
        for part, values, usual in (("backbone", backbone, _BACKBONE), ("neck", neck, _NECK))
        for key in usual
        if values.get(key, usual[key]) != usual[key]
    ]
    convs = neck.get("add_extra_convs", False)
    if convs == "on_lateral":
        other.append("neck.add_extra_convs=on_lateral")
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
