"""Generated scenes: seeded, boxes tight, classes as named, folders whole or not at all."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from dfmsd.data import scenes as synthetic
from dfmsd.data.coco import CocoDataset
from dfmsd.data.scenes import CLASSES, SceneDataset, draw_object, render, write_coco


def generator(*seed):
    return np.random.Generator(np.random.PCG64(list(seed)))


@pytest.fixture(scope="module")
def scenes():
    return SceneDataset(300, size=48, seed=3)


@pytest.mark.parametrize("size", [32, 33, 96, 131])
def test_items_keep_the_contract_at_every_size(size):
    dataset = SceneDataset(4, size=size, seed=1)
    assert len(dataset) == 4
    assert dataset.sizes == [(size, size)] * 4
    assert dataset.classes == list(CLASSES)
    for index in range(4):
        image, target = dataset[index]
        assert image.shape == (3, size, size)
        assert image.dtype == torch.float32
        assert 0 <= image.min() < image.max() <= 1
        count = len(target["labels"])
        assert target["boxes"].shape == (count, 4)
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        assert target["image_id"] == index


@pytest.mark.parametrize("count", [0, 1])
def test_runs_without_scenes_and_with_one(count):
    dataset = SceneDataset(count, size=32)
    assert len(dataset.truth()["images"]) == len(dataset) == count


@pytest.mark.parametrize(("name", "value"), [("count", -1), ("size", 31), ("seed", -1)])
def test_refuses_naming_argument_and_value(name, value):
    arguments = {"count": 1, "size": 32, "seed": 0} | {name: value}
    with pytest.raises(ValueError, match=rf"^{name} must be at least .*, got {value}$"):
        SceneDataset(arguments.pop("count"), **arguments)


def test_a_scene_depends_on_seed_and_index_only():
    few, many = SceneDataset(2, size=32, seed=7), SceneDataset(5, size=32, seed=7)
    assert torch.equal(few.images, many.images[:2])
    for index in range(2):
        assert torch.equal(few[index][1]["boxes"], many[index][1]["boxes"])
        assert torch.equal(few[index][1]["labels"], many[index][1]["labels"])
    assert not torch.equal(many.images[0], many.images[1])
    assert not torch.equal(few.images, SceneDataset(2, size=32, seed=8).images)


def test_rendering_leaves_the_callers_random_state():
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    SceneDataset(2, size=32)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_a_changed_item_does_not_change_the_data_set():
    dataset = SceneDataset(1, size=32)
    image, target = dataset[0]
    kept = image.clone(), target["boxes"].clone(), target["labels"].clone()
    image.zero_(), target["boxes"].zero_(), target["labels"].zero_()
    image, target = dataset[0]
    for value, before in zip((image, target["boxes"], target["labels"]), kept, strict=True):
        assert torch.equal(value, before)


def test_the_box_hugs_the_painted_pixels(monkeypatch):
    def white(label, extent, rng):
        colours, alpha, box = draw_object(label, extent, rng)
        return np.full_like(colours, 5), alpha, box

    monkeypatch.setattr(synthetic, "draw_object", white)
    monkeypatch.setattr(
        synthetic, "background", lambda size, rng: np.full((3, size, size), 0.5, np.float32)
    )
    for index in range(60):
        image, boxes, labels = render(96, generator(5, index), max_objects=1)
        assert len(boxes) == len(labels) == 1
        rows, columns = np.nonzero((image == 255).all(0))
        painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert boxes[0].tolist() == painted


@pytest.mark.parametrize("label", range(1, 7))
@pytest.mark.parametrize("extent", [8.0, 23.5, 44.0])
def test_the_objects_box_is_that_of_its_mask(label, extent):
    for seed in range(8):
        colours, alpha, (left, top, right, bottom) = draw_object(label, extent, generator(seed))
        assert colours.shape == (3, *alpha.shape)
        assert 0 <= alpha.min() <= alpha.max() <= 1
        inside = [
            (x, y)
            for y in range(alpha.shape[0])
            for x in range(alpha.shape[1])
            if alpha[y, x] >= 0.5
        ]
        xs, ys = zip(*inside, strict=True)
        assert (left, top, right, bottom) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        # nothing of the object is cut off by its window
        assert max(alpha[0].max(), alpha[-1].max(), alpha[:, 0].max(), alpha[:, -1].max()) == 0


# area of the unit shape: disc; square of half side .85; triangle of inradius .6
AREAS = {"disc": math.pi, "square": 1.7**2, "triangle": 3 * math.sqrt(3) * 0.6**2}


@pytest.mark.parametrize("label", range(1, 7))
def test_the_area_is_that_of_the_named_shape(label):
    shape = CLASSES[label - 1].split()[1]
    ratios = []
    for seed in range(20):
        alpha = draw_object(label, 60.0, generator(seed))[1]
        ratios.append(alpha.sum() / (AREAS[shape] * 30**2))  # = the aspect, 0.75..1
    assert min(ratios) > 0.73
    assert max(ratios) < 1.02
    assert max(ratios) - min(ratios) > 0.1


def coherence(colours, alpha):
    """0 (edges in all directions) .. 1 (in one), from the structure tensor inside the object."""
    down, across = np.gradient(colours.mean(0))
    inside = alpha == 1
    a, b, c = (np.mean(v[inside]) for v in (across * across, across * down, down * down))
    return math.hypot(a - c, 2 * b) / (a + c)


@pytest.mark.parametrize("label", range(1, 7))
def test_stripes_run_one_way_and_checks_two(label):
    texture = CLASSES[label - 1].split()[0]
    for seed in range(10):
        colours, alpha, _ = draw_object(label, 44.0, generator(seed))
        value = coherence(colours, alpha)
        assert value > 0.8 if texture == "striped" else value < 0.5


def test_boxes_lie_inside_and_overlap_by_a_quarter_at_most(scenes):
    counts = set()
    for index in range(len(scenes)):
        boxes = scenes[index][1]["boxes"].tolist()
        counts.add(len(boxes))
        for x1, y1, x2, y2 in boxes:
            assert 0 <= x1 < x2 <= 48
            assert 0 <= y1 < y2 <= 48
        for k, a in enumerate(boxes):
            for b in boxes[:k]:
                wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
                high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
                areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
                assert wide * high <= 0.25 * min(areas)
    assert counts == {1, 2, 3, 4, 5}


def test_max_objects_limits_the_boxes():
    counts = {len(render(48, generator(2, k), max_objects=2)[2]) for k in range(40)}
    assert counts == {1, 2}


def test_classes_are_balanced_and_sizes_spread(scenes):
    labels = torch.cat([scenes[i][1]["labels"] for i in range(len(scenes))])
    share = torch.bincount(labels, minlength=7)[1:] / len(labels)
    assert share.min() > 1 / 6 - 0.05
    assert share.max() < 1 / 6 + 0.05
    boxes = torch.cat([scenes[i][1]["boxes"] for i in range(len(scenes))])
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    # 8..44 px at 96 px are 4..22 px at 48; a square's diagonal is 1.2 of its extent
    assert 2 <= longest.min() < 6
    assert 20 < longest.max() <= 1.25 * 22 + 2
    assert 0.35 < (longest < math.sqrt(4 * 22)).float().mean() < 0.75  # log-uniform: about half


def test_objects_grow_with_the_image():
    middles = []
    for size in (48, 96):
        sides = [render(size, generator(4, k), max_objects=1)[1] for k in range(150)]
        boxes = np.concatenate(sides)
        middles.append(np.median(boxes[:, 2] - boxes[:, 0]))
    assert 1.6 < middles[1] / middles[0] < 2.4


def test_truth_loads_in_pycocotools_with_the_same_boxes(scenes):
    truth = COCO()
    truth.dataset = scenes.truth()
    truth.createIndex()
    assert [c["name"] for c in truth.loadCats(truth.getCatIds())] == list(CLASSES)
    assert min(truth.anns) == 1  # COCO's matching takes id 0 for "unmatched"
    assert len(truth.anns) == len(truth.dataset["annotations"])
    for index in range(0, len(scenes), 7):
        target = scenes[index][1]
        entries = truth.loadAnns(truth.getAnnIds(imgIds=[target["image_id"]]))
        assert [e["category_id"] for e in entries] == target["labels"].tolist()
        for entry, (x1, y1, x2, y2) in zip(entries, target["boxes"].tolist(), strict=True):
            assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]
            assert entry["area"] == (x2 - x1) * (y2 - y1)
            assert entry["iscrowd"] == 0


def test_a_written_folder_reads_as_the_same_scenes(tmp_path):
    root = tmp_path / "new" / "scenes"
    write_coco(root, train=3, val=2, size=40, seed=5)
    assert sorted(p.name for p in root.iterdir()) == ["annotations", "train", "val"]
    assert [p.name for p in root.parent.iterdir()] == ["scenes"]
    assert root.stat().st_mode & 0o777 == 0o755
    for split, count, seed in (("train", 3, 5), ("val", 2, 1_000_005)):
        made, read = SceneDataset(count, size=40, seed=seed), CocoDataset(root, split)
        assert read.classes == made.classes
        assert len(read) == count
        for index in range(count):
            (image, target), (same, truth) = read[index], made[index]
            assert torch.equal(image, same)
            assert torch.equal(target["boxes"], truth["boxes"])
            assert torch.equal(target["labels"], truth["labels"])
        entry = json.loads((root / f"annotations/instances_{split}.json").read_text())["images"][1]
        pixels = np.asarray(Image.open(root / split / entry["file_name"]))
        assert np.array_equal(pixels, made.images[1].permute(1, 2, 0).numpy())


def test_an_empty_folder_is_filled(tmp_path):
    write_coco(tmp_path, train=1, val=1, size=32)
    assert (tmp_path / "train" / "000000.png").is_file()


def test_refuses_what_is_there_and_leaves_it_alone(tmp_path):
    folder, file = tmp_path / "full", tmp_path / "file"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    file.write_text("mine")
    for root in (folder, file):
        with pytest.raises(FileExistsError, match=str(root)):
            write_coco(root, train=1, val=1, size=32)
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]
    assert (folder / "mine.txt").read_text() == file.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    # the train split is written by the time that val is refused
    with pytest.raises(ValueError, match="count"):
        write_coco(tmp_path / "a" / "b", train=1, val=-1, size=32)
    assert list(tmp_path.iterdir()) == []
