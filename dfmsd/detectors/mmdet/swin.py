"""torchvision's Swin made to compute what mmdetection's does, at every image size."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    SwinTransformer,
    SwinTransformerBlock,
    shifted_window_attention,
)

from dfmsd.detectors.backbones import SwinBody
from dfmsd.detectors.mmdet.shapes import stage_widths


def shift_mask(height: int, width: int, size: int, shift: int) -> Tensor:
    """(windows, size², size²): -100 where two cells met only by the shift, else 0.

    Source: Swin (arXiv 2103.14030, figure 4). After rolling by `shift` cells, the last `shift` rows
    come from the other side of the map, and so do the last columns. `height` and `width` of the
    padded map are multiples of `size`, the side of a window.
    """
    rows, columns = (
        (torch.arange(side) >= side - size).long() + (torch.arange(side) >= side - shift)
        for side in (height, width)
    )
    region = 3 * rows[:, None] + columns
    windows = region.view(height // size, size, width // size, size)
    windows = windows.transpose(1, 2).reshape(-1, size * size)
    return -100.0 * (windows[:, None] != windows[:, :, None])


class KeptShift(ShiftedWindowAttention):
    """torchvision's window attention, shifted also where a map fits into one window.

    Source: mmdetection shifts every second block, whatever the map's size; torchvision leaves the
    shift out along a side that one window covers (12 % off on the last stage at 224 pixels).
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, H, W, C) of such maps."""
        (size, _), (shift, _) = self.window_size, self.shift_size
        batch, height, width, _ = maps.shape
        if shift == 0 or min(height, width) > size:
            return super().forward(maps)
        # rolled here; the mask goes in as a bias of every window, so that torchvision need not roll
        padded = pad(maps, (0, 0, 0, -width % size, 0, -height % size))
        rolled = torch.roll(padded, (-shift, -shift), dims=(1, 2))
        mask = shift_mask(*rolled.shape[1:3], size, shift)[:, None].to(maps)
        bias = (self.get_relative_position_bias() + mask).repeat(batch, 1, 1, 1)
        mixed = shifted_window_attention(
            rolled,
            self.qkv.weight,
            self.proj.weight,
            bias,
            self.window_size,
            self.num_heads,
            shift_size=[0, 0],
            qkv_bias=self.qkv.bias,
            proj_bias=self.proj.bias,
            training=self.training,
        )
        return torch.roll(mixed, (shift, shift), dims=(1, 2))[:, :height, :width].contiguous()


class PaddedSwin(SwinBody):
    """A Swin with mmdetection's output norms that pads the image to whole patches."""

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Maps "0", "1", ... (N, C, H/stride, W/stride), rounded up, of (N, 3, H, W)."""
        patch = self.features[0][0].kernel_size[0]
        height, width = images.shape[2:]
        return super().forward(pad(images, (0, -width % patch, 0, -height % patch)))


def swin_body(recipe: dict[str, Any]) -> nn.Module:
    """The trunk of a recipe, without weights."""
    model = SwinTransformer(
        patch_size=[recipe["patch"]] * 2,
        embed_dim=recipe["width"],
        depths=recipe["depths"],
        num_heads=recipe["heads"],
        window_size=[recipe["window"]] * 2,
        mlp_ratio=recipe["mlp_ratio"],
        stochastic_depth_prob=0.0,
        num_classes=1,  # its head is left out
        block=partial(SwinTransformerBlock, attn_layer=KeptShift),
    )
    widths = stage_widths(recipe)
    levels = {stage: (str(2 * stage + 1), widths[stage]) for stage in recipe["stages"]}
    return PaddedSwin(model.features, levels)
