"""COCO AP, held equal to pycocotools; detections to and from files."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
from functools import partial

import numpy as np
import pytest
import torch
from coco_folder import box, content, shared, write
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from dfmsd.data.annotations import read_detections
from dfmsd.data.batches import load
from dfmsd.data.coco import CocoDataset
from dfmsd.data.pixels import DataError
from dfmsd.training import evaluation
from dfmsd.training.evaluation import KEYS, coco_metrics, detections, evaluate_detector, predict


def reference(truth, results, small=32**2, medium=96**2):
    """The twelve numbers by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        run.params.areaRng = [[0, 1e10], [0, small], [small, medium], [medium, 1e10]]
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [math.nan if value == -1 else float(value) for value in run.stats]


def agree(truth, results, **limits):
    found = coco_metrics(truth, results, **limits)
    assert list(found) == list(KEYS)
    expected = reference(truth, results, **limits)
    assert np.allclose(list(found.values()), expected, rtol=0, atol=1e-9, equal_nan=True)
    return found


def random_truth(rng, images=12, classes=3):
    """Boxes of all sizes with crowds; areas are those of masks, smaller than the boxes."""
    entries = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 9)):
            width, height = np.exp(rng.uniform(np.log(6), np.log(200), 2))
            x, y = rng.uniform(0, 250, 2)
            entries.append(
                box(
                    len(entries) + 1,
                    image,
                    int(rng.integers(1, classes + 1)),
                    [float(x), float(y), float(width), float(height)],
                    area=float(width * height * rng.uniform(0.4, 1)),
                    iscrowd=int(rng.random() < 0.15),
                )
            )
    data = content(images, entries, 450, 450)
    data["categories"] = [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)]
    return data


def jittered(truth, rng, *, noise=0.12, false=30, decimals=6):
    """Detections near the truth, some missed, some of another class, and false ones."""
    images = [image["id"] for image in truth["images"]]
    classes = [category["id"] for category in truth["categories"]]
    results = []
    for entry in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            moved = np.array(entry["bbox"]) + rng.normal(0, noise, 4) * np.tile(
                entry["bbox"][2:], 2
            )
            moved[2:] = np.maximum(moved[2:], 1)
            label = entry["category_id"] if rng.random() < 0.9 else int(rng.choice(classes))
            results.append((entry["image_id"], label, moved.tolist()))
    for _ in range(false):
        place = [*rng.uniform(0, 200, 2), *rng.uniform(5, 150, 2)]
        results.append((int(rng.choice(images)), int(rng.choice(classes)), place))
    return [
        {
            "image_id": image,
            "category_id": label,
            "bbox": place,
            "score": round(float(rng.random()), decimals),
        }
        for image, label, place in results
    ]


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocotools_on_random_boxes(seed):
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    found = agree(truth, jittered(truth, rng))
    assert 0.02 < found["AP"] < 0.9  # something to compare


def test_equal_with_ties_and_more_than_a_hundred_detections():
    rng = np.random.default_rng(10)
    truth = random_truth(rng, images=3, classes=2)
    agree(truth, jittered(truth, rng, false=700, decimals=1))


@pytest.mark.parametrize(("small", "medium"), [(16**2, 48**2), (100, 40_000), (32**2, 32**2)])
def test_equal_with_own_area_limits(small, medium):
    rng = np.random.default_rng(5)
    truth = random_truth(rng)
    results = jittered(truth, rng)
    found = agree(truth, results, small=small, medium=medium)
    usual = coco_metrics(truth, results)
    assert (found["AP_S"], found["AP_M"]) != (usual["AP_S"], usual["AP_M"])


def test_equal_on_the_coco_sample_and_truth_against_itself_is_one():
    dataset = CocoDataset(shared("coco-sample"), "val")
    truth = dataset.truth()
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    agree(truth, jittered(truth, np.random.default_rng(0)))
    plain = [entry | {"score": 1.0} for entry in truth["annotations"] if not entry["iscrowd"]]
    found = agree(truth, plain)
    assert [found[key] for key in KEYS[:6]] == pytest.approx([1.0] * 6, abs=1e-9)
    assert found["AR1"] < 0.9 < found["AR100"]  # of several objects one detection finds one


def test_the_coco_sample_file_as_detections_gives_one():
    root = shared("coco-sample")
    dataset = CocoDataset(root, "val")
    truth = dataset.truth()
    file = root / "annotations" / "instances_val2017.json"
    results = read_detections(file, truth, category_ids=dataset.category_ids)
    assert len(results) == 409  # 417 without 8 crowds
    assert coco_metrics(truth, results)["AP"] == pytest.approx(1.0)


def one(bbox=(10, 10, 20, 20), score=0.9, category=1, image=1):
    return {"image_id": image, "category_id": category, "bbox": list(bbox), "score": score}


def small_truth():
    """One box of 20 x 20 pixels."""
    return content(annotations=[box(bbox=(10, 10, 20, 20), area=400, iscrowd=0)])


def test_values_by_hand():
    # 20 x 20 against 20 x 16: IoU 0.8, found at 0.50, 0.55 ... 0.80: 7 of 10 thresholds
    found = coco_metrics(small_truth(), [one((10, 10, 20, 16))])
    assert found["AP"] == pytest.approx(0.7)
    assert found["AP50"] == found["AP75"] == pytest.approx(1.0)
    assert found["AP_S"] == pytest.approx(0.7)
    assert math.isnan(found["AP_M"])
    assert math.isnan(found["AP_L"])


def test_recall_by_hand():
    # 12 objects of 8 x 8 pixels and one of 20 x 20, each found exactly, the small ones first
    boxes = [(10 * i, 0, 8, 8) for i in range(12)] + [(0, 20, 20, 20)]
    entries = [box(i, bbox=b, area=b[2] * b[3], iscrowd=0) for i, b in enumerate(boxes, start=1)]
    results = [one(b, score=1 - i / 100) for i, b in enumerate(boxes)]
    found = coco_metrics(content(1, entries, 200, 200), results, small=100, medium=500)
    assert [found[k] for k in ("AR1", "AR10", "AR100")] == pytest.approx([1 / 13, 10 / 13, 1])
    assert [found[k] for k in ("AR_S", "AR_M")] == pytest.approx([1, 1])
    assert math.isnan(found["AR_L"])


def test_a_detection_in_a_crowd_does_not_count_against():
    truth = small_truth()
    entry = box(2, bbox=(30, 0, 30, 40), area=1200, iscrowd=1)
    alone = coco_metrics(truth, [one(), one((35, 5, 10, 10), score=1.0)])
    truth["annotations"].append(entry)
    assert alone["AP"] == pytest.approx(0.5)
    found = coco_metrics(truth, [one(), one((35, 5, 10, 10), score=1.0)])
    assert found["AP"] == pytest.approx(1.0)


def test_without_detections_zero_or_nan():
    truth = content(
        annotations=[
            box(1, bbox=(10, 10, 20, 20), area=400, iscrowd=0),
            box(2, bbox=(0, 0, 50, 40), area=2000, iscrowd=1),
        ]
    )
    found = coco_metrics(truth, [])
    assert [found[k] for k in ("AP", "AP50", "AP75", "AP_S")] == [0, 0, 0, 0]
    assert math.isnan(found["AP_M"])  # a crowd is nothing to find
    assert math.isnan(found["AP_L"])
    # as pycocotools says with one detection that finds nothing
    miss = [one((0, 0, 2, 2), category=2)]
    assert np.array_equal(list(found.values()), reference(truth, miss), equal_nan=True)
    limit = coco_metrics(truth, [], small=400)  # a size on the limit belongs to both classes
    miss = reference(truth, miss, small=400)
    assert np.array_equal(list(limit.values()), miss, equal_nan=True)


def test_without_truth_everything_is_nan():
    for results in ([], [one()]):
        found = coco_metrics(content(annotations=[]), results)
        assert all(math.isnan(value) for value in found.values())


def test_detections_of_images_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="results: image_id 9 is not in truth"):
        coco_metrics(small_truth(), [one(), one(image=9)])


def test_the_arguments_stay_as_they_are_and_nothing_is_printed(capfd):
    truth, results = small_truth(), [one()]
    before = copy.deepcopy((truth, results))
    assert coco_metrics(truth, results) == pytest.approx(coco_metrics(truth, results), nan_ok=True)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("first", [2**53, 1623456789012345601, 2**63 - 13, -(2**63), -6, 0])
def test_ids_of_any_size_change_no_number(first):
    rng = np.random.default_rng(1)
    truth = random_truth(rng)
    results = jittered(truth, rng)
    expected = coco_metrics(truth, results)
    images = {image["id"]: first + image["id"] for image in truth["images"]}
    classes = {kind["id"]: first + kind["id"] for kind in truth["categories"]}
    for entry in (*truth["annotations"], *results):
        entry["image_id"] = images[entry["image_id"]]
        entry["category_id"] = classes[entry["category_id"]]
    for key, ids in (("images", images), ("categories", classes)):
        truth[key] = [entry | {"id": ids[entry["id"]]} for entry in truth[key]]
    assert coco_metrics(truth, results) == pytest.approx(expected, nan_ok=True)
    # where the ids are all one to a float, what is found in a wrong image must not count
    moved = [entry | {"image_id": first + 1} for entry in results]
    assert coco_metrics(truth, moved)["AP"] < expected["AP"] / 2


def test_detections_by_hand():
    predictions = [
        {
            "boxes": torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 1.0, 1.0]]),
            "labels": torch.tensor([3, 1]),
            "scores": torch.tensor([0.5, 0.25], dtype=torch.float16),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)},
    ]
    assert detections(predictions, [11, 12]) == [
        {"image_id": 11, "category_id": 3, "bbox": [1, 2, 3, 6], "score": 0.5},
        {"image_id": 11, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.25},
    ]
    assert predictions[0]["boxes"][0].tolist() == [1, 2, 4, 8]
    with pytest.raises(ValueError):
        detections(predictions, [11])


def test_targets_as_predictions_give_one(tmp_path):
    entries = [box(1), box(2, 2, 2, (0, 0, 60, 40)), box(3, 2, 1, (30.3, 2.2, 5.5, 6.7))]
    dataset = CocoDataset(write(tmp_path, content(2, entries)), "val")
    targets = [dataset[i][1] for i in range(len(dataset))]
    predictions = [t | {"scores": torch.ones(len(t["labels"]))} for t in targets]
    results = detections(predictions, [t["image_id"] for t in targets])
    assert coco_metrics(dataset.truth(), results)["AP"] == pytest.approx(1.0)


def read(tmp_path, value, category_ids=(3, 17)):
    file = tmp_path / "found.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_detections(file, small_truth(), category_ids=category_ids)


def test_category_ids_of_a_file_become_labels(tmp_path):
    assert read(tmp_path, [one(category=17) | {"extra": 1}]) == [one(category=2)]
    assert read(tmp_path, []) == []


def test_an_annotation_file_counts_as_detections_of_score_one(tmp_path):
    data = content(annotations=[box(1, category=3, iscrowd=0), box(2, category=3, iscrowd=1)])
    assert read(tmp_path, data) == [one((10, 5, 20, 10), score=1.0)]


def test_an_annotation_file_of_other_classes_is_refused(tmp_path):
    data = content(annotations=[box(1, category=3)])
    data["categories"] = [{"id": 3, "name": "dog"}, {"id": 17, "name": "cat"}]
    with pytest.raises(DataError, match=r"found.json: category 3 is 'dog', in the .* 'cat'"):
        read(tmp_path, data)


def test_an_entry_behind_crowds_is_named_by_its_place(tmp_path):
    crowd, wrong = box(1, category=3, iscrowd=1), box(2, category=99)
    with pytest.raises(DataError, match=r"found.json, entry 2: category_id 99"):
        read(tmp_path, content(annotations=[crowd, box(3, category=3), wrong]))


CUT = f"1{'0' * 17}...{'0' * 19}"  # a long number as messages show it


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (5, "expected an object, got 5"),
        ({"image_id": 1, "category_id": 3, "bbox": [1, 1, 1, 1]}, "score missing"),
        ({"image_id": 1, "category_id": 3, "score": 1}, "bbox missing"),
        (one(image=9, category=3), "image_id 9 is not in the annotations"),
        (one(image=[1], category=3), "image_id must be a 64-bit integer, got [1]"),
        (one(category=5), "category_id 5 is not in the annotations"),
        (one(category={}), "category_id must be a 64-bit integer, got {}"),
        (one((1, 2, 3), category=3), "bbox must be four finite numbers, got [1, 2, 3]"),
        (
            one((1, 2, 3, math.nan), category=3),
            "bbox must be four finite numbers, got [1, 2, 3, nan]",
        ),
        (one((1, 2, 3, None), category=3), "bbox must be four finite numbers, got [1, 2, 3, None]"),
        (one((1, 2, 3, -1), category=3), "bbox has a negative side, [1, 2, 3, -1]"),
        (one(score=math.inf, category=3), "score must be a finite number, got inf"),
        (one(score="high", category=3), "score must be a finite number, got 'high'"),
        (one(score=10**400, category=3), f"score must be a finite number, got {CUT}"),
        (
            one((1, 2, -3, 4), 0.5, 5, 9),
            "image_id 9 is not in the annotations; category_id 5 is not in the annotations; "
            "bbox has a negative side, [1, 2, -3, 4]",
        ),
    ],
)
def test_wrong_detections_get_one_line(tmp_path, entry, line):
    with pytest.raises(ValueError) as error:
        read(tmp_path, [one(category=3), entry])
    assert str(error.value) == f"{tmp_path / 'found.json'}, entry 1: {line}"


def test_files_that_hold_no_detections(tmp_path):
    with pytest.raises(ValueError, match=r"found.json, line 1, column 9: not JSON"):
        read(tmp_path, '[{"a": 1')
    for value in ({"images": []}, {"annotations": 4}):
        with pytest.raises(ValueError, match="expected a list of detections, got dict"):
            read(tmp_path, value)
    with pytest.raises(ValueError, match="entry 0: expected an object, got 4"):
        read(tmp_path, {"annotations": [4]})
    (tmp_path / "bytes.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"bytes.json: not JSON"):
        read_detections(tmp_path / "bytes.json", small_truth(), category_ids=[1])


class Oracle(nn.Module):
    """Finds the box that pixel (0, 0) says, and writes down what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm2d(3)
        self.calls = []

    def forward(self, images):
        self.calls.append((len(images), self.training, torch.is_grad_enabled()))
        if any(image.sum() < 0 for image in images):
            raise RuntimeError("no")
        return [
            {
                "boxes": image[0, 0, :1].repeat(1, 4) * torch.tensor([[1.0, 1.0, 2.0, 2.0]]),
                "labels": torch.tensor([1]),
                "scores": torch.tensor([1.0]),
            }
            for image in images
        ]


class Pixels:
    """Image i says i + 1; its true box is that (i + 1, i + 1, 2 i + 2, 2 i + 2)."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((3, 4 + index, 5), index + 1.0), {}

    def truth(self):
        entries = [
            box(i + 1, 100 + i, 1, [i + 1] * 4, area=float((i + 1) ** 2), iscrowd=0)
            for i in range(self.count)
        ]
        images = [{"id": 100 + i, "width": 99, "height": 99} for i in range(self.count)]
        return content(annotations=entries) | {"images": images}


def test_predict_keeps_order_chunks_and_modes():
    model = Oracle().train()
    model.norm.eval()  # frozen while the rest trains
    found = predict(model, Pixels(7), batch_size=3)
    assert [float(f["boxes"][0, 0]) for f in found] == [1, 2, 3, 4, 5, 6, 7]
    assert model.calls == [(3, False, False), (3, False, False), (1, False, False)]
    assert (model.training, model.norm.training) == (True, False)
    found = predict(model, Pixels(7), indices=[5, 0, 2], batch_size=2)
    assert [float(f["boxes"][0, 0]) for f in found] == [6, 1, 3]
    assert predict(model, Pixels(0)) == []
    assert predict(model.eval(), Pixels(1))
    assert not model.training


def test_loader_processes_give_the_same_images_in_the_same_batches():
    class Elsewhere(Pixels):
        def __getitem__(self, index):
            assert os.getpid() != here
            return super().__getitem__(index)

    model, here = Oracle(), os.getpid()
    found = predict(model, Elsewhere(7), batch_size=3, load=partial(load, workers=2))
    assert [float(f["boxes"][0, 0]) for f in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [calls[0] for calls in model.calls] == [3, 3, 1]


def test_images_without_detections_stay_in_their_place():
    class Blind(Oracle):
        def forward(self, images):
            found = super().forward(images)
            return [{k: v[: i % 2] for k, v in one.items()} for i, one in enumerate(found)]

    found = predict(Blind(), Pixels(5), batch_size=5)
    assert [f["boxes"][:, 0].tolist() for f in found] == [[], [2], [], [4], []]
    assert [tuple(f["boxes"].shape) for f in found] == [(0, 4), (1, 4)] * 2 + [(0, 4)]


def test_predict_puts_the_mode_back_after_an_error():
    class Bad(Pixels):
        def __getitem__(self, index):
            return -torch.ones(3, 4, 4), {}

    model = Oracle().train()
    with pytest.raises(RuntimeError, match="no"):
        predict(model, Bad(2))
    assert model.training
    assert model.norm.training


@pytest.mark.parametrize("limit", [None, 0, 1, 3, 50])
def test_evaluate_detector_looks_at_the_first_images_only(limit):
    model, data = Oracle(), Pixels(5)
    metrics = evaluate_detector(model, data, limit=limit, batch_size=2, small=9, medium=16)
    seen = 5 if limit is None else min(limit, 5)
    assert sum(calls[0] for calls in model.calls) == seen
    if seen == 0:
        assert all(math.isnan(value) for value in metrics.values())
        return
    # what it did not look at does not count as missed
    assert metrics["AP"] == pytest.approx(1.0)
    assert math.isnan(metrics["AP_M"]) == (seen < 3)  # areas 1, 4, 9, 16, 25
    assert math.isnan(metrics["AP_L"]) == (seen < 4)


def test_processes_share_the_images_and_agree(monkeypatch):
    class Rank:
        num_processes = 2

        def __init__(self, index):
            self.process_index = index

    parts, sent = [], []
    monkeypatch.setattr(evaluation, "gather_object", lambda part: parts.append(part) or part)
    monkeypatch.setattr(evaluation, "broadcast_object_list", lambda one: sent.append(*one) or sent)
    for rank in (0, 1):
        evaluate_detector(Oracle(), Pixels(5), batch_size=2, accelerator=Rank(rank))
    assert [[entry["image_id"] for entry in part] for part in parts] == [
        [100, 101, 104],  # whole batches of those that one process makes
        [102, 103],
    ]
    assert sent[1] is None  # one process computes the metrics, and sends them
    scored = []
    monkeypatch.setattr(evaluation, "gather_object", lambda part: parts[0] + parts[1])
    monkeypatch.setattr(
        evaluation, "coco_metrics", lambda truth, results, **limits: scored.append(results)
    )
    evaluate_detector(Oracle(), Pixels(5), batch_size=2, accelerator=Rank(0))
    assert [entry["image_id"] for entry in scored[0]] == [100, 101, 102, 103, 104]  # in order


def test_an_annotation_with_id_0_counts_like_any_other():
    """COCO's own matching reads id 0 as "unmatched"; pycocotools scores such a truth 0.56."""
    boxes = [[10.0 * k, 0.0, 8.0, 8.0] for k in range(4)]
    truth = {
        "images": [{"id": 1, "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": b, "area": 64.0, "iscrowd": 0}
            for k, b in enumerate(boxes)
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": b, "score": 0.9} for b in boxes]
    assert coco_metrics(truth, found)["AP"] == pytest.approx(1.0)
