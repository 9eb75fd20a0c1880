"""The photographs of the tables `photos*`, from their public export (YOLO labels) to COCO format.

    git clone https://github.com/sumit2011/underwater-object-detection
    git -C underwater-object-detection checkout eee4be3324cd019b9032bb13f22a756a77866503
    python data/aquarium.py underwater-object-detection/dataset/aquarium_pretrain data/aquarium

Source: "Aquarium Combined", version 2, Roboflow, 2020, CC BY 4.0. Choice: sides of at most 416
pixels (Lanczos), JPEG quality 85, boxes to a hundredth of a pixel and inside the image, none under
a pixel; the export's own split, without its test images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path

from PIL import Image

CLASSES = ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")
SPLITS = {"train": "train", "val": "valid"}
SHA256 = {
    "train": "f20b5913b3b7601342756176fef82af28496c28418aad67ade39e3bfdd6b175d",
    "val": "ce8ad608f1100846dcbb4d14c86b29f08f36aa98c772dc4f4780c9848544ed78",
}
"""Split → `digest` of its annotations as the tables used them."""


def box_of(label: str, width: int, height: int) -> tuple[int, list[float]]:
    """(category id from 1, COCO box in pixels) of a YOLO line: class, centre and size in 0..1."""
    kind, *numbers = label.split()
    x, y, w, h = (float(n) * side for n, side in zip(numbers, (width, height) * 2, strict=True))
    left, top = max(0.0, x - w / 2), max(0.0, y - h / 2)
    right, bottom = min(float(width), x + w / 2), min(float(height), y + h / 2)
    return int(kind) + 1, [round(n, 2) for n in (left, top, right - left, bottom - top)]


def convert(export: Path, root: Path, split: str, *, side: int = 416) -> dict:
    """The annotations of a split, after its images are written below `root`."""
    images, annotations = [], []
    (root / split).mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted((export / SPLITS[split] / "images").iterdir()), start=1):
        name = re.sub(r"(_jpe?g)?_jpg\.rf\.[0-9a-f]+\.jpg$", ".jpg", file.name)
        with Image.open(file) as image:
            image = image.convert("RGB")
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            image.save(root / split / name, quality=85)
        width, height = image.size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        labels = export / SPLITS[split] / "labels" / f"{file.stem}.txt"
        for label in labels.read_text().splitlines():
            category, box = box_of(label, width, height)
            if min(box[2:]) < 1:
                continue
            own = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            area = round(box[2] * box[3], 2)
            annotations.append(own | {"bbox": box, "area": area, "iscrowd": 0, "segmentation": []})
    categories = [{"id": n, "name": name} for n, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def digest(coco: dict) -> str:
    """SHA-256 of what a training sees of annotations: sizes, classes and boxes by file name."""
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    sizes = sorted([i["file_name"], i["width"], i["height"]] for i in coco["images"])
    boxes = sorted([names[a["image_id"]], a["category_id"], a["bbox"]] for a in coco["annotations"])
    classes = [[category["id"], category["name"]] for category in coco["categories"]]
    return hashlib.sha256(json.dumps([sizes, boxes, classes]).encode()).hexdigest()


def main() -> None:
    """Convert both splits and compare them with those of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path, help="folder with train/, valid/ and data.yaml")
    parser.add_argument("root", type=Path, help="the new folder in COCO format")
    given = parser.parse_args()
    for split in SPLITS:
        coco = convert(given.export, given.root, split)
        file = given.root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(coco))
        same = "as in the tables" if digest(coco) == SHA256[split] else "NOT those of the tables"
        counts = f"{len(coco['images'])} images, {len(coco['annotations'])} boxes"
        print(f"{given.root}: {split}: {counts}, {same}")


if __name__ == "__main__":
    main()
