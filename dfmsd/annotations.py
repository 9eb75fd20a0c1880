"""COCO annotation files: find them, read them, say what is wrong with them."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

_OVERHANG = 1.0  # pixels; official COCO boxes stick out by fractions of one


class DataError(ValueError):
    """Data that cannot be used; one line that names file, entry and value."""


def find_split(root: str | Path, split: str) -> tuple[Path, Path]:
    """The image folder and the annotation file of a split, in the official or the plain layout.

    Args:
        root: the COCO-format folder.
        split: "train" or "val".

    Raises:
        FileNotFoundError: neither layout is there; the message names both.
    """
    root = Path(root)
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
        content = json.loads(Path(path).read_text(encoding="utf-8"))
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
    found: list[str] = []
    sizes: dict[Any, tuple[float, float]] = {}
    there = {path.name for path in images.iterdir()}
    for number, image in enumerate(content["images"]):
        name = f"image {image.get('id', f'number {number}')}"
        missing = [k for k in ("id", "file_name", "width", "height") if k not in image]
        if missing:
            found.append(f"{name}: {', '.join(missing)} missing")
            continue
        if image["id"] in sizes:
            found.append(f"{name}: id appears twice")
        sizes[image["id"]] = (image["width"], image["height"])
        file = image["file_name"]
        if file not in there and not (images / file).is_file():
            found.append(f"{name}: file {file!r} is not in {images}")
    categories = [category.get("id") for category in content["categories"]]
    for category in content["categories"]:
        if "id" not in category or "name" not in category:
            found.append(f"category {category}: id or name missing")
    found += [f"category {c}: id appears twice" for c, n in Counter(categories).items() if n > 1]
    seen: set[Any] = set()
    known = set(categories)
    for number, entry in enumerate(content["annotations"]):
        wrong = _box_problem(entry, sizes, known)
        if wrong is None and entry["id"] in seen:
            wrong = "id appears twice"
        seen.add(entry.get("id"))
        if wrong:
            found.append(f"annotation {entry.get('id', f'number {number}')}: {wrong}")
    return found


def _box_problem(entry: dict, sizes: dict, categories: set) -> str | None:
    """What is wrong with one annotation, or None."""
    missing = [k for k in ("id", "image_id", "category_id", "bbox") if k not in entry]
    if missing:
        return f"{', '.join(missing)} missing"
    if entry["image_id"] not in sizes:
        return f"image_id {entry['image_id']!r} is no image"
    if entry["category_id"] not in categories:
        return f"category_id {entry['category_id']!r} is no category"
    box = entry["bbox"]
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        return f"bbox must be four finite numbers, got {box!r}"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"bbox {box} has no size"
    limit = sizes[entry["image_id"]]
    over = max(-x, -y, x + width - limit[0], y + height - limit[1])
    if over > _OVERHANG:
        return f"bbox {box} lies outside image {entry['image_id']} of {limit[0]} x {limit[1]}"
    return None
