"""What a torchvision detector sees and computes: its batch, and its feature maps by stride."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # importing torchvision costs more than importing torch
    from torchvision.models.detection.image_list import ImageList


@contextmanager
def frozen_modes(module: nn.Module) -> Iterator[nn.Module]:
    """Context in which `module` is in eval mode and without gradients; every mode is restored."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for part, training in modes:
            part.training = training


@dataclass
class Captured:
    """What a detector saw and computed during one forward pass."""

    images: ImageList | None = None
    targets: list[dict[str, Tensor]] | None = None
    features: OrderedDict[str, Tensor] | None = None


@contextmanager
def capture_features(detector: nn.Module) -> Iterator[Captured]:
    """Context with what `transform` and `backbone` of a torchvision detector give when it runs."""
    seen = Captured()
    transform, backbone = detector.transform, detector.backbone

    def keep(module: nn.Module, _inputs: tuple, output: Any) -> None:
        if module is backbone:
            seen.features = to_levels(output)
        else:
            seen.images, seen.targets = output

    with transform.register_forward_hook(keep), backbone.register_forward_hook(keep):
        yield seen


def to_levels(features: object) -> OrderedDict[str, Tensor]:
    """A backbone's output as an ordered dict; a single map becomes one level."""
    return OrderedDict({"0": features} if isinstance(features, Tensor) else features)


def strided_levels(detector: nn.Module, *, size: int = 512) -> dict[int, tuple[str, int]]:
    """Stride → (name, channels) of the feature maps of `detector.backbone`, finest first.

    Measured on one blank image of `size` x `size` pixels; strides are rounded to powers of two. Of
    two maps of one size (torchvision's MobileNetV3 pyramid has such) the deeper one counts; a
    smaller map whose stride rounds to one that is taken gets the next power.
    """
    weight = next(detector.backbone.parameters())
    with frozen_modes(detector.backbone) as backbone:
        blank = torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype)
        levels = to_levels(backbone(blank))
    by_width = {feature.shape[-1]: (name, feature.shape[1]) for name, feature in levels.items()}
    strides, last = {}, 0
    for width, level in sorted(by_width.items(), reverse=True):
        last = max(2 ** round(math.log2(size / width)), 2 * last)
        strides[last] = level
    return strides


def feature_channels(detector: nn.Module) -> dict[int, int]:
    """Stride → channels of the features of `detector.backbone`: what a method is built from."""
    return {stride: channels for stride, (_, channels) in strided_levels(detector).items()}


@torch.no_grad()
def score_maps(detector: nn.Module, features: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Stride → the detector's score at each cell, (N, 1, H, W), 0..1, for its features by stride.

    The highest sigmoid over anchors and classes; of a Faster R-CNN the RPN's objectness. Raises
    ValueError for a detector that is none of Faster R-CNN, RetinaNet and FCOS.
    """
    from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet

    maps = list(features.values())
    if isinstance(detector, FasterRCNN):
        logits = detector.rpn.head(maps)[0]
    elif isinstance(detector, RetinaNet | FCOS):
        best = [
            detector.head.classification_head([x]).amax(2) for x in maps
        ]  # (N, H * W * anchors)
        pairs = zip(best, maps, strict=True)
        logits = [level.view(len(x), *x.shape[2:], -1).movedim(3, 1) for level, x in pairs]
    else:
        kinds = "a Faster R-CNN, a RetinaNet or an FCOS"
        raise ValueError(f"detector must be {kinds} to score cells, got {type(detector).__name__}")
    scores = (level.float().amax(1, keepdim=True).sigmoid() for level in logits)
    return dict(zip(features, scores, strict=True))
