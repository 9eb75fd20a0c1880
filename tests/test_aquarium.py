"""The script that makes the photographs' folder from their public export."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from pycocotools.coco import COCO

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT.parent / "shared" / "data" / "aquarium"
aquarium = SimpleNamespace(**runpy.run_path(str(ROOT / "data" / "aquarium.py")))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("0 0.65625 0.310546875 0.203125 0.109375", (1, [173.06, 106.44, 63.38, 45.5])),
        ("0 0.19075 0.10205078125 0.3815 0.1708984375", (1, [0.0, 6.91, 119.03, 71.09])),
        ("6 1.0 0.5 0.5 2.0", (7, [234.0, 0.0, 78.0, 416.0])),  # half of it outside
    ],
)
def test_a_box_by_hand(label, expected):
    assert aquarium.box_of(label, 312, 416) == expected


def test_an_export_becomes_a_coco_folder(tmp_path):
    labels = ["1 0.5 0.5 0.5 0.25", "2 0.25 0.5 0.0001 0.5"]  # the second is no pixel wide
    for split in ("train", "valid"):
        for part in ("images", "labels"):
            (tmp_path / "export" / split / part).mkdir(parents=True)
        for name in ("IMG_2_jpeg_jpg.rf.0a1b", "IMG_1_MOV-0_jpg.rf.2c3d"):
            image = Image.new("RGB", (1024, 768), "teal")
            image.save(tmp_path / "export" / split / "images" / f"{name}.jpg")
            text = "\n".join(labels) if name.startswith("IMG_2") else ""
            (tmp_path / "export" / split / "labels" / f"{name}.txt").write_text(text)

    coco = aquarium.convert(tmp_path / "export", tmp_path / "out", "val")

    assert [i["file_name"] for i in coco["images"]] == ["IMG_1_MOV-0.jpg", "IMG_2.jpg"]
    (box,) = coco["annotations"]
    assert (box["image_id"], box["category_id"]) == (2, 2)
    assert box["bbox"] == [104.0, 117.0, 208.0, 78.0]
    assert box["area"] == 208 * 78
    assert Image.open(tmp_path / "out" / "val" / "IMG_2.jpg").size == (416, 312)
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    assert len(COCO(tmp_path / "coco.json").getAnnIds()) == 1


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs are not beside the project")
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_digest_is_that_of_the_photographs(split):
    coco = json.loads((PHOTOS / "annotations" / f"instances_{split}.json").read_text())
    assert aquarium.digest(coco) == aquarium.SHA256[split]
    coco["annotations"][0]["bbox"][0] += 0.01
    assert aquarium.digest(coco) != aquarium.SHA256[split]
