"""Random changes of images and the boxes in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxFormat

Target = dict[str, Any]
Sample = tuple[Tensor, Target]


def augmentation(
    *,
    flip: float = 0.5,
    vflip: float = 0.0,
    scale: tuple[float, float] | None = None,
    colour: float = 0.0,
) -> Callable[[Tensor, Target], Sample]:
    """A random change of (image, target), drawn from torch's global generator.

    Images are uint8 in 0..255 or float in 0..1, and stay what they are. Boxes move with the image,
    are clipped to it, and go together with their labels when less than a pixel of their width or
    height is left.

    Args:
        flip: probability of a left-right flip.
        vflip: probability of an up-down flip.
        scale: smallest and largest factor of a random rescaling; the image keeps its size: what
            grows is cropped at a random place, what shrinks is set on grey. None for none.
        colour: strength of brightness, contrast and saturation jitter, 0 to 1.

    Raises:
        ValueError: an argument is out of range, or, when it is called, a target has masks or
            keypoints, which it cannot move.
    """
    for name, value in (("flip", flip), ("vflip", vflip), ("colour", colour)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in 0..1, got {value}")
    if scale is not None and not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be (low, high) with 0 < low <= high, got {scale}")
    jitter = v2.ColorJitter(colour, colour, colour) if colour else None

    def apply(image: Tensor, target: Target) -> Sample:
        if others := target.keys() & {"masks", "keypoints"}:
            raise ValueError(f"augmentation moves boxes only, a target also has {min(others)}")
        boxes, (height, width) = target["boxes"], image.shape[-2:]
        canvas = {"format": BoundingBoxFormat.XYXY, "canvas_size": (height, width)}
        if torch.rand(1) < flip:
            image, boxes = image.flip(-1), F.horizontal_flip_bounding_boxes(boxes, **canvas)
        if torch.rand(1) < vflip:
            image, boxes = image.flip(-2), F.vertical_flip_bounding_boxes(boxes, **canvas)
        if jitter is not None:
            image = jitter(image)
        if scale is not None:
            image, boxes = _rescale(image, boxes, scale)
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
        large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        return image, target | {"boxes": boxes[large], "labels": target["labels"][large]}

    return apply


def _rescale(image: Tensor, boxes: Tensor, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Image and boxes times a random factor, cropped or set on grey so that the size stays."""
    height, width = image.shape[-2:]
    factor = scale[0] * (scale[1] / scale[0]) ** float(torch.rand(()))
    down, across = max(1, round(height * factor)), max(1, round(width * factor))
    image = F.resize(image, [down, across], antialias=True)
    rooms = (width - across, height - down)
    # from 0 to the room, which is negative where the image grew
    left, top = (int(torch.randint(abs(room) + 1, ())) * (1 if room >= 0 else -1) for room in rooms)
    grey = 0.5 if image.is_floating_point() else 128
    # what is negative is cut off
    image = pad(image, [left, width - across - left, top, height - down - top], value=grey)
    ratios = boxes.new_tensor([across / width, down / height])
    return image, boxes * ratios.repeat(2) + boxes.new_tensor([left, top]).repeat(2)
