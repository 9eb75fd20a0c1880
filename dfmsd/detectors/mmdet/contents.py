"""What an mmdetection checkpoint says: its config (Python text, never run), shapes and names."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from math import isqrt
from typing import Any

from torch import Size, Tensor

from dfmsd.detectors.files import CheckpointError

State = Mapping[str, Tensor]
_RENAMED = {
    "backbone.layers.": "backbone.stages.",
    "patch_embed.proj.": "patch_embed.projection.",
    ".attn.": ".attn.w_msa.",
    ".mlp.fc1.": ".ffn.layers.0.0.",
    ".mlp.fc2.": ".ffn.layers.1.",
    ".mlp.0.": ".ffn.layers.0.0.",
    ".mlp.3.": ".ffn.layers.1.",
}
"""Names in Swin's own repository (a fork of mmdetection 2), or in torchvision → mmdetection's."""
_LONGEST, _MOST = 10**6, 100_000  # characters, values
_SUPPORTED: dict[tuple[str, str], list] = {  # of settings that no shape shows; the default first
    **{("backbone", name): [None] for name in ("conv_cfg", "qk_scale")},
    **{("neck", name): [None] for name in ("conv_cfg", "act_cfg")},
    ("backbone", "dilations"): [[1, 1, 1, 1]],
    ("neck", "end_level"): [-1],
    ("neck", "upsample_cfg"): [{"mode": "nearest"}],
    ("neck", "add_extra_convs"): [False, True, None, "on_input", "on_output"],
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
        for (part, key), known in _SUPPORTED.items()
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


def mmdet_name(key: str) -> str:
    """The name in mmdetection of a tensor of Swin's own repository."""
    for old, new in _RENAMED.items() if key.startswith("backbone.") else ():
        key = key.replace(old, new, 1)
    return key


def _shape(state: State, key: str) -> Size:
    if key not in state:
        raise CheckpointError(f"1 missing: {key}")
    return state[key].shape


def _count(state: State, pattern: str) -> int:
    """How many tensors `pattern` names, with 0, 1, ... put in for its braces."""
    return next(number for number in count() if pattern.format(number) not in state)


def stage_widths(shapes: Mapping[str, Any]) -> list[int]:
    """The channels of the trunk's stages, see `describe`."""
    first = shapes["width"] if shapes["trunk"] == "swin" else 256 if shapes["bottleneck"] else 64
    return [first * 2**stage for stage in range(len(shapes["depths"]))]


def _swin(state: State) -> dict[str, Any]:
    width, _, patch, _ = _shape(state, "backbone.patch_embed.projection.weight")
    first, table = "backbone.stages.0.blocks.0.", "attn.w_msa.relative_position_bias_table"
    rows = _shape(state, first + table)[0]
    if isqrt(rows) ** 2 != rows or rows % 2 == 0:
        raise CheckpointError(f"{first}{table} has {rows} rows, expected (2 window - 1)²")
    stages = range(_count(state, "backbone.stages.{}.blocks.0.norm1.weight"))
    blocks = [f"backbone.stages.{stage}.blocks." for stage in stages]
    return {
        "trunk": "swin",
        "width": width,
        "depths": [_count(state, name + "{}.norm1.weight") for name in blocks],
        "patch": patch,
        "heads": [_shape(state, f"{name}0.{table}")[1] for name in blocks],
        "window": (isqrt(rows) + 1) // 2,
        "mlp_ratio": _shape(state, first + "ffn.layers.0.0.weight")[0] / width,
    }


def _resnet(state: State) -> dict[str, Any]:
    inner, per_group, _, _ = _shape(state, "backbone.layer1.0.conv2.weight")
    return {
        "trunk": "resnet",
        "depths": [_count(state, f"backbone.layer{n}.{{}}.conv1.weight") for n in (1, 2, 3, 4)],
        "bottleneck": "backbone.layer1.0.conv3.weight" in state,
        "groups": inner // per_group,
        "base_width": per_group,
    }


def describe(state: State) -> dict[str, Any]:
    """What the shapes of `state` say about trunk and pyramid.

    Keys: `trunk` "swin" (`width`, `depths`, `heads`, `window`, `patch`, `mlp_ratio`) or "resnet"
    (`depths`, `bottleneck`, `groups`, `base_width`: channels of a group in the first stage);
    `stages` that enter the pyramid, its `channels`, the number of `extras` on top by convolution,
    and the `sources` that these can read, judged by channels. Raises CheckpointError, without the
    file's name, when it is neither Swin nor ResNet or a key is missing.
    """
    if "backbone.patch_embed.projection.weight" in state:
        shapes = _swin(state)
    elif "backbone.conv1.weight" in state:
        shapes = _resnet(state)
    else:
        found = next(key for key in state if key.startswith("backbone."))
        expected = "expected backbone.patch_embed.projection.weight or backbone.conv1.weight"
        raise CheckpointError(f"neither Swin nor ResNet: {expected}, found {found}")
    widths, stages = stage_widths(shapes), []
    lateral, output = "neck.lateral_convs.{}.conv.weight", "neck.fpn_convs.{}.conv.weight"
    laterals = _count(state, lateral)
    for name in map(lateral.format, range(max(laterals, 1))):
        channels, inputs, _, _ = _shape(state, name)
        if inputs not in widths:
            expected = f"the trunk's stages have {widths}"
            raise CheckpointError(f"{name} takes {inputs} channels, {expected}")
        stages.append(widths.index(inputs))
    extras = max(0, _count(state, output) - laterals)
    reads = _shape(state, output.format(laterals))[1] if extras else 0
    offered = {"input": inputs, "output": channels}
    sources = [name for name, width in offered.items() if width == reads]
    return shapes | {"stages": stages, "channels": channels, "extras": extras, "sources": sources}


def their_name(key: str, recipe: Mapping[str, Any]) -> str:
    """The name in mmdetection of tensor `key` of a `FeatureTeacher`'s backbone."""
    part, kind, number, *rest = key.split(".")
    if part == "fpn":
        if kind == "extra_blocks":  # "convs", then its number
            number = len(recipe["stages"]) + int(rest[0])
        convs = "lateral_convs" if kind == "inner_blocks" else "fpn_convs"
        return f"neck.{convs}.{number}.conv.{rest[1]}"
    if recipe["trunk"] == "resnet":
        return f"backbone.{key.removeprefix('body.')}"
    if kind == "norms":
        return f"backbone.norm{recipe['stages'][int(number)]}.{rest[0]}"
    if number == "0":
        return f"backbone.patch_embed.{'projection' if rest[0] == '0' else 'norm'}.{rest[1]}"
    stage, merging = divmod(int(number) - 1, 2)
    layers = "downsample" if merging else "blocks"
    return mmdet_name(f"backbone.stages.{stage}.{layers}.{'.'.join(rest)}")
