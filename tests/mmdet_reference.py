"""mmdetection's layouts and arithmetic, written down from their definitions with plain functions.

Nothing here comes from `dfmsd`. A checkpoint is a dict of tensors under mmdetection's names;
`shapes` says which there are, `random_state` fills them, `features` computes from them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

SWIN = {
    "t": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": 7},
    "s": {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24), "window": 7},
    "b": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": 7},
}
RESNET = {
    "50": {"depths": (3, 4, 6, 3)},
    "101": {"depths": (3, 4, 23, 3)},
    "x101_32x4d": {"depths": (3, 4, 23, 3), "groups": 32, "base": 4},
    "x101_64x4d": {"depths": (3, 4, 23, 3), "groups": 64, "base": 4},
}


# --- names and shapes


def norm_shapes(name, width, *, batch=False):
    keys = ("weight", "bias", "running_mean", "running_var") if batch else ("weight", "bias")
    found = {f"{name}.{key}": (width,) for key in keys}
    return found | ({f"{name}.num_batches_tracked": ()} if batch else {})


def layer_shapes(name, out, *inputs):
    return {f"{name}.weight": (out, *inputs), f"{name}.bias": (out,)}


def swin_shapes(width, depths, heads, window, outputs=(0, 1, 2, 3)):
    found = layer_shapes("patch_embed.projection", width, 3, 4, 4)
    found |= norm_shapes("patch_embed.norm", width)
    for i, depth in enumerate(depths):
        dim = width * 2**i
        for j in range(depth):
            block = f"stages.{i}.blocks.{j}"
            found |= norm_shapes(f"{block}.norm1", dim) | norm_shapes(f"{block}.norm2", dim)
            msa = f"{block}.attn.w_msa"
            found[f"{msa}.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[i])
            found[f"{msa}.relative_position_index"] = (window**2, window**2)
            found |= layer_shapes(f"{msa}.qkv", 3 * dim, dim) | layer_shapes(
                f"{msa}.proj", dim, dim
            )
            found |= layer_shapes(f"{block}.ffn.layers.0.0", 4 * dim, dim)
            found |= layer_shapes(f"{block}.ffn.layers.1", dim, 4 * dim)
        if i < len(depths) - 1:
            found |= norm_shapes(f"stages.{i}.downsample.norm", 4 * dim)
            found[f"stages.{i}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
    for i in outputs:
        found |= norm_shapes(f"norm{i}", width * 2**i)
    return found, [width * 2**i for i in outputs]


def resnet_shapes(depths, groups=1, base=64, outputs=(0, 1, 2, 3), bottleneck=True):
    found = {"conv1.weight": (64, 3, 7, 7)} | norm_shapes("bn1", 64, batch=True)
    inputs, growth = 64, 4 if bottleneck else 1
    for i, depth in enumerate(depths):
        planes = 64 * 2**i
        inner, out = planes * base // 64 * groups, growth * planes
        for j in range(depth):
            block = f"layer{i + 1}.{j}"
            if bottleneck:
                kernels = [
                    (inner, inputs, 1, 1),
                    (inner, inner // groups, 3, 3),
                    (out, inner, 1, 1),
                ]
            else:
                kernels = [(planes, inputs, 3, 3), (planes, planes, 3, 3)]
            for k, kernel in enumerate(kernels, start=1):
                found[f"{block}.conv{k}.weight"] = kernel
                found |= norm_shapes(f"{block}.bn{k}", kernel[0], batch=True)
            if j == 0 and (i > 0 or inputs != out):
                found[f"{block}.downsample.0.weight"] = (out, inputs, 1, 1)
                found |= norm_shapes(f"{block}.downsample.1", out, batch=True)
            inputs = out
    return found, [64 * 2**i * growth for i in outputs]


def neck_shapes(widths, channels, extras=0, source=None):
    found = {}
    for i, width in enumerate(widths):
        found |= layer_shapes(f"lateral_convs.{i}.conv", channels, width, 1, 1)
        found |= layer_shapes(f"fpn_convs.{i}.conv", channels, channels, 3, 3)
    for k in range(extras):
        inputs = widths[-1] if k == 0 and source == "input" else channels
        found |= layer_shapes(f"fpn_convs.{len(widths) + k}.conv", channels, inputs, 3, 3)
    return found


def shapes(trunk, *, channels=256, extras=0, source=None, head="rpn_head", **options):
    """Names and shapes of a whole detector; a few tensors stand for its head."""
    found, widths = (swin_shapes if "heads" in options else resnet_shapes)(**options)
    assert trunk == ("swin" if "heads" in options else "resnet")
    neck = neck_shapes(widths, channels, extras, source)
    named = {f"backbone.{key}": value for key, value in found.items()}
    named |= {f"neck.{key}": value for key, value in neck.items()}
    return named | layer_shapes(f"{head}.rpn_conv", channels, channels, 3, 3)


def position_index(window):
    """(window², window²): row of the bias table for each pair of cells of a window."""
    cells = [(y, x) for y in range(window) for x in range(window)]
    side = 2 * window - 1
    return torch.tensor(
        [[(y - v + window - 1) * side + x - u + window - 1 for v, u in cells] for y, x in cells]
    )


def random_state(named, seed=0):
    """Values of a size that keeps features of order one."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in named.items():
        noise = torch.randn(shape, generator=draw)
        last = name.split(".")[-1]
        if last == "relative_position_index":
            state[name] = position_index(int(shape[0] ** 0.5))
        elif last == "num_batches_tracked":
            state[name] = torch.tensor(7)
        elif last == "running_var":
            state[name] = noise.abs() + 0.5
        elif last == "weight" and len(shape) > 1:
            state[name] = noise * math.prod(shape[1:]) ** -0.5
        elif last == "weight":
            state[name] = 1 + 0.2 * noise
        else:
            state[name] = 0.5 * noise
    return state


# --- arithmetic


def attend(state, name, maps, window, shift):
    """Window attention of `maps` (N, H, W, C), one window after another.

    A window takes its cells from the padded map rolled by `shift`; two cells see each other when
    the roll carried both, or neither, over the map's edge, in rows and in columns.
    """
    batch, height, width, channels = maps.shape
    rows, columns = -(-height // window) * window, -(-width // window) * window
    padded = maps.new_zeros(batch, rows, columns, channels)
    padded[:, :height, :width] = maps
    table = state[f"{name}.relative_position_bias_table"]
    heads, dim = table.shape[1], channels // table.shape[1]
    bias = table[position_index(window)].permute(2, 0, 1)
    mixed = torch.zeros_like(padded)
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            cells = [(top + y, left + x) for y in range(window) for x in range(window)]
            ys = torch.tensor([(y + shift) % rows for y, _ in cells])
            xs = torch.tensor([(x + shift) % columns for _, x in cells])
            over_y = torch.tensor([y + shift >= rows for y, _ in cells])
            over_x = torch.tensor([x + shift >= columns for _, x in cells])
            apart = (over_y[:, None] != over_y) | (over_x[:, None] != over_x)
            tokens = padded[:, ys, xs]
            packed = F.linear(tokens, state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
            query, key, value = packed.split(channels, dim=-1)
            parts = []
            for head in range(heads):
                part = slice(head * dim, (head + 1) * dim)
                score = query[..., part] @ key[..., part].transpose(1, 2) / dim**0.5
                score = score + bias[head] - 100.0 * apart
                parts.append(score.softmax(-1) @ value[..., part])
            joined = torch.cat(parts, -1)
            mixed[:, ys, xs] = F.linear(
                joined, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"]
            )
    return mixed[:, :height, :width]


def layer_norm(state, name, maps):
    weight = state[f"{name}.weight"]
    return F.layer_norm(maps, weight.shape, weight, state[f"{name}.bias"])


def merge(state, name, maps):
    """Four neighbours into one cell, channel by channel, row by row."""
    maps = F.pad(maps, (0, 0, 0, maps.shape[2] % 2, 0, maps.shape[1] % 2))
    quarters = [maps[:, y::2, x::2] for y in (0, 1) for x in (0, 1)]
    columns = torch.stack(quarters, dim=-1).flatten(-2)
    return F.linear(layer_norm(state, f"{name}.norm", columns), state[f"{name}.reduction.weight"])


def swin(state, images, depths, window, outputs, **_):
    """Maps (N, C, H, W) of the stages in `outputs`."""
    images = F.pad(images, (0, -images.shape[3] % 4, 0, -images.shape[2] % 4))
    projection = [state[f"patch_embed.projection.{key}"] for key in ("weight", "bias")]
    maps = F.conv2d(images, *projection, stride=4).permute(0, 2, 3, 1)
    maps, found = layer_norm(state, "patch_embed.norm", maps), []
    for i, depth in enumerate(depths):
        for j in range(depth):
            block = f"stages.{i}.blocks.{j}"
            shift = window // 2 if j % 2 else 0
            normed = layer_norm(state, f"{block}.norm1", maps)
            maps = maps + attend(state, f"{block}.attn.w_msa", normed, window, shift)
            hidden = layer_norm(state, f"{block}.norm2", maps)
            for layer in ("0.0", "1"):
                kernel = [state[f"{block}.ffn.layers.{layer}.{key}"] for key in ("weight", "bias")]
                hidden = F.linear(hidden, *kernel)
                hidden = F.gelu(hidden) if layer == "0.0" else hidden
            maps = maps + hidden
        if i in outputs:
            found.append(layer_norm(state, f"norm{i}", maps).permute(0, 3, 1, 2))
        if i < len(depths) - 1:
            maps = merge(state, f"stages.{i}.downsample", maps)
    return found


def batch_norm(state, name, maps):
    mean, var, weight, bias = (
        state[f"{name}.{key}"][:, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (maps - mean) / (var + 1e-5).sqrt() * weight + bias


def resnet(state, images, depths, outputs, groups=1, style="pytorch", bottleneck=True, **_):
    """Maps (N, C, H, W) of the stages in `outputs`; `style` says which convolution strides."""
    maps = F.conv2d(images, state["conv1.weight"], stride=2, padding=3)
    maps, found = F.relu(batch_norm(state, "bn1", maps)), []
    maps = F.max_pool2d(maps, 3, stride=2, padding=1)
    for i, depth in enumerate(depths):
        for j in range(depth):
            block, stride = f"layer{i + 1}.{j}", 2 if i and not j else 1
            if bottleneck:
                first, second = (1, stride) if style == "pytorch" else (stride, 1)
                steps = [(first, 0, 1), (second, 1, groups), (1, 0, 1)]
            else:
                steps = [(stride, 1, 1), (1, 1, 1)]
            hidden = maps
            for k, (step, padding, parts) in enumerate(steps, start=1):
                kernel = state[f"{block}.conv{k}.weight"]
                hidden = F.conv2d(hidden, kernel, stride=step, padding=padding, groups=parts)
                hidden = batch_norm(state, f"{block}.bn{k}", hidden)
                hidden = F.relu(hidden) if k < len(steps) else hidden
            if f"{block}.downsample.0.weight" in state:
                maps = F.conv2d(maps, state[f"{block}.downsample.0.weight"], stride=stride)
                maps = batch_norm(state, f"{block}.downsample.1", maps)
            maps = F.relu(maps + hidden)
        if i in outputs:
            found.append(maps)
    return found


def conv(state, name, maps, **options):
    kernel, bias = state[f"neck.{name}.conv.weight"], state[f"neck.{name}.conv.bias"]
    return F.conv2d(maps, kernel, bias, **options)


def neck(state, inputs, *, extras=0, source=None, relu=False, pooled=True):
    """The pyramid's levels: top-down by repeating the nearest cell, then the extra ones."""
    tops = [conv(state, f"lateral_convs.{i}", level) for i, level in enumerate(inputs)]
    for i in range(len(tops) - 2, -1, -1):
        (h, w), (small_h, small_w) = tops[i].shape[2:], tops[i + 1].shape[2:]
        rows, columns = torch.arange(h) * small_h // h, torch.arange(w) * small_w // w
        tops[i] = tops[i] + tops[i + 1][:, :, rows][:, :, :, columns]
    levels = [conv(state, f"fpn_convs.{i}", top, padding=1) for i, top in enumerate(tops)]
    last = inputs[-1] if source == "input" else levels[-1]
    for k in range(extras):
        last = F.relu(last) if relu and k else last
        last = conv(state, f"fpn_convs.{len(inputs) + k}", last, stride=2, padding=1)
        levels.append(last)
    return levels if extras or not pooled else [*levels, levels[-1][:, :, ::2, ::2]]


def features(state, images, *, trunk, outputs=(0, 1, 2, 3), **options):
    """The levels of a whole detector for normalised `images` (N, 3, H, W)."""
    body = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    maps = (swin if trunk == "swin" else resnet)(body, images, outputs=outputs, **options)
    wanted = ("extras", "source", "relu", "pooled")
    return neck(state, maps, **{key: options[key] for key in wanted if key in options})
