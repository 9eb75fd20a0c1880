"""Small COCO-format folders for tests, and where the shared ones lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def shared(name):
    """A shared data folder, or the test is skipped."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {SHARED / name}")
    return SHARED / name


def picture(width=60, height=40, seed=0):
    """Smooth random colours, so that JPEG and resizing change little."""
    nodes = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(nodes).resize((width, height), Image.Resampling.BILINEAR)


def box(number=1, image=1, category=1, bbox=(10, 5, 20, 10), **more):
    """An annotation."""
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox)}
    return entry | more


def content(images=1, annotations=None, width=60, height=40):
    """A well-formed annotation file's content; images 1..n are `n.png`."""
    listed = [
        {"id": n, "file_name": f"{n}.png", "width": width, "height": height}
        for n in range(1, images + 1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    annotations = [box()] if annotations is None else annotations
    return {"images": listed, "annotations": annotations, "categories": categories}


def write(root, data, *, splits=("train", "val"), official=False, pictures=None):
    """A folder of `data` (a dict, or text as it is); `pictures` by file name, else random ones."""
    for split in splits:
        name = f"{split}2017" if official else split
        (root / name).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        text = data if isinstance(data, str) else json.dumps(data)
        (root / "annotations" / f"instances_{name}.json").write_text(text)
        if pictures is None and isinstance(data, dict):
            for seed, image in enumerate(data["images"]):
                size = (image["width"], image["height"])
                picture(*size, seed=seed).save(root / name / image["file_name"])
        for file, made in (pictures or {}).items():
            made.save(root / name / file)
    return root
