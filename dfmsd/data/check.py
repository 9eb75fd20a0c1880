"""COCO-format folders: find a split, read its annotations, say what is wrong and what is there."""

from __future__ import annotations

import gc
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfmsd.data.fields import field_problem, is_box, is_integer, is_number
from dfmsd.data.images import DataError, decode_image

Entry = dict[str, Any]

_OVERHANG = 1.0  # pixels; official COCO boxes stick out by fractions of one

# The two boxes without height in the official train2017 (and train2014), by annotation id; see
# github.com/cocodataset/cocoapi issue 355. Everybody drops them, nobody can mend the file.
_OFFICIAL_FLAT = {918: [296.65, 388.33, 1.03, 0.0], 2206849: [9.98, 188.56, 5.54, 0.0]}


def find_split(root: str | Path, split: str) -> tuple[Path, Path]:
    """Image folder and annotation file of "train" or "val", in the official or the plain layout.

    Raises:
        FileNotFoundError: no such folder, or neither layout in it; the message names both.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    tried = []
    for name in (f"{split}2017", split):
        images, annotations = root / name, root / "annotations" / f"instances_{name}.json"
        if images.is_dir() and annotations.is_file():
            return images, annotations
        tried.append(f"{name}/ with annotations/instances_{name}.json")
    raise FileNotFoundError(f"{root}: no {split} split; looked for {' and for '.join(tried)}")


def find_splits(root: str | Path) -> dict[str, tuple[Path, Path]]:
    """Each split that a folder has, "train" and "val", with its image folder and annotation file.

    Raises:
        FileNotFoundError: it has neither.
    """
    found = {}
    for split in ("train", "val"):
        try:
            found[split] = find_split(root, split)
        except FileNotFoundError:
            if split == "val" and not found:
                raise
    return found


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; DataError when it is none (cut off, say)."""
    collecting = gc.isenabled()
    gc.disable()  # it would look through the growing content again and again, for half of the time
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f", line {error.lineno}, column {error.colno}" if hasattr(error, "lineno") else ""
        raise DataError(f"{path}{where}: not JSON ({getattr(error, 'msg', error)})") from error
    finally:
        if collecting:
            gc.enable()


def read_annotations(path: str | Path) -> dict[str, Any]:
    """The content of an annotation file, its three lists present.

    Raises:
        DataError: not JSON, or a list is missing.
    """
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: no list {key!r}")
    return content


def problems(content: dict[str, Any], images: Path) -> list[str]:
    """What is wrong with the entries of an annotation file, a line each; no image is opened.

    `images` is the folder of the image files.
    """
    with os.scandir(images) as listing:
        files = {entry.name for entry in listing if entry.is_file()}
    sizes: dict[int, tuple[float, float] | None] = {}
    for image in _objects(content, "images"):
        if is_integer(image.get("id")):
            # an image that is wrong itself is no reason to complain about its boxes too
            usable = field_problem(image, "image") is None
            sizes.setdefault(image["id"], (image["width"], image["height"]) if usable else None)
    categories = {c["id"] for c in _objects(content, "categories") if is_integer(c.get("id"))}

    def image_problem(image: Entry) -> str | None:
        file = image["file_name"]
        present = file in files or (images / file).is_file()
        return None if present else f"file {file!r} is not in {images}"

    def annotation_problem(entry: Entry) -> str | None:
        if entry["image_id"] not in sizes:
            return f"image_id {entry['image_id']} is no image"
        if entry["category_id"] not in categories:
            return f"category_id {entry['category_id']} is no category"
        return _box_problem(entry, sizes[entry["image_id"]])

    return [
        *_lines("image", content["images"], image_problem),
        *_lines("category", content["categories"], lambda category: None),
        *_lines("annotation", content["annotations"], annotation_problem),
    ]


def _objects(content: dict[str, Any], key: str) -> list[Entry]:
    return [entry for entry in content[key] if isinstance(entry, dict)]


def _lines(kind: str, entries: list[Any], rule: Callable[[Entry], str | None]) -> Iterator[str]:
    """A line for each entry whose fields are wrong, or to which `rule` objects."""
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        wrong = field_problem(entry, kind)
        if wrong is None:
            wrong = "id appears twice" if entry["id"] in seen else rule(entry)
            seen.add(entry["id"])
        if wrong is not None:
            known = isinstance(entry, dict) and "id" in entry
            yield f"{kind} {entry['id'] if known else f'number {number}'}: {wrong}"


def _box_problem(entry: Entry, size: tuple[float, float] | None) -> str | None:
    """What is wrong with a box of an image of `size` (width, height; None: not known), or None."""
    box, image = entry["bbox"], entry["image_id"]
    if size is None or _OFFICIAL_FLAT.get(entry["id"]) == box:
        return None
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"bbox {box} has no size"
    if not (_overlaps(x, x + width, size[0]) and _overlaps(y, y + height, size[1])):
        return f"bbox {box} lies outside image {image} of {size[0]} x {size[1]}"
    return None


def _overlaps(low: float, high: float, side: float) -> bool:
    """Whether low..high meets 0..side and sticks out by a pixel at most."""
    return -_OVERHANG <= low < high <= side + _OVERHANG and low < side and high > 0


@dataclass
class Report:
    """What a folder holds, counted per split, and everything that is wrong, a line each."""

    root: Path
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    classes: dict[str, Counter] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A short text for a terminal."""
        lines = [str(self.root)]
        for split, counts in self.splits.items():
            lines.append(f"  {split}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
            common = self.classes[split].most_common(8)
            boxes = ", ".join(f"{name} {count}" for name, count in common)
            rest = len(self.classes[split]) - len(common)
            lines.append(f"    boxes by class: {boxes}" + (f", {rest} more" if rest > 0 else ""))
        lines += [f"  {problem}" for problem in self.problems]
        count = len(self.problems)
        return "\n".join([*lines, f"  {count or 'no'} problem{'s' * (count != 1)}"])


def check(root: str | Path, split: str | None = None) -> Report:
    """Everything wrong with a COCO-format folder, and what it holds; every image is decoded.

    `split` is "train" or "val"; None checks every split that is there.

    Raises:
        FileNotFoundError: no such split.
        DataError: an annotation file that cannot be read at all.
    """
    report = Report(Path(root))
    for name in (split,) if split else ("train", "val"):
        try:
            images, annotations = find_split(root, name)
        except FileNotFoundError:
            if split or (name == "val" and not report.splits):
                raise
            continue
        content = read_annotations(annotations)
        for line in (*problems(content, images), *_undecodable(content, images)):
            report.problems.append(f"{annotations}: {line}")
        report.splits[name] = _counts(content)
        names = {str(c.get("id")): str(c.get("name")) for c in _objects(content, "categories")}
        ids = (str(entry.get("category_id")) for entry in _objects(content, "annotations"))
        report.classes[name] = Counter(names.get(category, "?") for category in ids)
    return report


def _undecodable(content: dict[str, Any], images: Path) -> Iterator[str]:
    """A line for each image that cannot be decoded or has another size than stated."""
    for image in _objects(content, "images"):
        file, size = image.get("file_name"), (image.get("width"), image.get("height"))
        # what is missing here is on the list of `problems`
        if None in size or not isinstance(file, str) or not (images / file).is_file():
            continue
        try:
            decode_image(images / file, size)
        except DataError as error:
            yield f"image {image.get('id')}: {error}"


def _counts(content: dict[str, Any]) -> dict[str, int]:
    entries, images = _objects(content, "annotations"), _objects(content, "images")
    areas = [_area(entry) for entry in entries if not entry.get("iscrowd", 0)]
    annotated = {str(entry.get("image_id")) for entry in entries}
    return {
        "images": len(images),
        "without boxes": sum(str(image.get("id")) not in annotated for image in images),
        "boxes": len(areas),
        "crowds": len(entries) - len(areas),
        "small": sum(area < 32**2 for area in areas),
        "medium": sum(32**2 <= area < 96**2 for area in areas),
        "large": sum(area >= 96**2 for area in areas),
    }


def _area(entry: Entry) -> float:
    """The area of an annotation, its box's unless stated; NaN when neither can be told."""
    area, box = entry.get("area"), entry.get("bbox")
    if is_number(area):
        return area
    return box[2] * box[3] if is_box(box) else math.nan
