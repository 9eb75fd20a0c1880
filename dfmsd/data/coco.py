"""The data set of a COCO-format folder: images and targets in the project's contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfmsd.data.check import find_split, problems, read_annotations
from dfmsd.data.images import DataError, open_image, reduced, to_pixels


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
        self.images, self.max_size = content["images"], max_size
        sizes = (reduced(i["width"], i["height"], max_size) for i in self.images)
        self.sizes = [(height, width) for width, height in sizes]
        self._entries = self._by_image(content["annotations"])
        self._cache: dict[int, Tensor] | None = {} if cache else None

    def _by_image(self, annotations: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Per image its annotations in reduced pixels, with labels for category ids."""
        indices = {image["id"]: index for index, image in enumerate(self.images)}
        labels = {category: label for label, category in enumerate(self.category_ids, start=1)}
        entries: list[list[dict[str, Any]]] = [[] for _ in self.images]
        for entry in annotations:
            index = indices[entry["image_id"]]
            image, (height, width) = self.images[index], self.sizes[index]
            across, down = width / image["width"], height / image["height"]
            x, y, w, h = entry["bbox"]
            values = {
                "id": entry["id"],
                "image_id": entry["image_id"],
                "category_id": labels[entry["category_id"]],
                "bbox": [x * across, y * down, w * across, h * down],
                "area": entry.get("area", w * h) * across * down,
                "iscrowd": int(entry.get("iscrowd", 0)),
            }
            entries[index].append(values)
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
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        target = {"boxes": boxes[solid], "labels": labels[solid]}
        return self._image(index).float() / 255, target | {"image_id": self.images[index]["id"]}

    def truth(self) -> dict[str, Any]:
        """COCO-format dict in the pixels and labels that `dataset[i]` gives, crowds included."""
        images = [
            {"id": image["id"], "width": width, "height": height}
            for image, (height, width) in zip(self.images, self.sizes, strict=True)
        ]
        categories = [{"id": k, "name": n} for k, n in enumerate(self.classes, start=1)]
        entries = [entry for group in self._entries for entry in group]
        return {"images": images, "annotations": entries, "categories": categories}
