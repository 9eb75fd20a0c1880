"""CocoDataset in contract 1, its truth, and `check`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folder import box, content, picture, shared, write
from PIL import Image
from pycocotools.coco import COCO

from dfmsd.data.annotations import content_hash
from dfmsd.data.check import check
from dfmsd.data.coco import CocoDataset
from dfmsd.data.pixels import DataError


@pytest.fixture
def folder(tmp_path):
    """Three images (one empty), gapped category ids out of order, one crowd."""
    entries = [
        box(11, 1, 90, (10, 5, 20, 10), area=120.0, iscrowd=0),
        box(12, 1, 3, (0, 0, 60, 40), area=2400.0, iscrowd=1),
        box(13, 3, 17, (30.5, 20.25, 29.5, 19.75)),
        box(14, 1, 3, (-0.5, 30, 20.0, 10.5), area=200.0),
    ]
    data = content(3, entries)
    names = {90: "zebra", 3: "car", 17: "cat"}
    data["categories"] = [{"id": k, "name": v} for k, v in names.items()]
    return write(tmp_path / "data", data)


@pytest.mark.parametrize("official", [True, False])
def test_targets_by_hand_in_both_layouts(tmp_path, official):
    root = write(tmp_path, content(), official=official)
    image, target = CocoDataset(root, "val")[0]
    assert image.shape == (3, 40, 60)
    assert image.dtype == torch.float32
    assert np.allclose(image.permute(1, 2, 0) * 255, np.asarray(picture()), atol=1e-4)
    assert target["boxes"].tolist() == [[10, 5, 30, 15]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1]
    assert target["labels"].dtype == torch.int64
    assert target["image_id"] == 1


def test_gapped_ids_become_labels_in_order_and_crowds_are_left_out(folder):
    dataset = CocoDataset(folder, "train")
    assert dataset.classes == ["car", "cat", "zebra"]
    assert dataset.category_ids == [3, 17, 90]
    assert len(dataset) == 3
    _, target = dataset[0]
    assert target["labels"].tolist() == [3, 1]
    # the last one is clipped: it starts half a pixel outside and ends half a pixel outside
    assert target["boxes"].tolist() == [[10, 5, 30, 15], [0, 30, 19.5, 40]]
    assert dataset[2][1]["labels"].tolist() == [2]
    assert dataset[2][1]["boxes"].tolist() == [[30.5, 20.25, 60, 40]]


def test_an_image_without_boxes_has_empty_ones(folder):
    _, target = CocoDataset(folder, "train")[1]
    assert target["boxes"].shape == (0, 4)
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64


def test_truth_keeps_crowds_with_labels_for_categories(folder):
    truth = CocoDataset(folder, "train").truth()
    assert truth["categories"] == [
        {"id": 1, "name": "car"},
        {"id": 2, "name": "cat"},
        {"id": 3, "name": "zebra"},
    ]
    assert [image["id"] for image in truth["images"]] == [1, 2, 3]
    entries = {entry["id"]: entry for entry in truth["annotations"]}
    assert [(n, e["image_id"]) for n, e in entries.items()] == [(11, 1), (12, 1), (14, 1), (13, 3)]
    assert entries[12]["iscrowd"] == 1
    assert entries[12]["category_id"] == 1
    assert entries[13]["area"] == 29.5 * 19.75  # not stated: the box's
    assert entries[13]["iscrowd"] == 0
    assert entries[11]["area"] == 120


def test_reduced_images_boxes_and_areas_by_hand(folder):
    dataset = CocoDataset(folder, "train", max_size=30)
    image, target = dataset[0]
    assert image.shape == (3, 20, 30)
    assert dataset.sizes == [(20, 30)] * 3
    assert target["boxes"][0].tolist() == [5, 2.5, 15, 7.5]
    truth = dataset.truth()
    assert truth["images"][0] == {"id": 1, "width": 30, "height": 20}
    assert truth["annotations"][0]["bbox"] == [5, 2.5, 10, 5]
    assert truth["annotations"][0]["area"] == 30  # 120 / 4
    assert truth["annotations"][-1]["bbox"] == [15.25, 10.125, 14.75, 9.875]


def test_uneven_reduction_scales_each_axis_by_its_own_factor(tmp_path):
    data = content(annotations=[box(bbox=(3, 10, 30, 40), area=1650)], width=33, height=50)
    dataset = CocoDataset(write(tmp_path, data), "val", max_size=20)
    image, target = dataset[0]
    assert image.shape == (3, 20, 13)  # 33 · 0.4 = 13.2
    assert target["boxes"][0].tolist() == pytest.approx([3 * 13 / 33, 4, 13, 20])
    assert dataset.truth()["annotations"][0]["area"] == pytest.approx(260)


def test_max_size_never_enlarges_and_refuses_nothing_left(folder):
    assert CocoDataset(folder, "train", max_size=600)[0][0].shape == (3, 40, 60)
    with pytest.raises(ValueError, match="max_size must be at least 1, or None, got 0"):
        CocoDataset(folder, "train", max_size=0)


def test_boxes_that_vanish_in_float32_go_with_their_labels(tmp_path):
    entries = [
        box(918, 1, 1, (296.65, 388.33, 1.03, 0.0), area=0.0),  # official, see annotations
        box(2, 1, 2, (600.0, 10, 1e-6, 9)),
        box(3, 1, 2, (8, 9, 10, 11)),
    ]
    dataset = CocoDataset(write(tmp_path, content(1, entries, 640, 480)), "train")
    _, target = dataset[0]
    assert target["labels"].tolist() == [2]
    assert target["boxes"].tolist() == [[8, 9, 18, 20]]
    assert len(dataset.truth()["annotations"]) == 3


def test_the_cache_gives_the_same_and_reads_once(folder):
    plain, cached = (CocoDataset(folder, "train", max_size=32, cache=c) for c in (False, True))
    first = cached[0][0]
    first.zero_()  # what a caller does with it must not reach the cache
    (folder / "train" / "1.png").unlink()
    assert cached[0][0].sum() > 0
    with pytest.raises(DataError, match=r"1\.png: no such file"):
        plain[0]
    assert torch.equal(cached[1][0], plain[1][0])


def test_loader_processes_share_everything_that_grows(folder):
    # what is no tensor is as long for three images as for 100,000
    dataset = CocoDataset(folder, "train")
    small = (Path, int, str, type(None))
    grown = vars(dataset) | dataset._annotations
    grown = {k: v for k, v in grown.items() if not isinstance(v, small)}
    assert {k for k, v in grown.items() if not isinstance(v, torch.Tensor)} == {
        "_annotations",
        "classes",
        "category_ids",
    }
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=overwrite, args=(dataset, answers))
    process.start()
    process.join(60)
    assert answers.get() == [[10, 5, 30, 15], [0, 30, 19.5, 40]]
    assert dataset[0][1]["boxes"][0].tolist() == [1, 2, 3, 4]  # by the other process


def overwrite(dataset, answers):
    answers.put(dataset[0][1]["boxes"].tolist())
    dataset._boxes[0] = torch.tensor([1, 2, 3, 4])


def test_read_gives_the_decoded_bytes(folder):
    dataset = CocoDataset(folder, "train", max_size=30)
    pixels, target = dataset.read(2)
    image, same = dataset[-1]
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels.float() / 255, image)
    assert image.is_contiguous()  # so that it can be viewed in other shapes
    assert torch.equal(target["boxes"], same["boxes"])
    with pytest.raises(IndexError):
        dataset[3]
    assert torch.equal(dataset[-3][1]["boxes"], dataset[0][1]["boxes"])


def test_file_names_of_any_length_and_script(tmp_path):
    data = content(3, annotations=[])
    for image, name in zip(data["images"], ("é猫.png", "a.png", "long name, 1.png"), strict=True):
        image["file_name"] = name
    dataset = CocoDataset(write(tmp_path, data), "val")
    for seed in range(3):
        found = dataset.read(seed)[0].permute(1, 2, 0)
        assert np.array_equal(found, np.asarray(picture(60, 40, seed)))


def test_a_folder_without_images_is_empty(tmp_path):
    dataset = CocoDataset(write(tmp_path, content(0, annotations=[])), "val")
    assert len(dataset) == 0
    assert dataset.truth()["annotations"] == dataset.truth()["images"] == dataset.sizes == []


def test_turned_photographs_with_either_stated_size(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    for name, size in (("turned", (40, 60)), ("stored", (60, 40))):
        root = tmp_path / name
        data = content(annotations=[], width=size[0], height=size[1])
        data["images"][0]["file_name"] = "1.jpg"
        write(root, data, splits=("val",), pictures={})
        picture().save(root / "val" / "1.jpg", exif=exif)
        dataset = CocoDataset(root, "val")
        assert tuple(dataset[0][0].shape[1:]) == dataset.sizes[0] == size[::-1]
        assert check(root, "val").problems == []


def test_the_first_problem_is_raised_naming_the_file(tmp_path):
    write(tmp_path, content(annotations=[box(), box(2, category=5), box(3, image=8)]))
    with pytest.raises(DataError) as error:
        CocoDataset(tmp_path, "train")
    file = tmp_path / "annotations" / "instances_train.json"
    assert str(error.value) == f"{file}: annotation 2: category_id 5 is no category"


def test_a_truncated_photograph_is_named_when_read(tmp_path):
    data = content()
    data["images"][0]["file_name"] = "1.jpg"
    write(tmp_path, data)
    path = tmp_path / "train" / "1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    dataset = CocoDataset(tmp_path, "train")
    with pytest.raises(DataError, match=r"train/1\.jpg: cannot be decoded"):
        dataset[0]
    found = check(tmp_path, "train").problems
    assert len(found) == 1
    file = tmp_path / "annotations" / "instances_train.json"
    assert found[0].startswith(f"{file}: image 1: {path}: cannot be decoded (")


def test_check_counts_by_hand(folder):
    report = check(folder)
    assert report.problems == []
    assert report.splits["train"] == {
        "images": 3,
        "without boxes": 1,
        "boxes": 3,
        "crowds": 1,
        "small": 3,
        "medium": 0,
        "large": 0,
    }
    assert report.classes["train"] == {"zebra": 1, "car": 1, "cat": 1}  # without the crowd
    assert "train: 3 images" in str(report)
    assert str(report).endswith("no problems")


@pytest.mark.parametrize("bad", [[5, 5, 9], None, ["a", 1, 2, 3], 7])
def test_check_lists_every_problem_and_survives_any_box(tmp_path, bad):
    entries = [box(1) | {"bbox": bad}, 5, box(3) | {"category_id": [1]}, box(4, area=None)]
    data = content(2, entries)
    write(tmp_path, data, splits=("val",))
    (tmp_path / "val" / "2.png").write_text("no picture")
    report = check(tmp_path)
    file = tmp_path / "annotations" / "instances_val.json"
    assert report.problems == [
        f"{file}: annotation 1: bbox must be four finite numbers, got {bad!r}",
        f"{file}: annotation number 1: expected an object, got 5",
        f"{file}: annotation 3: category_id must be a 64-bit integer, got [1]",
        f"{file}: annotation 4: area must be a number from 0 up, got None",
        f"{file}: image 2: {tmp_path / 'val' / '2.png'}: not an image of "
        "JPEG, PNG, WEBP, TIFF, BMP or GIF; convert HEIC, AVIF, …",
    ]
    assert "5 problems" in str(report)


def test_check_says_a_missing_file_once(tmp_path):
    write(tmp_path, content(), splits=("val",))
    (tmp_path / "val" / "1.png").unlink()
    assert len(check(tmp_path).problems) == 1


def test_check_survives_a_class_that_is_wrong_and_comes_again(tmp_path):
    data = content() | {"categories": [{"id": 1, "name": 0}, {"id": 1, "name": "cat"}]}
    report = check(write(tmp_path, data, splits=("val",)))
    assert [line.rpartition(": ")[2] for line in report.problems] == [
        "name must be a text of at most 1,000 letters, got 0",
        "id appears twice",
    ]
    assert report.classes["val"] == {"cat": 1}


def test_check_survives_images_that_are_no_entries(tmp_path):
    data = content(annotations=[]) | {"images": [4, {"id": 1}, {"id": 2, "file_name": 3}]}
    write(tmp_path, data, splits=("val",), pictures={})
    assert len(check(tmp_path).problems) == 3


def test_check_wants_a_split(tmp_path):
    with pytest.raises(FileNotFoundError, match="no val split"):
        check(tmp_path)
    write(tmp_path, content(), splits=("val",))
    assert list(check(tmp_path).splits) == ["val"]
    with pytest.raises(FileNotFoundError, match="no train split"):
        check(tmp_path, "train")


@pytest.mark.parametrize("name", ["coco-sample", "aquarium"])
def test_the_shared_folders_load(name):
    dataset = CocoDataset(shared(name), "val", max_size=128)
    for index in range(0, len(dataset), 5):
        image, target = dataset[index]
        assert tuple(image.shape[1:]) == dataset.sizes[index]
        assert max(image.shape) == 128
        boxes = target["boxes"]
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())
        assert len(target["labels"]) == len(boxes)
        assert all(1 <= label <= len(dataset.classes) for label in target["labels"].tolist())


def test_check_accepts_the_coco_sample_and_counts_as_its_readme_does():
    report = check(shared("coco-sample"))
    assert report.problems == []
    val = report.splits["val"]
    assert (val["images"], val["without boxes"], val["boxes"], val["crowds"]) == (40, 2, 409, 8)
    assert len(report.classes["val"]) == 62


def test_check_accepts_the_aquarium():
    report = check(shared("aquarium"), "val")
    assert report.problems == []
    assert [report.splits["val"][k] for k in ("small", "medium", "large")] == [453, 399, 57]


def test_the_same_boxes_as_pycocotools(capsys):
    root = shared("coco-sample")
    reference = COCO(str(root / "annotations" / "instances_val2017.json"))
    dataset = CocoDataset(root, "val")
    names = {category["id"]: category["name"] for category in reference.dataset["categories"]}
    for index in range(0, len(dataset), 3):
        image, target = dataset[index]
        stated = reference.imgs[target["image_id"]]
        entries = reference.imgToAnns[target["image_id"]]
        entries = [entry for entry in entries if not entry["iscrowd"]]
        assert tuple(image.shape[1:]) == (stated["height"], stated["width"])
        found = [dataset.classes[label - 1] for label in target["labels"].tolist()]
        assert found == [names[entry["category_id"]] for entry in entries]
        expected = np.array([entry["bbox"] for entry in entries]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        assert np.allclose(target["boxes"], expected, atol=1e-4)


def test_the_folder_is_left_as_it_was(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    dataset = CocoDataset(folder, "train", max_size=30)
    dataset[0]
    check(folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert json.loads(before[dataset.file])["images"][0]["width"] == 60


def annotate(root, split, **lists):
    """Change lists of an annotation file."""
    file = root / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | lists))
    return file


CATEGORIES = [{"id": n, "name": name} for n, name in ((4, "cat"), (2, "dog"), (9, "fox"))]


@pytest.mark.parametrize("first", ["train", "val"])
def test_both_splits_number_the_classes_of_both(tmp_path, first):
    root = write(tmp_path, content(annotations=[box(1, category=4), box(2, category=9)]))
    annotate(root, "train", categories=CATEGORIES[:2], annotations=[box(1, category=4)])
    # fewer, another order, one that train does not have, and keys behind the list
    annotate(root, "val", categories=[CATEGORIES[2], CATEGORIES[0]])
    annotate(root, "val", info={"text": 'a "categories" key: [{"id": 1}]'})
    datasets = {
        split: CocoDataset(root, split) for split in sorted(("train", "val"), key=first.__ne__)
    }
    for dataset in datasets.values():
        assert dataset.classes == ["dog", "cat", "fox"]
        assert dataset.category_ids == [2, 4, 9]
        assert [c["id"] for c in dataset.truth()["categories"]] == [1, 2, 3]
    assert datasets["train"][0][1]["labels"].tolist() == [2]
    assert datasets["val"][0][1]["labels"].tolist() == [2, 3]
    assert check(root).problems == []


@pytest.mark.parametrize(
    ("split", "changed", "line"),
    [
        ("val", {"id": 4, "name": "wolf"}, "category 4 is 'cat' in train and 'wolf' in val"),
        ("val", {"id": 5, "name": "cat"}, "category 'cat' has the id 4 in train and 5 in val"),
        ("train", {"id": 7, "name": "dog"}, "category 'dog' has the id 2 in train and 7 in train"),
    ],
)
def test_classes_that_contradict_each_other_are_refused(tmp_path, split, changed, line):
    root = write(tmp_path, content(annotations=[box(category=2)]))
    for each in ("train", "val"):
        more = [changed] if each == split else []
        annotate(root, each, categories=CATEGORIES[: 3 - len(more) * (split == "val") * 3] + more)
    if split == "val":
        annotate(root, "val", annotations=[])
    for each in ("train", "val"):
        with pytest.raises(DataError) as error:
            CocoDataset(root, each)
        assert str(error.value) == f"{root}: {line}"
    assert check(root).problems == [f"{root}: {line}"]


def test_a_file_is_parsed_once_for_both_splits(folder, monkeypatch):
    CocoDataset(folder, "train")
    monkeypatch.setattr("dfmsd.data.annotations._parse_end", None)
    known = CocoDataset(folder, "train").classes  # val's were parsed for train
    file = folder / "annotations" / "instances_val.json"
    monkeypatch.setattr("dfmsd.data.coco.read_annotations", lambda _: json.loads(file.read_text()))
    assert CocoDataset(folder, "val").classes == known  # and train's are known since


@pytest.mark.parametrize("bad", ["{", '{"categories": 3}'])
def test_a_split_whose_classes_cannot_be_read_is_named_by_the_other(folder, bad):
    file = folder / "annotations" / "instances_train.json"
    file.write_text(bad)
    with pytest.raises(DataError, match=r"instances_train\.json"):
        CocoDataset(folder, "val")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([box(bbox=(0.2, 0.1, 0.5, 0.25)), box(2, bbox=(0, 0, 1, 1))], "every box lies in 0..1"),
        ([box(iscrowd=1), box(2, iscrowd=1)], "not one box to learn from"),
        ([], "not one box to learn from"),
    ],
)
def test_a_training_split_that_cannot_teach_is_refused(tmp_path, entries, words):
    root = write(tmp_path, content(annotations=entries))
    with pytest.raises(DataError, match=f"instances_train.json: {words}"):
        CocoDataset(root, "train")
    assert any(words in line for line in check(root).problems)
    annotate(root, "train", annotations=[*entries, box(9)])
    CocoDataset(root, "train")


STRANGE = {
    "2 annotations (1, 2) of area 0": [box(1, area=0), box(2, area=0), box(3, area=3)],
    "1 annotation (2) of an area far above": [box(1, area=200), box(2, area=2400), box(3)],
    "every box is as large as its image": [
        box(1, bbox=(0, 0, 60, 40)),
        box(2, bbox=(0, 0, 60, 40)),
    ],
    "1 class ('dog') without a box": [box(1), box(2)],
}


@pytest.mark.parametrize("words", STRANGE)
def test_what_is_possible_and_strange_is_a_warning(tmp_path, words):
    root = write(tmp_path, content(annotations=STRANGE[words]), splits=("val",))
    report = check(root)
    assert report.problems == []
    assert [words in line for line in report.warnings if "class" not in line] in ([], [True])
    assert words in str(report)
    assert str(report).endswith("no problems")


def test_pictures_that_come_twice_are_reported(tmp_path):
    data = content(3, annotations=[box(1), box(2, 2, 2)])
    data["images"][2]["file_name"] = "./1.png"
    root = write(tmp_path, data, pictures={f"{n}.png": picture(seed=n) for n in (1, 2)})
    picture(seed=3).save(root / "val" / "1.png")
    assert [line.partition(": ")[2] for line in check(root).warnings] == [
        "1 file ('1.png') under several image ids",
        "1 file ('1.png') under several image ids",
        "1 image ('2.png') of val in train too",
    ]


def test_strange_pixels_are_counted_by_kind(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    data = content(5, annotations=[box(1), box(2, 2, 2)])
    deep = Image.fromarray((np.arange(2400, dtype=np.uint16) + 1000).reshape(40, 60))
    made = {"1.png": picture(), "2.png": picture(), "3.png": deep, "5.png": picture()}
    root = write(
        tmp_path, data, splits=("val",), pictures=made | {"4.png": Image.new("L", (60, 40))}
    )
    for name in ("1.png", "2.png"):
        picture().save(root / "val" / name, exif=exif)
    file = root / "annotations" / "instances_val.json"
    assert check(root).warnings == [
        f"{file}: 2 images ('1.png', '2.png'): an EXIF turn that the stated size does not settle, "
        "see data.exif",
        f"{file}: 1 image ('3.png'): grey values (12 bits) brought to 8 bits",
        f"{file}: 1 image ('4.png'): one colour all over",
    ]
    stored = CocoDataset(root, "val", exif="ignore").read(0)[0]
    turned = CocoDataset(root, "val").read(0)[0]
    assert torch.equal(stored.flip(1, 2), turned)
    assert np.array_equal(stored.permute(1, 2, 0), np.asarray(picture()))


def test_the_check_needs_no_torch(tmp_path):
    root = write(tmp_path, content())
    code = "import sys; from dfmsd.data.commands import data_check; data_check(sys.argv[1])"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, root], check=True)


def test_the_hash_tells_content_and_nothing_else(tmp_path):
    first = write(tmp_path / "first", content(2))
    same = write(tmp_path / "second", content(2), official=True)
    known = content_hash(first)
    assert content_hash(same) == content_hash(str(first)) == known
    (first / "train" / ".DS_Store").touch()
    assert content_hash(first) == known
    seen = {known}
    for change in (
        lambda: (first / "val" / "1.png").rename(first / "val" / "3.png"),
        lambda: (first / "train" / "more.png").touch(),
        lambda: (first / "train" / "gone.png").symlink_to("nowhere"),
        lambda: (first / "annotations" / "instances_val.json").write_text("{}"),
        lambda: (first / "annotations" / "instances_val.json").unlink(),
    ):
        change()
        known = content_hash(first)
        assert known not in seen
        seen.add(known)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        content_hash(tmp_path / "nowhere")


def test_a_folder_is_hashed_once(folder, monkeypatch):
    known = content_hash(folder)
    monkeypatch.setattr("hashlib.sha256", None)
    assert content_hash(folder) == known


def test_a_share_of_the_images_is_drawn_once(tmp_path):
    boxes = [box(100 + n, 1 + n % 40, 1 + n % 2, (n % 9, n % 5, 20, 10)) for n in range(80)]
    root = write(tmp_path, content(40, boxes))
    whole = CocoDataset(root, "train")
    part, again = (CocoDataset(root, "train", share=0.25) for _ in range(2))
    assert len(part) == 10
    assert [part.read(i)[1]["image_id"] for i in range(10)] == [
        again.read(i)[1]["image_id"] for i in range(10)
    ]
    expected = {t["image_id"]: (p, t) for p, t in map(whole.read, range(40))}
    for pixels, target in map(part.read, range(10)):
        image, truth = expected[target["image_id"]]
        assert torch.equal(pixels, image)
        assert torch.equal(target["boxes"], truth["boxes"])
        assert torch.equal(target["labels"], truth["labels"])
    assert [target["image_id"] for _, target in map(part.read, range(10))] != sorted(expected)[:10]
    assert len(part.truth()["images"]) == 10
    assert len(CocoDataset(root, "train", share=1e-6)) == 1
    with pytest.raises(ValueError, match="share"):
        CocoDataset(root, "train", share=0)
