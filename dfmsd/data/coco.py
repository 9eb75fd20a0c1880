"""COCO-format folders: images and targets in the project's contract, and a check of the whole."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfmsd.data.check import DataError, find_split, problems, read_annotations
from dfmsd.data.images import open_image, reduced, to_pixels

SPLITS = ("train", "val")


class CocoDataset(Dataset):
    """A split of a COCO-format folder: `dataset[i]` is (image float (3, H, W) in 0..1, target).

    Labels are 1..K in the order of the category ids, whatever gaps these have. Crowd regions are no
    training targets, nor are boxes that have no width or height left in float32; `truth()` keeps
    both for the evaluation. Images without boxes have (0, 4).

    Args:
        root: the folder, see `find_split`.
        split: "train" or "val".
        max_size: longest side to which images (and boxes) are reduced, pixels.
        cache: keep decoded images in memory.

    Raises:
        ValueError: max_size below 1.
        FileNotFoundError: no such split.
        DataError: the first thing wrong with the annotations; reading an image may raise it too.
    """

    def __init__(
        self, root: str | Path, split: str, *, max_size: int | None = None, cache: bool = False
    ) -> None:
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size must be at least 1, or None, got {max_size}")
        self.folder, self.file = find_split(root, split)
        content = read_annotations(self.file)
        for problem in problems(content, self.folder):
            raise DataError(f"{self.file}: {problem}")
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [category["id"] for category in categories]
        self.classes = [category["name"] for category in categories]
        self.images = content["images"]
        self.max_size = max_size
        reduced_sizes = [reduced(i["width"], i["height"], max_size) for i in self.images]
        self.sizes = [(height, width) for width, height in reduced_sizes]
        self._entries = self._by_image(content["annotations"])
        self._cache: dict[int, Tensor] | None = {} if cache else None

    def _by_image(self, annotations: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Per image its annotations in reduced pixels, with labels for category ids."""
        place = {image["id"]: index for index, image in enumerate(self.images)}
        label = {category: k for k, category in enumerate(self.category_ids, start=1)}
        entries: list[list[dict[str, Any]]] = [[] for _ in self.images]
        for entry in annotations:
            index = place[entry["image_id"]]
            image, (height, width) = self.images[index], self.sizes[index]
            across, down = width / image["width"], height / image["height"]
            x, y, w, h = entry["bbox"]
            area = entry.get("area", w * h) * across * down
            entries[index].append(
                {
                    "id": entry["id"],
                    "image_id": entry["image_id"],
                    "category_id": label[entry["category_id"]],
                    "bbox": [x * across, y * down, w * across, h * down],
                    "area": area,
                    "iscrowd": int(entry.get("iscrowd", 0)),
                }
            )
        return entries

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def _image(self, index: int) -> Tensor:
        """The decoded image as uint8 (3, H, W)."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        image = self.images[index]
        stated = (image["width"], image["height"])
        pixels = to_pixels(open_image(self.folder / image["file_name"], stated), self.max_size)
        if self._cache is not None:
            self._cache[index] = pixels
        return pixels

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Image and target number `index`."""
        entries = [entry for entry in self._entries[index] if not entry["iscrowd"]]
        boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        height, width = self.sizes[index]
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = boxes.clamp(min=0).minimum(limits)
        labels = torch.tensor([e["category_id"] for e in entries], dtype=torch.int64)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        target = {
            "boxes": boxes[kept],
            "labels": labels[kept],
            "image_id": self.images[index]["id"],
        }
        return self._image(index).float() / 255, target

    def truth(self) -> dict[str, Any]:
        """COCO-format dict in the pixels and labels that `dataset[i]` gives, crowds included."""
        images = [
            {"id": image["id"], "width": width, "height": height}
            for image, (height, width) in zip(self.images, self.sizes, strict=True)
        ]
        categories = [{"id": k, "name": n} for k, n in enumerate(self.classes, start=1)]
        entries = [entry for group in self._entries for entry in group]
        return {"images": images, "annotations": entries, "categories": categories}


@dataclass
class Report:
    """What `check` found: counts per split, and everything that is wrong, a line each."""

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
            shown = ", ".join(f"{name} {count}" for name, count in common)
            rest = len(self.classes[split]) - len(common)
            lines.append(f"    boxes by class: {shown}" + (f", {rest} more" if rest > 0 else ""))
        lines += [f"  {problem}" for problem in self.problems]
        count = len(self.problems)
        return "\n".join([*lines, f"  {count or 'no'} problem{'s' * (count != 1)}"])


def check(root: str | Path, split: str | None = None) -> Report:
    """Everything wrong with a COCO-format folder, and what it holds; every image is decoded.

    Args:
        root: the folder.
        split: "train" or "val"; every split that is there when None.

    Raises:
        FileNotFoundError: no such split.
        DataError: an annotation file that cannot be read at all.
    """
    report = Report(Path(root))
    for name in (split,) if split else SPLITS:
        try:
            images, annotations = find_split(root, name)
        except FileNotFoundError:
            if split or (name == SPLITS[-1] and not report.splits):
                raise
            continue
        content = read_annotations(annotations)
        wrong = problems(content, images) + _image_problems(content, images)
        report.problems += [f"{annotations}: {problem}" for problem in wrong]
        report.splits[name] = _counts(content)
        report.classes[name] = _class_counts(content)
    return report


def _image_problems(content: dict[str, Any], images: Path) -> list[str]:
    """The images that cannot be decoded or have another size than stated."""
    found = []
    for image in content["images"]:
        if not isinstance(image, dict):
            continue
        file, size = image.get("file_name"), (image.get("width"), image.get("height"))
        # what is missing here is on the list of `problems`
        if None in size or not isinstance(file, str) or not (images / file).is_file():
            continue
        try:
            open_image(images / file, size)
        except DataError as error:
            found.append(f"image {image.get('id')}: {error}")
    return found


def _entries(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The entries of a list that can be counted: objects."""
    return [entry for entry in content[key] if isinstance(entry, dict)]


def _class_counts(content: dict[str, Any]) -> Counter:
    """How many annotations each class has; "?" for those of no known category."""
    names = {str(c.get("id")): str(c.get("name")) for c in _entries(content, "categories")}
    found = (str(e.get("category_id")) for e in _entries(content, "annotations"))
    return Counter(names.get(category, "?") for category in found)


def _area(entry: dict[str, Any]) -> float:
    """The area of an annotation, its box's unless stated; NaN when neither can be told."""
    area, box = entry.get("area"), entry.get("bbox")
    if isinstance(area, int | float):
        return area
    numbers = isinstance(box, list) and all(isinstance(value, int | float) for value in box)
    return box[2] * box[3] if numbers and len(box) == 4 else math.nan


def _counts(content: dict[str, Any]) -> dict[str, int]:
    """How many images and boxes of which kind."""
    entries = _entries(content, "annotations")
    plain = [e for e in entries if not e.get("iscrowd", 0)]
    areas = [_area(e) for e in plain]
    used = {str(entry.get("image_id")) for entry in entries}
    images = _entries(content, "images")
    return {
        "images": len(images),
        "without boxes": sum(str(image.get("id")) not in used for image in images),
        "boxes": len(plain),
        "crowds": len(entries) - len(plain),
        "small": sum(area < 32**2 for area in areas),
        "medium": sum(32**2 <= area < 96**2 for area in areas),
        "large": sum(area >= 96**2 for area in areas),
    }
