"""The check of a COCO-format folder: what it holds, what is wrong, and what is strange."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dfmsd.data.annotations import LISTS, class_names, find_split, find_splits, read_annotations
from dfmsd.data.fields import Entry, examine, names_file_in, once, one_of, shown
from dfmsd.data.pixels import DataError, inspect_image

_OVERHANG = 1.0  # pixels; official COCO boxes stick out by fractions of one

# The two boxes without height in the official train2017 (and train2014), by annotation id; see
# github.com/cocodataset/cocoapi issue 355. Everybody drops them, nobody can mend the file.
_OFFICIAL_FLAT = ((918, [296.65, 388.33, 1.03, 0.0]), (2206849, [9.98, 188.56, 5.54, 0.0]))


@dataclass
class Report:
    """What a folder holds, counted per split, and a line for everything wrong or strange.

    `problems` make it unusable; `warnings` are possible, but seldom meant.
    """

    root: Path
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    classes: dict[str, Counter] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A short text for a terminal."""
        lines = [str(self.root)]
        for split, counts in self.splits.items():
            lines.append(f"{split}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
            common = self.classes[split].most_common(8)
            boxes = [f"{shown(name)[1:-1]} {count}" for name, count in common]
            if rest := len(self.classes[split]) - len(common):
                boxes.append(f"{rest} more")
            lines.append(f"  boxes by class: {', '.join(boxes)}")
        lines += [*self.problems, *(f"warning: {warning}" for warning in self.warnings)]
        warnings = f"{_count('warning', self.warnings)}, " if self.warnings else ""
        return "\n  ".join([*lines, warnings + _count("problem", self.problems)])


def _count(kind: str, things: list) -> str:
    """How many things of a kind there are."""
    ending = ("es" if kind.endswith("s") else "s") * (len(things) != 1)
    return f"{len(things) or 'no'} {kind}{ending}"


def _some(kind: str, things: list[object]) -> str:
    """How many things of a kind there are, and the first three."""
    some = ", ".join(map(shown, things[:3]))
    return f"{_count(kind, things)} ({some}{', …' * (len(things) > 3)})"


def check(root: str | Path, split: str | None = None) -> Report:
    """Everything wrong or strange in a COCO-format folder, and what it holds that is sound.

    Every image is decoded. `split` is "train" or "val"; None checks every split that is there.

    Raises:
        FileNotFoundError: no such split.
        DataError: an annotation file that cannot be read at all.
    """
    report, pictures = Report(Path(root)), {}
    found = {split: find_split(root, split)} if split else find_splits(root)
    contents = {name: read_annotations(file) for name, (_, file) in found.items()}
    names, contradictions = class_names(root)
    for name, (folder, file) in found.items():
        lines, sound = validate(contents.pop(name), folder, name)
        damaged, strange = _inspect(sound["images"], folder)
        report.problems += [f"{file}: {line}" for line in (*lines, *damaged)]
        report.warnings += [f"{file}: {line}" for line in (*_implausible(sound), *strange)]
        report.splits[name] = _counts(sound)
        boxes = [entry for entry in sound["annotations"] if not entry.get("iscrowd", 0)]
        report.classes[name] = Counter(names[entry["category_id"]] for entry in boxes)
        pictures[name] = [folder / image["file_name"] for image in sound["images"]]
    report.problems += [f"{root}: {line}" for line in contradictions]
    unused = [name for name in names.values() if not any(c[name] for c in report.classes.values())]
    if unused and not split:
        report.warnings.append(f"{root}: {_some('class', unused)} without a box")
    if len(pictures) == 2 and (both := _copies(pictures["train"], pictures["val"])):
        report.warnings.append(f"{root}: {_some('image', both)} of val in train too")
    return report


def validate(
    content: dict[str, Any], images: Path, split: str
) -> tuple[list[str], dict[str, list[Entry]]]:
    """What makes a split unusable, a line per entry with all its faults, and the sound entries.

    No image is opened.

    Args:
        content: of the annotation file, its three lists by name, as are the sound entries.
        images: the folder of the image files.
        split: "train" or "val"; the former must have boxes to learn from.
    """
    listed = examine(content["images"][::-1], "image", {})  # backwards: of one id, the first counts
    # an image that is wrong itself is no reason to complain about its boxes too
    sizes = {
        image["id"]: None if wrong else (image["width"], image["height"])
        for image, wrong in listed
        if isinstance(image, dict) and type(image.get("id")) is int
    }
    listed = examine(content["categories"], "category", {})
    categories = {category["id"] for category, wrong in listed if not wrong}
    rules = {
        "image": {"file_name": names_file_in(images)},
        "category": {},
        "annotation": {
            "image_id": one_of("image_id", sizes, "is no image"),
            "category_id": one_of("category_id", categories, "is no category"),
            "bbox": lambda entry: _box_problem(entry, sizes),
        },
    }
    lines, sound = [], {key: [] for key in LISTS}
    for key, kind in LISTS.items():
        examined = examine(content[key], kind, {"id": once("id")} | rules[kind])
        for number, (entry, wrong) in enumerate(examined):
            if not wrong:
                sound[key].append(entry)
                continue
            known = isinstance(entry, dict) and "id" in entry
            name = shown(entry["id"]) if known else f"number {number}"
            lines.append(f"{kind} {name}: {wrong}")
    return [*lines, *_split_problems(sound["annotations"], split)], sound


def _split_problems(annotations: list[Entry], split: str) -> Iterator[str]:
    """What makes annotations useless though each is sound."""
    if annotations and all(max(entry["bbox"]) <= 1 for entry in annotations):
        yield "every box lies in 0..1: COCO's boxes are pixels, not shares of the image"
    if all(entry.get("iscrowd", 0) for entry in annotations) and (annotations or split == "train"):
        yield "not one box to learn from or to find; a crowd region (iscrowd 1) is none"


def _box_problem(entry: Entry, sizes: dict[int, tuple[float, float] | None]) -> str:
    """What is wrong with a box of one of the images of `sizes` (width, height; None: not known)."""
    box, image = entry["bbox"], entry.get("image_id")
    size = sizes.get(image) if isinstance(image, int) else None
    if size is None or (entry.get("id"), box) in _OFFICIAL_FLAT:
        return ""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"{box} has no size"
    for low, high, side in ((x, x + width, size[0]), (y, y + height, size[1])):
        meets = low < high and low < side and high > 0
        if not (meets and low >= -_OVERHANG and high <= side + _OVERHANG):
            return f"{box} lies outside image {image} of {size[0]} x {size[1]}"
    return ""


def _inspect(images: list[Entry], folder: Path) -> tuple[list[str], list[str]]:
    """A line for each image that cannot be used, and one for each kind of strange ones."""
    damaged, strange = [], defaultdict(list)
    for image in images:
        try:
            name, size = image["file_name"], (image["width"], image["height"])
            for remark in inspect_image(folder / name, size):
                strange[remark].append(name)
        except DataError as error:
            damaged.append(f"image {image['id']}: {error}")
    return damaged, [f"{_some('image', names)}: {remark}" for remark, names in strange.items()]


def _implausible(sound: dict[str, list[Entry]]) -> Iterator[str]:
    """What is possible for one entry, and hardly for all."""
    files = Counter(os.path.normpath(image["file_name"]) for image in sound["images"])
    if twice := [name for name, count in files.items() if count > 1]:
        yield f"{_some('file', twice)} under several image ids"
    entries = sound["annotations"]
    sizes = {image["id"]: image["width"] * image["height"] for image in sound["images"]}
    image = np.array([sizes.get(entry["image_id"], np.inf) for entry in entries])
    width, height = np.array([entry["bbox"][2:] for entry in entries], np.float64).reshape(-1, 2).T
    if len(entries) > 1 and (width * height >= 0.99 * image).all():
        yield "every box is as large as its image"
    ids = np.array([entry["id"] for entry in entries])
    area = np.array([entry.get("area", np.nan) for entry in entries], np.float64)
    # a mask of whole pixels may reach over the edges of its box by one
    for wrong, words in (
        ((area == 0) & (width * height > 0), "of area 0, though the box has one"),
        (area > 1.5 * (width + 1) * (height + 1), "of an area far above width × height of the box"),
    ):
        if wrong.any():
            yield f"{_some('annotation', ids[wrong].tolist())} {words}"


def _copies(train: list[Path], val: list[Path]) -> list[str]:
    """Names of the images of val whose file, by content, is one of train's too."""

    def digest(path: Path) -> bytes:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "blake2b").digest()

    sizes = {path.stat().st_size for path in val}
    known = {digest(path) for path in train if path.stat().st_size in sizes}
    return [path.name for path in val if known and digest(path) in known]


def _counts(sound: dict[str, list[Entry]]) -> dict[str, int]:
    entries, images = sound["annotations"], sound["images"]
    plain = [entry for entry in entries if not entry.get("iscrowd", 0)]
    areas = [entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in plain]
    annotated = {entry["image_id"] for entry in entries}
    by_size = np.histogram(areas, [0, 32**2, 96**2, np.inf])[0].tolist()
    return {
        "images": len(images),
        "without boxes": sum(image["id"] not in annotated for image in images),
        "boxes": len(plain),
        "crowds": len(entries) - len(plain),
    } | dict(zip(("small", "medium", "large"), by_size, strict=True))
