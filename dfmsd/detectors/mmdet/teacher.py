"""A trunk and a feature pyramid that teach, and detect nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from dfmsd.detectors.build import KeepSizeTransform
from dfmsd.detectors.mmdet.shapes import stage_widths
from dfmsd.detectors.mmdet.swin import swin_body


class ExtraConvs(ExtraFPNBlock):
    """Levels on top of a pyramid by strided convolutions, as mmdetection's `add_extra_convs`."""

    def __init__(self, inputs: int, channels: int, *, count: int, source: str, relu: bool) -> None:
        """Make `count` convolutions to `channels`, with `relu` before all but the first.

        The first reads `source`: the trunk's last map ("input") or the pyramid's ("output"), which
        has `inputs` channels.
        """
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
    `recipe` builds it again.
    """

    def __init__(self, backbone: nn.Module, strides: Sequence[int], recipe: dict[str, Any]) -> None:
        """Take the parts; `strides` are those of the maps that `backbone` gives, in order."""
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


def resnet_body(recipe: Mapping[str, Any]) -> nn.Module:
    """The trunk of a recipe, without weights."""
    block = Bottleneck if recipe["bottleneck"] else BasicBlock
    model = ResNet(
        block, recipe["depths"], groups=recipe["groups"], width_per_group=recipe["base_width"]
    )
    if recipe.get("style") == "caffe":
        for part in model.modules():
            if isinstance(part, Bottleneck):
                part.conv1.stride, part.conv2.stride = part.conv2.stride, part.conv1.stride
    names = {f"layer{stage + 1}": str(index) for index, stage in enumerate(recipe["stages"])}
    return IntermediateLayerGetter(model, names)


def build_teacher(recipe: Mapping[str, Any]) -> FeatureTeacher:
    """The teacher of `recipe` (see `shapes.describe`) without its weights."""
    swin = recipe["trunk"] == "swin"
    body = swin_body(recipe) if swin else resnet_body(recipe)
    channels, extra, stages = recipe["channels"], recipe["extra"], recipe["stages"]
    widths = [stage_widths(recipe)[stage] for stage in stages]
    block: nn.Module | None = LastLevelMaxPool() if extra["count"] else None
    if extra["kind"] == "convs":
        options = {name: extra[name] for name in ("count", "source", "relu")}
        inputs = widths[-1] if extra["source"] == "input" else channels
        block = ExtraConvs(inputs, channels, **options)
    fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=block)
    backbone = nn.Sequential(OrderedDict(body=body, fpn=fpn))
    levels = [*stages, *(stages[-1] + 1 + n for n in range(extra["count"]))]
    strides = [(recipe["patch"] if swin else 4) * 2**level for level in levels]
    return FeatureTeacher(backbone, strides, {"mmdet": dict(recipe)}).eval()
