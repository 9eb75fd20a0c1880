"""Input over torchvision's reference, the data check, and a large data set's memory.

    python benchmarks/data.py

The reference is torchvision's `references/detection` with v2 transforms: `CocoDetection` wrapped
for them, images as tensors first, a flip, float in 0..1, boxes sanitised, lists as batches. It has
no resizing of its own here (its models do that), so it gets the fastest that v2 offers: the longer
side brought to 416 pixels on the decoded uint8 tensor.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ratio import Measure, cpu_seconds, main, measure, ratios
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from dfmsd.data.augmentation import augmentation
from dfmsd.data.batches import Batches
from dfmsd.data.coco import CocoDataset
from dfmsd.data.commands import data_check

LONGEST, BATCH = 416, 8


def photograph(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    """Coloured noise on several scales, as the texture of a photograph."""
    image = Image.new("RGB", (width, height))
    for cells in (4, 16, 64, 256):
        noise = draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        image = Image.blend(image, layer, 1 / np.log2(cells))
    grain = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.blend(image, Image.fromarray(grain), 0.08)


def write_annotations(root: Path, images: int, boxes: int, size: tuple[int, int]) -> Path:
    """The annotation file of a COCO-format folder, boxes only; `boxes` in all, over 80 classes."""
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    draw, (width, height) = np.random.default_rng(0), size
    low = draw.uniform(0, 0.6, (boxes, 2)) * size
    sides = draw.uniform(0.02, 0.4, (boxes, 2)) * size
    rows = np.concatenate([low, sides], 1).round(2).tolist()
    common = {"width": width, "height": height}
    content = {
        "images": [{"id": i, "file_name": f"{i:012}.jpg", **common} for i in range(images)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": number % images,
                "category_id": number % 80 + 1,
                "bbox": box,
                "area": round(box[2] * box[3], 2),
                "iscrowd": int(number % 100 == 99),
            }
            for number, box in enumerate(rows)
        ],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 81)],
    }
    file = root / "annotations" / "instances_train.json"
    file.write_text(json.dumps(content))
    return file


def folder(root: Path, images: int, boxes: int, size: tuple[int, int]) -> Path:
    """A COCO-format folder with JPEG files of that (width, height), quality 90."""
    write_annotations(root, images, boxes, size)
    draw = np.random.default_rng(1)
    different = [io.BytesIO() for _ in range(min(images, 64))]
    for file in different:
        photograph(draw, *size).save(file, "JPEG", quality=90)
    for number in range(images):
        (root / f"train/{number:012}.jpg").write_bytes(different[number % 64].getvalue())
    return root


def reference(root: Path, flip: float) -> CocoDetection:
    """torchvision's reference data set, see above."""
    resize = v2.Resize(None, max_size=LONGEST, antialias=True)
    steps = [v2.PILToTensor(), resize, v2.RandomHorizontalFlip(flip)]
    steps += [v2.ToDtype(torch.float, scale=True), v2.ConvertBoundingBoxFormat("XYXY")]
    steps += [v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
    found = root / "train", root / "annotations" / "instances_train.json"
    with contextlib.redirect_stdout(io.StringIO()):
        plain = CocoDetection(*found, transforms=v2.Compose(steps))
    return wrap_dataset_for_transforms_v2(plain, target_keys=("boxes", "labels", "image_id"))


def pairs(samples: list) -> tuple:
    """The reference's collate function."""
    return tuple(zip(*samples, strict=True))


def input_sides(root: Path, images: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Both read all images once: from files to batches of float tensors."""
    dataset = CocoDataset(root, "train", max_size=LONGEST)
    compare(dataset, reference(root, 0.0))
    batches = Batches(
        dataset, BATCH, seed=0, sizes=dataset.sizes, transform=augmentation(flip=0.5)
    ).iterate()
    loader = DataLoader(reference(root, 0.5), BATCH, shuffle=True, collate_fn=pairs)

    def ours() -> None:
        for _ in range(images // BATCH):
            next(batches)

    return ours, lambda: list(loader)


def compare(dataset: CocoDataset, other: CocoDetection) -> None:
    """AssertionError unless both give the same pixels, but for rounding, and the same boxes."""
    for (image, target), (expected, peer) in zip(dataset, other, strict=False):
        assert image.shape == expected.shape
        assert (image - expected).abs().mean() < 0.01
        # crowds are targets of the reference only
        nearest = torch.cdist(target["boxes"], peer["boxes"].to(torch.float32)).min(1).values
        assert nearest.max() < 0.05


def resident() -> int:
    """Bytes of memory that this process holds now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def load(side: str, root: Path) -> None:
    """Print bytes and CPU seconds of one data set in this process."""
    kept = []
    if side == "ours":

        def action() -> None:
            kept.append(CocoDataset(root, "train"))
    else:
        from pycocotools.coco import COCO

        def action() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                kept.append(COCO(str(root / "annotations" / "instances_train.json")))

    before = resident()
    seconds = cpu_seconds(action)
    print(json.dumps({"bytes": resident() - before, "seconds": seconds}))


def large(root: Path, rounds: int) -> dict[str, list[float]]:
    """Memory and CPU time of our data set over pycocotools' parsed JSON, a process each."""
    values: dict[str, list[float]] = {"bytes": [], "seconds": []}
    for number in range(rounds):
        costs = {}
        for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            command = [sys.executable, __file__, "--load", side, str(root)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            costs[side] = json.loads(done.stdout)
        for key, found in values.items():
            found.append(costs["ours"][key] / costs["peer"][key])
    return values


def measures(options: Namespace) -> Iterator[Measure]:
    quick = options.quick
    with tempfile.TemporaryDirectory() as place:
        count = 16 if quick else 64
        root = folder(Path(place) / "photographs", count, 7 * count, (640, 480))
        values = ratios(*input_sides(root, count), 1 if quick else 20)
        yield measure("time per image / torchvision's detection reference", values, 0.65)

        images, boxes = (50, 1000) if quick else (5000, 100_000)
        root = folder(Path(place) / "check", images, boxes, (64, 64))

        def action() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                data_check(root)

        action()
        values = [cpu_seconds(action) for _ in range(1 if quick else 3)]
        yield measure(f"data check, {boxes:,} annotations", values, 3.0, "CPU s")

        images, boxes = (1000, 7000) if quick else (118_000, 860_000)
        root = Path(place) / "large"
        write_annotations(root, images, boxes, (640, 480))
        for number in range(images):  # never read: the data set asks only whether they are there
            (root / f"train/{number:012}.jpg").touch()
        values = large(root, 1 if quick else 2)
        name = f"CocoDataset of {boxes:,} annotations"
        yield measure(f"{name}: memory / the JSON by pycocotools", values["bytes"], 0.5)
        yield measure(f"{name}: CPU time / the JSON by pycocotools", values["seconds"], None)


if __name__ == "__main__":
    if "--load" in sys.argv:
        load(sys.argv[2], Path(sys.argv[3]))
    else:
        main(measures, __doc__)
