"""What the shapes in an mmdetection checkpoint say, and its names for our tensors."""

from __future__ import annotations

from collections.abc import Mapping
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
    widths = stage_widths(shapes)
    lateral, output = "neck.lateral_convs.{}.conv.weight", "neck.fpn_convs.{}.conv.weight"
    laterals, stages = _count(state, lateral), []
    for number in range(max(laterals, 1)):
        channels, inputs, _, _ = _shape(state, lateral.format(number))
        if inputs not in widths:
            takes = f"{lateral.format(number)} takes {inputs} channels"
            raise CheckpointError(f"{takes}, the trunk's stages have {widths}")
        stages.append(widths.index(inputs))
    extras = max(0, _count(state, output) - laterals)
    reads = _shape(state, output.format(laterals))[1] if extras else 0
    offered = {"input": widths[stages[-1]], "output": channels}
    sources = [name for name, inputs in offered.items() if inputs == reads]
    pyramid = {"stages": stages, "channels": channels, "extras": extras, "sources": sources}
    return shapes | pyramid


def their_name(key: str, recipe: Mapping[str, Any]) -> str:
    """The name in mmdetection of tensor `key` of a `FeatureTeacher`'s backbone."""
    part, kind, number, *rest = key.split(".")
    if kind == "extra_blocks":
        return f"neck.fpn_convs.{len(recipe['stages']) + int(rest[0])}.conv.{rest[1]}"
    if part == "fpn":
        convs = {"inner_blocks": "lateral_convs", "layer_blocks": "fpn_convs"}[kind]
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
