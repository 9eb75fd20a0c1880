"""Image files of every kind → RGB pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dfmsd.data.pixels import Exif, open_image, orientation, to_rgb, upright


def decoder() -> str:
    """What decodes ordinary JPEG files here, and what decodes all others, with their versions."""
    jpeg = f"torchvision {torchvision.__version__}, else " * hasattr(torchvision.io, "decode_jpeg")
    return f"{jpeg}Pillow {PIL.__version__}"


def decode_image(
    path: str | Path, size: tuple[int, int] | None = None, *, exif: Exif = "turn"
) -> Tensor:
    """An image file as RGB, uint8 (3, H, W), whatever its own colours; see `pixels.to_rgb`.

    Pixels may lie in memory colour by colour or point by point.

    Args:
        path: the file.
        size: (width, height) that the annotations state. Where it fits only the image as stored, or
            only the one that the EXIF tag turns, that one is given: the boxes were drawn on it.
        exif: whether a turn that the size does not settle is made.

    Raises:
        DataError: the file cannot be used (see `pixels.open_image`), or has another size.
    """
    with open_image(path) as file:
        pixels = _ordinary_jpeg(file, size)
        if pixels is None:
            rgb, _ = to_rgb(upright(file, size, exif))
            pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
        return pixels


def _ordinary_jpeg(file: Image.Image, size: tuple[int, int] | None) -> Tensor | None:
    """The pixels of an unturned grey or colour JPEG by torchvision, which is faster; else None."""
    # torchvision 0.29 calls it deprecated: without it Pillow gives the same pixels
    decode = getattr(torchvision.io, "decode_jpeg", None)
    ordinary = file.format == "JPEG" and file.mode in ("L", "RGB") and size in (None, file.size)
    if decode is None or not ordinary or orientation(file) != 1:
        return None
    file.fp.seek(0)
    try:
        return decode(torch.frombuffer(bytearray(file.fp.read()), dtype=torch.uint8), mode="RGB")
    except RuntimeError:
        return None  # Pillow says what is wrong


def reduced(width: int, height: int, max_size: int | None) -> tuple[int, int]:
    """(width, height) after the longer side is brought down to `max_size` ≥ 1, never up."""
    if max_size is not None and max_size < 1:
        raise ValueError(f"max_size must be at least 1, or None, got {max_size}")
    factor = 1.0 if max_size is None else min(1.0, max_size / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def read_image(path: str | Path, *, max_size: int | None = None) -> Tensor:
    """An image file as float (3, H, W) in 0..1, its longer side at most `max_size` pixels.

    Raises:
        DataError: the file cannot be read.
        ValueError: max_size below 1.
    """
    return to_float(reduce_image(decode_image(path), max_size)).contiguous()


def reduce_image(pixels: Tensor, max_size: int | None) -> Tensor:
    """An image (3, H, W) with its longer side at most `max_size` pixels."""
    width, height = reduced(pixels.shape[2], pixels.shape[1], max_size)
    return F.resize(pixels, [height, width], antialias=True)  # the very same where that is its size


def to_float(pixels: Tensor) -> Tensor:
    """Pixels of 0..255 (uint8) as float32 in 0..1, in the same order in memory; float ones stay."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)
