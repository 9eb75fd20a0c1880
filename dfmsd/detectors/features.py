"""What a torchvision detector sees and computes: its batch, and its feature maps by stride."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
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
    """What a detector saw and computed during one forward pass, filled in by `capture_features`."""

    images: ImageList | None = None
    targets: list[dict[str, Tensor]] | None = None
    features: OrderedDict[str, Tensor] | None = None


@contextmanager
def capture_features(detector: nn.Module) -> Iterator[Captured]:
    """A `Captured` that fills while `detector` runs in the `with` block; the hooks always go again.

    They read what the `transform` and the `backbone` of a torchvision detector give.
    """
    seen = Captured()

    def read_transform(_module: nn.Module, _inputs: tuple, output: tuple) -> None:
        seen.images, seen.targets = output

    def read_backbone(_module: nn.Module, _inputs: tuple, output: object) -> None:
        seen.features = to_levels(output)

    hooks = [
        detector.transform.register_forward_hook(read_transform),
        detector.backbone.register_forward_hook(read_backbone),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def to_levels(features: object) -> OrderedDict[str, Tensor]:
    """A backbone's output as an ordered dict; a single map becomes one level."""
    if isinstance(features, Tensor):
        return OrderedDict([("0", features)])
    return OrderedDict(features)


def strided_levels(detector: nn.Module, *, size: int = 512) -> dict[int, tuple[str, int]]:
    """Stride → (name, channels) of the feature maps of `detector.backbone`, finest first.

    A blank image of `size` x `size` pixels is run through the backbone once, in eval mode; the
    modes are put back and no buffer changes. Strides are rounded to powers of two. Of two maps of
    one size (torchvision's MobileNetV3 pyramid has such) the deeper one counts; a smaller map
    whose stride rounds to one that is taken gets the next power.
    """
    weight = next(detector.backbone.parameters())
    with frozen_modes(detector.backbone) as backbone:
        blank = torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype)
        levels = to_levels(backbone(blank))
    by_width = {feature.shape[-1]: (name, feature.shape[1]) for name, feature in levels.items()}
    strides: dict[int, tuple[str, int]] = {}
    last = 0
    for width, level in by_width.items():
        nearest = 2 ** round(math.log2(size / width))
        last = nearest if nearest > last else 2 * last
        strides[last] = level
    return strides


def feature_channels(detector: nn.Module) -> dict[int, int]:
    """Stride → channels of the features of `detector.backbone`: what a method is built from."""
    return {stride: channels for stride, (_, channels) in strided_levels(detector).items()}
