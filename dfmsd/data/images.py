"""Image files of every kind → RGB pixels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F


class DataError(ValueError):
    """Data that cannot be used; one line that names file, entry and value."""


def open_image(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """An image file as RGB, turned as its EXIF tag says; grey, CMYK, palette, 16-bit become RGB.

    Transparency is dropped: the colour underneath shows.

    Args:
        path: the file.
        size: (width, height) that the annotations state. Where it fits only the unturned image,
            that one is given: the boxes were drawn on it.

    Raises:
        DataError: no such file, no image, a truncated one, or one of another size.
    """
    try:
        with Image.open(path) as file:
            file.load()
            turned = ImageOps.exif_transpose(file)
            image = file if size is not None and turned.size != size == file.size else turned
            if size is not None and image.size != tuple(size):
                raise DataError(f"{path}: is {turned.size}, the annotations say {tuple(size)}")
            if image.mode.startswith("I"):  # 16 bits a channel
                image = image.point(lambda value: value / 256).convert("L")
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image") from None
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error})") from error


def reduced(width: int, height: int, max_size: int | None) -> tuple[int, int]:
    """(width, height) after the longer side is brought down to `max_size`, never up."""
    factor = 1.0 if max_size is None else min(1.0, max_size / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def read_image(path: str | Path, *, max_size: int | None = None) -> Tensor:
    """An image file as float (3, H, W) in 0..1, its longer side at most `max_size` pixels.

    Raises:
        DataError: the file cannot be read.
    """
    return to_pixels(open_image(path), max_size).float() / 255


def to_pixels(image: Image.Image, max_size: int | None) -> Tensor:
    """An RGB image as uint8 (3, H, W), reduced to `max_size`."""
    width, height = reduced(*image.size, max_size)
    pixels = F.pil_to_tensor(image)
    if (width, height) != image.size:
        pixels = F.resize(pixels, [height, width], antialias=True)
    return pixels
