"""Trunks and pyramids of torchvision that compute what mmdetection's do, and detect nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu
from torchvision.models import swin_transformer
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from dfmsd.detectors.backbones import SwinBody
from dfmsd.detectors.build import KeepSizeTransform
from dfmsd.detectors.mmdet.contents import stage_widths
from dfmsd.ranges import Range, check_value

_EXTRA = {
    "kind": ("pool", "convs"),
    "count": range(9),
    "source": ("input", "output"),
    "relu": bool,
}
_RULES = {  # of a recipe; see `contents.describe`
    "trunk": ("swin", "resnet"),
    "style": ("pytorch", "caffe"),
    "bottleneck": bool,
    **dict.fromkeys(("width", "channels", "groups", "base_width"), range(1, 4097)),
    "depths": [range(1, 129), 4],
    "heads": [range(1, 129), 4],
    **dict.fromkeys(("window", "patch"), range(1, 33)),
    "mlp_ratio": Range(0.1, 16),
    "stages": [range(4), 4],
    "mean": [Range(-1000, 1000), 3],
    "std": [Range(1e-6, 1000), 3],
    "extras": range(9),
    "sources": [("input", "output"), 2],
    "extra": _EXTRA,
}


def shift_mask(height: int, width: int, size: int, shift: int) -> Tensor:
    """(windows, size², size²): -100 where two cells met only by the shift, else 0.

    Source: Swin (arXiv 2103.14030, figure 4). The last `shift` rows and columns of a rolled map
    come from its other side. `height` and `width` are multiples of `size`, the side of a window.
    """
    rows, columns = (
        (torch.arange(side) >= side - size).long() + (torch.arange(side) >= side - shift)
        for side in (height, width)
    )
    region = 3 * rows[:, None] + columns
    windows = region.view(height // size, size, width // size, size)
    windows = windows.transpose(1, 2).reshape(-1, size * size)
    return -100.0 * (windows[:, None] != windows[:, :, None])


class KeptShift(swin_transformer.ShiftedWindowAttention):
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
        parts = self.qkv.weight, self.proj.weight, bias, self.window_size, self.num_heads
        options = {"qkv_bias": self.qkv.bias, "proj_bias": self.proj.bias, "shift_size": [0, 0]}
        mixed = swin_transformer.shifted_window_attention(
            rolled, *parts, training=self.training, **options
        )
        return torch.roll(mixed, (shift, shift), dims=(1, 2))[:, :height, :width].contiguous()


class ExtraConvs(ExtraFPNBlock):
    """Levels on top of a pyramid by strided convolutions, as mmdetection's `add_extra_convs`.

    The first of `count` reads `inputs` channels of the trunk's last map ("input") or the pyramid's;
    `relu` comes before the later ones.
    """

    def __init__(self, inputs: int, channels: int, *, count: int, source: str, relu: bool) -> None:
        super().__init__()
        widths = [inputs] + [channels] * (count - 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, channels, 3, 2, 1) for width in widths)
        self.source, self.relu = source, relu

    def forward(
        self, results: list[Tensor], inputs: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """`results` and `names` with the new levels; `inputs` are the trunk's maps."""
        last = inputs[-1] if self.source == "input" else results[-1]
        for number, conv in enumerate(self.convs):
            last = conv(relu(last) if self.relu and number else last)
            results.append(last)
            names.append(f"extra{number}")
        return results, names


class FeatureTeacher(nn.Module):
    """A teacher of features: what a `Stage` needs of a detector (`transform`, `backbone`), no head.

    `transform.image_mean` and `.image_std` say how its pixels are normalised: RGB, from 0..1.
    `strides` are those of the maps that `backbone` gives; `recipe` builds it again.
    """

    def __init__(self, backbone: nn.Module, strides: Sequence[int], recipe: dict[str, Any]) -> None:
        super().__init__()
        pixels = recipe["mmdet"]
        self.transform = KeepSizeTransform(800, 1333, pixels["mean"], pixels["std"])
        self.backbone, self.strides, self.recipe = backbone, strides, recipe

    def forward(self, images: Tensor | list[Tensor]) -> dict[int, Tensor]:
        """Stride → features (N, C, H/stride, W/stride) of a normalised batch (N, 3, H, W).

        A list of images (3, H, W) in 0..1 is normalised and padded first.
        """
        if not isinstance(images, Tensor):
            images = self.transform(images)[0].tensors
        return dict(zip(self.strides, self.backbone(images).values(), strict=True))


def _body(recipe: Mapping[str, Any], widths: list[int]) -> nn.Module:
    """The trunk of `recipe`, whose stages have `widths` channels."""
    if recipe["trunk"] == "swin":
        model: nn.Module = swin_transformer.SwinTransformer(
            patch_size=[recipe["patch"]] * 2,
            embed_dim=recipe["width"],
            depths=recipe["depths"],
            num_heads=recipe["heads"],
            window_size=[recipe["window"]] * 2,
            mlp_ratio=recipe["mlp_ratio"],
            stochastic_depth_prob=0.0,
            num_classes=1,  # its head is left out
            block=partial(swin_transformer.SwinTransformerBlock, attn_layer=KeptShift),
        )
        levels = {stage: (str(2 * stage + 1), widths[stage]) for stage in recipe["stages"]}
        return SwinBody(model.features, levels, patch=recipe["patch"])
    block = Bottleneck if recipe["bottleneck"] else BasicBlock
    groups = {"groups": recipe["groups"], "width_per_group": recipe["base_width"]}
    model = ResNet(block, recipe["depths"], **groups)
    for part in model.modules() if recipe.get("style") == "caffe" else ():
        if isinstance(part, Bottleneck):
            part.conv1.stride, part.conv2.stride = part.conv2.stride, part.conv1.stride
    names = {f"layer{stage + 1}": str(index) for index, stage in enumerate(recipe["stages"])}
    return IntermediateLayerGetter(model, names)


def build_teacher(recipe: Mapping[str, Any]) -> FeatureTeacher:
    """The teacher of `recipe` (see `describe`) without its weights, or ValueError."""
    check_value("recipe", recipe, _RULES)
    channels, extra, stages = recipe["channels"], dict(recipe["extra"]), recipe["stages"]
    body = _body(recipe, stage_widths(recipe))
    widths = [stage_widths(recipe)[stage] for stage in stages]
    levels = [*stages, *(stages[-1] + 1 + n for n in range(extra["count"]))]
    block: nn.Module | None = LastLevelMaxPool() if extra["count"] else None
    if extra.pop("kind") == "convs":
        block = ExtraConvs(
            widths[-1] if extra["source"] == "input" else channels, channels, **extra
        )
    fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=block)
    backbone = nn.Sequential(OrderedDict(body=body, fpn=fpn))
    strides = [recipe.get("patch", 4) * 2**level for level in levels]
    return FeatureTeacher(backbone, strides, {"mmdet": dict(recipe)}).eval()
