"""The data set of a COCO-format folder: images and targets in the project's contract."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfmsd.data.annotations import class_names, find_split, read_annotations
from dfmsd.data.check import validate
from dfmsd.data.images import decode_image, reduce_image, reduced, to_float
from dfmsd.data.pixels import DataError, Exif


class CocoDataset(Dataset):
    """A split of a COCO-format folder: `dataset[i]` is (image float (3, H, W) in 0..1, target).

    Labels are 1..K in the order of the category ids, whatever gaps these have, and the same for all
    splits of the folder: its classes are those of all of them. Crowd regions are no
    training targets, nor are boxes that have no width or height left in float32; `truth()` keeps
    both for the evaluation. What grows with the data is held in tensors, which loader processes
    share.

    Args:
        root: the folder, see `find_split`.
        split: "train" or "val".
        max_size: longest side to which images (and boxes) are reduced, pixels.
        share: of the split's images, above 0 to 1; which ones is drawn once and for all.
        cache: keep decoded images in memory.
        exif: whether turns of an EXIF tag are made that the stated sizes do not settle.

    Raises:
        ValueError: max_size below 1, or a share that is not above 0 to 1.
        FileNotFoundError: no such split.
        DataError: the first thing wrong with the annotations, or classes of the splits that
            contradict each other; reading an image may raise it too.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        max_size: int | None = None,
        share: float = 1.0,
        cache: bool = False,
        exif: Exif = "turn",
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        self.folder, self.file = find_split(root, split)
        content = read_annotations(self.file)
        for problem in validate(content, self.folder, split)[0]:
            raise DataError(f"{self.file}: {problem}")
        names, contradictions = class_names(root)
        for contradiction in contradictions:
            raise DataError(f"{root}: {contradiction}")
        self.category_ids, self.classes = list(names), list(names.values())
        self.max_size, self.exif, self._cache = max_size, exif, {} if cache else None
        self._keep_images(_drawn(content["images"], share))
        self._keep_annotations(content["annotations"])

    def _keep_images(self, images: list[dict[str, Any]]) -> None:
        """Ids, file names, and sizes as (width, height), stated and reduced."""
        self._image_ids = torch.tensor([image["id"] for image in images], dtype=torch.int64)
        names = np.array([os.fsencode(image["file_name"]) for image in images], np.bytes_)
        letters = names.view(np.uint8).reshape(len(images), names.itemsize)  # filled up with zeros
        self._names = torch.from_numpy(letters)
        stated = [(image["width"], image["height"]) for image in images]
        self._stated = torch.tensor(stated, dtype=torch.float64).view(-1, 2)
        sizes = [reduced(*size, self.max_size) for size in stated]
        self._sizes = torch.tensor(sizes, dtype=torch.int64).view(-1, 2)

    def _keep_annotations(self, entries: list[dict[str, Any]]) -> None:
        """Image by image, all annotations in reduced pixels, and the boxes that are targets."""
        indices = {number: index for index, number in enumerate(self._image_ids.tolist())}
        entries = [e for e in entries if e["image_id"] in indices]  # of a share of the images
        images = torch.tensor([indices[e["image_id"]] for e in entries], dtype=torch.int64)
        images, order = images.sort(stable=True)
        labels = {category: label for label, category in enumerate(self.category_ids, start=1)}
        scale = (self._sizes / self._stated)[images]
        areas = [e["area"] if "area" in e else e["bbox"][2] * e["bbox"][3] for e in entries]
        boxes = np.array([e["bbox"] for e in entries], np.float64).reshape(-1, 4)

        def column(values: list, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(values, dtype=dtype)[order]

        self._annotations = {
            "id": column([e["id"] for e in entries]),
            "image_id": self._image_ids[images],
            "category_id": column([labels[e["category_id"]] for e in entries]),
            "bbox": torch.from_numpy(boxes)[order] * scale.repeat(1, 2),
            "area": column(areas, torch.float64) * scale[:, 0] * scale[:, 1],
            "iscrowd": column([e.get("iscrowd", 0) for e in entries], torch.uint8),
        }
        corners = self._annotations["bbox"].float()
        corners[:, 2:] += corners[:, :2]
        corners = corners.clamp(min=0).minimum(self._sizes[images].repeat(1, 2).float())
        solid = (corners[:, 2:] > corners[:, :2]).all(1) & (self._annotations["iscrowd"] == 0)
        self._boxes, self._labels = corners[solid], self._annotations["category_id"][solid]
        self._starts = torch.searchsorted(images[solid], torch.arange(len(self) + 1))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image that `dataset[i]` gives."""
        return [(height, width) for width, height in self._sizes.tolist()]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._image_ids)

    def _image(self, index: int) -> Tensor:
        """The decoded image as uint8 (3, H, W)."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        name = os.fsdecode(bytes(self._names[index].tolist()).rstrip(b"\0"))
        size = tuple(map(int, self._stated[index].tolist()))
        pixels = decode_image(self.folder / name, size, exif=self.exif)
        pixels = reduce_image(pixels, self.max_size)
        if self._cache is not None:
            self._cache[index] = pixels
        return pixels

    def read(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Image number `index` as uint8 (3, H, W) in 0..255, not to be written to, and target."""
        index = range(len(self))[index]
        mine = slice(*self._starts[index : index + 2].tolist())
        target = {"boxes": self._boxes[mine].clone(), "labels": self._labels[mine].clone()}
        return self._image(index), target | {"image_id": int(self._image_ids[index])}

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Image and target number `index`."""
        pixels, target = self.read(index)
        return to_float(pixels).contiguous(), target

    def truth(self) -> dict[str, Any]:
        """COCO-format dict in the pixels and labels that `dataset[i]` gives, crowds included."""
        ids = self._image_ids.tolist()
        images = [
            {"id": number, "width": width, "height": height}
            for number, (width, height) in zip(ids, self._sizes.tolist(), strict=True)
        ]
        categories = [{"id": k, "name": n} for k, n in enumerate(self.classes, start=1)]
        rows = zip(*(values.tolist() for values in self._annotations.values()), strict=True)
        entries = [dict(zip(self._annotations, row, strict=True)) for row in rows]
        return {"images": images, "annotations": entries, "categories": categories}


def _drawn(images: list[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """A share of the images, at least one, in their order."""
    count = max(1, round(share * len(images)))
    kept = sorted(random.Random(0).sample(range(len(images)), count)) if images else []
    return [images[index] for index in kept]
