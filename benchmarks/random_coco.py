"""A COCO job without files: drawn JPEGs, and detectors with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models.resnet import Bottleneck

from dfmsd.detectors.build import stock_detector
from dfmsd.detectors.mmdet.teacher import build_teacher
from dfmsd.detectors.saved import save_detector
from dfmsd.experiments.presets_coco import FASTER_V2, RESNET, SWIN_S, SWIN_T

DEPTHS = {"swin_t": (2, 2, 6, 2), "swin_s": (2, 2, 18, 2)}
SIZES = ((480, 640), (480, 640), (427, 640), (640, 480))
"""(height, width) of the drawn images in turn. Choice: COCO's most frequent ones."""
AREAS = ((0.41, 8, 32), (0.34, 32, 96), (0.25, 96, 300))
"""Share of small, medium and large boxes, as in COCO, and the range of their sides, pixels."""
CLASSES = [f"class {number}" for number in range(1, 81)]


def draw_boxes(draw: np.random.Generator, height: int, width: int) -> list[list[float]]:
    """About seven boxes (x, y, width, height), pixels, of COCO's mix of areas."""
    found = []
    for kind in draw.choice(len(AREAS), size=max(1, draw.poisson(7)), p=[a[0] for a in AREAS]):
        sides = np.exp(draw.uniform(*np.log(AREAS[kind][1:]), size=2))
        w, h = np.minimum(sides, (0.9 * width, 0.9 * height))
        found.append([draw.uniform(0, width - w), draw.uniform(0, height - h), w, h])
    return found


def write_coco(root: Path, *, count: int = 64, shrink: int = 1) -> Path:
    """`root` with `count` drawn JPEGs of COCO's sizes and 80 classes, as train and val."""
    draw, images, annotations = np.random.default_rng(0), [], []
    for split in ("train", "val"):
        (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for number in range(1, count + 1):
        height, width = (side // shrink for side in SIZES[number % len(SIZES)])
        colours = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), float)
        noisy = smooth + draw.normal(0, 12, smooth.shape)  # as large a file as a photograph's
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        name = f"{number:012d}.jpg"
        for split in ("train", "val"):
            picture.save(root / split / name, quality=90)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for box in draw_boxes(draw, height, width):
            entry = {"id": len(annotations) + 1, "image_id": number, "bbox": box, "iscrowd": 0}
            entry |= {"category_id": int(draw.integers(1, 81)), "area": box[2] * box[3]}
            annotations.append(entry)
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def write_trunk(path: Path) -> Path:
    """A file of random ResNet-50 weights whose features keep their size without batch norm."""
    trunk = torchvision.models.resnet50(weights=None)
    for block in trunk.modules():
        if isinstance(block, Bottleneck):
            nn.init.constant_(block.bn3.weight, 0.2)  # frozen at 1, every block would double them
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(trunk.state_dict(), path)
    return path


def swin_teacher(name: str, *, tiny: bool = False) -> nn.Module:
    """Trunk and pyramid of mmdetection's Mask R-CNN "swin_t" or "swin_s", random weights.

    `tiny` makes one block per stage, to see that code runs.
    """
    depths = (1, 1, 1, 1) if tiny else DEPTHS[name]
    recipe = {"trunk": "swin", "width": 48 if tiny else 96, "depths": list(depths)}
    recipe |= {"heads": [3, 6, 12, 24], "window": 7, "patch": 4, "mlp_ratio": 4.0}
    recipe |= {"stages": [0, 1, 2, 3], "channels": 32 if tiny else 256}
    recipe |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return build_teacher(recipe | {"extra": {"kind": "pool", "count": 1}})


def write_files(root: Path) -> Path:
    """`root` with every file that the full presets name."""
    write_trunk(root / RESNET)
    stock = stock_detector("fasterrcnn_resnet50_fpn_v2", num_classes=81)
    teachers = {SWIN_T: swin_teacher("swin_t"), SWIN_S: swin_teacher("swin_s"), FASTER_V2: stock}
    for file, teacher in teachers.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        save_detector(teacher, root / file, classes=CLASSES, metrics={})
    return root
