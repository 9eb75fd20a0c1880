"""COCO annotation files: find them, read them, say what is wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_OVERHANG = 1.0  # pixels; official COCO boxes stick out by fractions of one

# The two boxes without height in the official train2017 (and train2014), by annotation id; see
# github.com/cocodataset/cocoapi issue 355. Everybody drops them, nobody can mend the file.
_OFFICIAL_FLAT = {918: [296.65, 388.33, 1.03, 0.0], 2206849: [9.98, 188.56, 5.54, 0.0]}


class DataError(ValueError):
    """Data that cannot be used; one line that names file, entry and value."""


def find_split(root: str | Path, split: str) -> tuple[Path, Path]:
    """The image folder and the annotation file of a split, in the official or the plain layout.

    Args:
        root: the COCO-format folder.
        split: "train" or "val".

    Raises:
        FileNotFoundError: no such folder, or neither layout in it; the message names both.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    tried = []
    for name in (f"{split}2017", split):
        images, annotations = root / name, root / "annotations" / f"instances_{name}.json"
        if images.is_dir() and annotations.is_file():
            return images, annotations
        tried.append(f"{name}/ with annotations/instances_{name}.json")
    raise FileNotFoundError(f"{root}: no {split} split; looked for {' and for '.join(tried)}")


def read_annotations(path: str | Path) -> dict[str, Any]:
    """The content of an annotation file, its three lists present.

    Raises:
        DataError: not JSON (cut off, say), or a list is missing.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f", line {error.lineno}, column {error.colno}" if hasattr(error, "lineno") else ""
        raise DataError(f"{path}{where}: not JSON ({getattr(error, 'msg', error)})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: no list {key!r}")
    return content


def problems(content: dict[str, Any], images: Path) -> list[str]:
    """What is wrong with the entries of an annotation file, a line each; no image is opened.

    Args:
        content: see `read_annotations`.
        images: the folder that should hold the image files.
    """
    with os.scandir(images) as listing:
        there = {entry.name for entry in listing if entry.is_file()}
    found: list[str] = []
    sizes: dict[int, tuple[float, float] | None] = {}
    for number, image in enumerate(content["images"]):
        wrong = _image_problem(image, sizes, there, images)
        if wrong:
            found.append(f"image {_name(image, number)}: {wrong}")
        if isinstance(image, dict) and _whole(image.get("id")):
            usable = all(_positive(image.get(side)) for side in ("width", "height"))
            # an image that is wrong already is no reason to complain about its boxes too
            sizes.setdefault(image["id"], (image["width"], image["height"]) if usable else None)
    categories: set[int] = set()
    for number, category in enumerate(content["categories"]):
        wrong = _category_problem(category, categories)
        if wrong:
            found.append(f"category {_name(category, number)}: {wrong}")
        if isinstance(category, dict) and _whole(category.get("id")):
            categories.add(category["id"])
    seen: set[int] = set()
    for number, entry in enumerate(content["annotations"]):
        wrong = _annotation_problem(entry, sizes, categories, seen)
        if wrong:
            found.append(f"annotation {_name(entry, number)}: {wrong}")
        if isinstance(entry, dict) and _whole(entry.get("id")):
            seen.add(entry["id"])
    return found


def _name(entry: Any, number: int) -> str:
    """An entry's id, or its place in the list."""
    known = isinstance(entry, dict) and "id" in entry
    return str(entry["id"]) if known else f"number {number}"


def _whole(value: Any) -> bool:
    """Whether `value` is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    """Whether `value` is a finite number of the size of pixels (an area: 1e9² of them)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


def _positive(value: Any) -> bool:
    """Whether `value` is a finite number above 0."""
    return _number(value) and value > 0


def _shape_problem(entry: Any, fields: tuple[str, ...], ids: tuple[str, ...]) -> str | None:
    """No object, a missing field, or an id that is no integer."""
    if not isinstance(entry, dict):
        return f"expected an object, got {entry!r}"
    missing = [field for field in fields if field not in entry]
    if missing:
        return f"{', '.join(missing)} missing"
    for field in ids:
        if not _whole(entry[field]):
            return f"{field} must be an integer, got {entry[field]!r}"
    return None


def _image_problem(image: Any, sizes: dict, there: set[str], folder: Path) -> str | None:
    """What is wrong with one image entry, or None."""
    wrong = _shape_problem(image, ("id", "file_name", "width", "height"), ("id",))
    if wrong:
        return wrong
    if image["id"] in sizes:
        return "id appears twice"
    for side in ("width", "height"):
        if not _positive(image[side]):
            return f"{side} must be a number above 0, got {image[side]!r}"
    file = image["file_name"]
    if not isinstance(file, str):
        return f"file_name must be a text, got {file!r}"
    if file not in there and not (folder / file).is_file():
        return f"file {file!r} is not in {folder}"
    return None


def _category_problem(category: Any, seen: set[int]) -> str | None:
    """What is wrong with one category, or None."""
    wrong = _shape_problem(category, ("id", "name"), ("id",))
    if wrong:
        return wrong
    if not isinstance(category["name"], str):
        return f"name must be a text, got {category['name']!r}"
    return "id appears twice" if category["id"] in seen else None


def _annotation_problem(entry: Any, sizes: dict, categories: set, seen: set) -> str | None:
    """What is wrong with one annotation, or None."""
    ids = ("id", "image_id", "category_id")
    wrong = _shape_problem(entry, (*ids, "bbox"), ids)
    if wrong:
        return wrong
    if entry["image_id"] not in sizes:
        return f"image_id {entry['image_id']} is no image"
    if entry["category_id"] not in categories:
        return f"category_id {entry['category_id']} is no category"
    if entry["id"] in seen:
        return "id appears twice"
    if "area" in entry and not (_number(entry["area"]) and entry["area"] >= 0):
        return f"area must be a number from 0 up, got {entry['area']!r}"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd must be 0 or 1, got {entry['iscrowd']!r}"
    if _OFFICIAL_FLAT.get(entry["id"], ()) == entry["bbox"]:
        return None
    return _box_problem(entry["bbox"], entry["image_id"], sizes[entry["image_id"]])


def _box_problem(box: Any, image: int, size: tuple[float, float] | None) -> str | None:
    """What is wrong with a box of an image of `size` (width, height), or None."""
    if not (isinstance(box, list) and len(box) == 4 and all(map(_number, box))):
        return f"bbox must be four finite numbers, got {box!r}"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"bbox {box} has no size"
    if size is None:
        return None
    over = max(-x, -y, x + width - size[0], y + height - size[1])
    inside = min(x + width, size[0]) > max(x, 0) and min(y + height, size[1]) > max(y, 0)
    if over > _OVERHANG or not inside:
        return f"bbox {box} lies outside image {image} of {size[0]} x {size[1]}"
    return None
