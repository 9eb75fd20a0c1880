"""Image files by Pillow: which are opened, how they are turned and brought to 8 bits a colour."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
Exif = Literal["turn", "ignore"]
_TAG = ExifTags.Base.Orientation


class DataError(ValueError):
    """Data that cannot be used; one line that names file, entry and value."""


@contextlib.contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Context with an image file of `FORMATS`, of an animation the first frame.

    Whatever is wrong with it, also within the context, ends in one line that names it.

    Raises:
        DataError: no such file, none of these formats, more pixels than Pillow warns of (about 89
            million; nothing is decoded then), or a file that cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = Image.open(path, formats=FORMATS)
        with file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        known = " or ".join(", ".join(FORMATS).rsplit(", ", 1))
        raise DataError(f"{path}: not an image of {known}; convert HEIC, AVIF, …") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        raise DataError(f"{path}: {limit}; reduce it or cut it into tiles") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be decoded ({reason})") from error


def orientation(file: Image.Image) -> int:
    """The orientation that an EXIF tag states, 2 to 8; 1 for the stored one. To be asked first."""
    tag = file.getexif().get(_TAG, 1)
    return tag if tag in range(2, 9) else 1


def upright(file: Image.Image, size: tuple[int, int] | None, exif: Exif) -> Image.Image:
    """An image turned as its EXIF tag says, or as stored.

    The stated `size` (width, height) settles which, where it fits only one of the two; else `exif`
    does. Raises DataError when neither has that size.
    """
    image = file
    if (tag := orientation(file)) != 1:
        image = ImageOps.exif_transpose(file)
        stored = image.size[::-1] if tag > 4 else image.size
        settled = size is not None and stored != image.size
        if size == stored if settled else exif == "ignore":
            # turned back, as of a TIFF Pillow gives only the turned one
            image.getexif()[_TAG] = {6: 8, 8: 6}.get(tag, tag)
            image = ImageOps.exif_transpose(image)
    if size is not None and image.size != size:
        raise DataError(f"is {image.size}, the annotations say {size}")
    return image


def to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """An image of any mode with 8 bits a colour, and what its grey values were, "" for bytes.

    Transparency is dropped: the colour underneath shows. Of 16-bit colours Pillow gives the upper
    eight bits. Choice for grey values that are no bytes, image by image: with negative ones, least
    to largest become 0..255; floats below 2 count as shares of 255, cut at 1; all others are taken
    for numbers of 8, 10, 12 … bits, the fewest that hold the largest, and lose the lower ones.

    Raises:
        DataError: a float that is not finite.
    """
    if image.mode[0] not in "IF":
        return image.convert("RGB"), ""
    values = np.asarray(image)
    least, largest = float(values.min()), float(values.max())
    if not np.isfinite([least, largest]).all():
        raise DataError("has pixels that are no finite numbers")
    if least < 0:
        grey, words = np.rint((values - least) * (255 / (largest - least or 1))), "values below 0"
    elif image.mode == "F" and largest < 2:
        grey, words = np.rint(values.clip(max=1) * 255), "floats of 0..1"
    else:
        bits = max(8, int(largest).bit_length())
        bits += bits % 2
        grey, words = values // 2.0 ** (bits - 8), f"{bits} bits"
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB"), words


def inspect_image(path: str | Path, size: tuple[int, int]) -> list[str]:
    """What should be known of an image of the stated size (width, height) that can be used.

    Raises:
        DataError: it cannot be used.
    """
    remarks = []
    with open_image(path) as file:
        colours16 = ";16" in str(file.tile) and file.mode[0] != "I"
        tag, image = orientation(file), upright(file, size, "turn")
        image.load()
        if tag in (2, 3, 4) or (tag != 1 and image.width == image.height):
            remarks.append("an EXIF turn that the stated size does not settle, see data.exif")
        if colours16:
            remarks.append("16 bits a colour, of which the upper 8 are used")
        image, grey = to_rgb(image)
        if grey:
            remarks.append(f"grey values ({grey}) brought to 8 bits")
        if all(low == high for low, high in image.getextrema()):
            remarks.append("one colour all over")
    return remarks
