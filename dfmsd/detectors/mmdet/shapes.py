"""What the shapes in an mmdetection checkpoint say, and its names for our tensors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, takewhile
from math import isqrt
from typing import Any

from torch import Tensor

from dfmsd.detectors.checkpoints import CheckpointError

State = Mapping[str, Tensor]
STEMS = ("body.conv1.weight", "body.features.0.0.weight")
"""Our names of the convolutions that read the pixels, of a ResNet and of a Swin."""
_ORIGINAL = {
    "layers.": "stages.",
    "patch_embed.proj.": "patch_embed.projection.",
    ".attn.": ".attn.w_msa.",
    ".mlp.fc1.": ".ffn.layers.0.0.",
    ".mlp.fc2.": ".ffn.layers.1.",
}
"""Names in Swin's own repository (a fork of mmdetection 2) → mmdetection's."""


def by_channel(weight: Tensor) -> Tensor:
    """The columns (..., 4C) of a PatchMerging of torchvision in mmdetection's order.

    torchvision (and Swin's own repository): neighbour by neighbour, (0, 0), (1, 0), (0, 1), (1, 1)
    as row and column. mmdetection: channel by channel, as nn.Unfold gives them, row by row.
    """
    return weight.unflatten(-1, (2, 2, -1)).transpose(-3, -1).flatten(-3)


def by_neighbour(weight: Tensor) -> Tensor:
    """Columns (..., 4C) of mmdetection in torchvision's order, the inverse of by_channel."""
    return weight.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)


def as_mmdet(state: State) -> dict[str, Tensor]:
    """`state` as mmdetection would hold it, also when Swin's own repository wrote it."""
    if not any(key.startswith("backbone.layers.") for key in state):
        return dict(state)
    renamed = {}
    for key, value in state.items():
        name = key
        for old, new in _ORIGINAL.items() if key.startswith("backbone.") else ():
            name = name.replace(old, new, 1)
        renamed[name] = by_channel(value) if ".downsample." in key else value
    return renamed


def _shape(state: State, key: str) -> list[int]:
    """The shape of tensor `key`; CheckpointError when it is not there."""
    if key not in state:
        raise CheckpointError(f"1 missing: {key}")
    return list(state[key].shape)


def _count(state: State, pattern: str) -> int:
    """How many tensors `pattern` names, with 0, 1, ... put in for its braces."""
    return len(list(takewhile(lambda number: pattern.format(number) in state, count())))


def _swin(state: State) -> tuple[dict[str, Any], list[int]]:
    """What the shapes say of a Swin, and the channels of its stages."""
    width, _, patch, _ = _shape(state, "backbone.patch_embed.projection.weight")
    first, table = "backbone.stages.0.blocks.0.", "attn.w_msa.relative_position_bias_table"
    rows = _shape(state, first + table)[0]
    if isqrt(rows) ** 2 != rows or rows % 2 == 0:
        raise CheckpointError(f"{first}{table} has {rows} rows, expected (2 window - 1)²")
    stages = range(_count(state, "backbone.stages.{}.blocks.0.norm1.weight"))
    blocks = "backbone.stages.{}.blocks.".format
    shapes = {
        "trunk": "swin",
        "width": width,
        "depths": [_count(state, blocks(n) + "{}.norm1.weight") for n in stages],
        "patch": patch,
        "heads": [_shape(state, f"{blocks(n)}0.{table}")[1] for n in stages],
        "window": (isqrt(rows) + 1) // 2,
        "mlp_ratio": _shape(state, first + "ffn.layers.0.0.weight")[0] / width,
    }
    return shapes, [width * 2**n for n in stages]


def _resnet(state: State) -> tuple[dict[str, Any], list[int]]:
    """What the shapes say of a ResNet or ResNeXt, and the channels of its stages."""
    layers = [f"backbone.layer{number}" for number in (1, 2, 3, 4)]
    depths = [_count(state, layer + ".{}.conv1.weight") for layer in layers]
    bottleneck = "backbone.layer1.0.conv3.weight" in state
    widths = [64 * 2**n * (4 if bottleneck else 1) for n in range(4)]
    shapes = {"trunk": "resnet", "depths": depths, "bottleneck": bottleneck}
    if not bottleneck:
        return shapes | {"groups": 1, "base_width": 64}, widths
    inner, per_group, _, _ = _shape(state, "backbone.layer1.0.conv2.weight")
    return shapes | {"groups": inner // per_group, "base_width": per_group}, widths


def describe(state: State) -> dict[str, Any]:
    """What the shapes of `state` say about trunk and pyramid.

    Keys: `trunk` "swin" (`width`, `depths`, `heads`, `window`, `patch`, `mlp_ratio`) or "resnet"
    (`depths`, `bottleneck`, `groups`, `base_width`: channels of a group in the first stage);
    `stages` that enter the pyramid, its `channels`, the number of `extras` on top by convolution,
    and the `sources` that these can read, judged by channels.

    Raises:
        CheckpointError: neither Swin nor ResNet, or a key is missing; names the key, not the file.
    """
    if "backbone.patch_embed.projection.weight" in state:
        shapes, widths = _swin(state)
    elif "backbone.conv1.weight" in state:
        shapes, widths = _resnet(state)
    else:
        found = next(key for key in state if key.startswith("backbone."))
        expected = "expected backbone.patch_embed.projection.weight or backbone.conv1.weight"
        raise CheckpointError(f"neither Swin nor ResNet: {expected}, found {found}")
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
    shapes |= {"stages": stages, "channels": channels}
    return shapes | {"extras": extras, "sources": sources}


def their_name(key: str, recipe: Mapping[str, Any]) -> str:
    """The name in mmdetection of tensor `key` of a `FeatureTeacher`'s backbone."""
    part, *rest = key.split(".")
    if part == "body":
        name = ".".join(rest) if recipe["trunk"] == "resnet" else _swin_name(rest, recipe)
        return f"backbone.{name}"
    if rest[0] == "extra_blocks":
        return f"neck.fpn_convs.{len(recipe['stages']) + int(rest[2])}.conv.{rest[3]}"
    convs = {"inner_blocks": "lateral_convs", "layer_blocks": "fpn_convs"}[rest[0]]
    return f"neck.{convs}.{rest[1]}.conv.{rest[3]}"


def _swin_name(parts: list[str], recipe: Mapping[str, Any]) -> str:
    """The name in mmdetection of a tensor of `PaddedSwin`."""
    number, rest = int(parts[1]), ".".join(parts[2:])
    if parts[0] == "norms":
        return f"norm{recipe['stages'][number]}.{rest}"
    if number == 0:
        return f"patch_embed.{'projection' if parts[2] == '0' else 'norm'}.{parts[3]}"
    stage, merging = divmod(number - 1, 2)
    if merging:
        return f"stages.{stage}.downsample.{rest}"
    rest = rest.replace("attn.", "attn.w_msa.").replace("mlp.0.", "ffn.layers.0.0.")
    return f"stages.{stage}.blocks.{rest.replace('mlp.3.', 'ffn.layers.1.')}"


def our_value(key: str, value: Tensor, *, bgr: bool) -> Tensor:
    """A tensor of mmdetection as our tensor `key` holds it.

    Choice: a stem trained on BGR pixels is turned to read RGB, so that every teacher takes RGB.
    """
    if key.endswith("relative_position_index"):
        return value.flatten()
    parts = key.split(".")
    if parts[1] == "features" and parts[2] in ("2", "4", "6"):
        return by_neighbour(value)
    return value.flip(1) if bgr and key in STEMS else value
