"""Image files of every kind → RGB pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F


class DataError(ValueError):
    """Data that cannot be used; one line that names file, entry and value."""


def decoder() -> str:
    """What decodes ordinary JPEG files here, and what decodes all others, with their versions."""
    jpeg = f"torchvision {torchvision.__version__}, else " * hasattr(torchvision.io, "decode_jpeg")
    return f"{jpeg}Pillow {PIL.__version__}"


def decode_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """An image file as RGB, uint8 (3, H, W), turned as its EXIF tag says, whatever its own colours.

    Transparency is dropped: the colour underneath shows. Pixels may lie in memory colour by colour
    or point by point.

    Args:
        path: the file.
        size: (width, height) that the annotations state. Where it fits only the unturned image,
            that one is given: the boxes were drawn on it.

    Raises:
        DataError: no such file, no image, a truncated one, or one of another size.
    """
    try:
        with Image.open(path) as file:
            pixels = _ordinary_jpeg(file, size)
            return _by_pillow(file, path, size) if pixels is None else pixels
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image") from None
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error})") from error


def _ordinary_jpeg(file: Image.Image, size: tuple[int, int] | None) -> Tensor | None:
    """The pixels of an unturned grey or colour JPEG by torchvision, which is faster; else None."""
    # torchvision 0.29 calls it deprecated: without it Pillow gives the same pixels
    decode = getattr(torchvision.io, "decode_jpeg", None)
    ordinary = file.format == "JPEG" and file.mode in ("L", "RGB") and size in (None, file.size)
    if decode is None or not ordinary or file.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    file.fp.seek(0)
    try:
        return decode(torch.frombuffer(bytearray(file.fp.read()), dtype=torch.uint8), mode="RGB")
    except RuntimeError:
        return None  # Pillow says what is wrong


def _by_pillow(file: Image.Image, path: str | Path, size: tuple[int, int] | None) -> Tensor:
    file.load()
    turned = ImageOps.exif_transpose(file)
    image = file if size is not None and turned.size != size == file.size else turned
    if size is not None and image.size != tuple(size):
        raise DataError(f"{path}: is {turned.size}, the annotations say {tuple(size)}")
    if image.mode.startswith("I"):  # 16 bits a channel
        image = image.point(lambda value: value / 256).convert("L")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def reduced(width: int, height: int, max_size: int | None) -> tuple[int, int]:
    """(width, height) after the longer side is brought down to `max_size`, never up."""
    factor = 1.0 if max_size is None else min(1.0, max_size / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def read_image(path: str | Path, *, max_size: int | None = None) -> Tensor:
    """An image file as float (3, H, W) in 0..1, its longer side at most `max_size` pixels.

    Raises:
        DataError: the file cannot be read.
    """
    return to_float(reduce_image(decode_image(path), max_size)).contiguous()


def reduce_image(pixels: Tensor, max_size: int | None) -> Tensor:
    """An image (3, H, W) with its longer side at most `max_size` pixels."""
    height, width = pixels.shape[1:]
    smaller = reduced(width, height, max_size)
    if smaller == (width, height):
        return pixels
    return F.resize(pixels, [smaller[1], smaller[0]], antialias=True)


def to_float(pixels: Tensor) -> Tensor:
    """Pixels of 0..255 (uint8) as float32 in 0..1, in the same order in memory; float ones stay."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)
