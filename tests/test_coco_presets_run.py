"""Every preset of full COCO on real photographs: trains, is cut, resumes, evaluates, exports.

Reduced in the number of images and steps only: trunks, teachers, pixels, losses are the real ones.
Weights are random, made under the names that mmdetection and torchvision publish.
"""

from __future__ import annotations

import json
import math

import mmdet_reference as reference
import pytest
import safetensors.torch
import torch
import torchvision
from coco_folder import shared
from torchvision.models import detection

from dfmsd.__main__ import main
from dfmsd.data import batches as loading
from dfmsd.data.coco import CocoDataset
from dfmsd.detectors.saved import load_detector
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.presets_coco import PRESETS
from dfmsd.experiments.runs import execute, runs

FEW = ("data.val_images=2", "data.curve_images=1", "train.batch_size=1", "train.save_every=1")
PLAIN = {
    "faster_rcnn_r50_swin_sal": detection.fasterrcnn_resnet50_fpn,
    "retinanet_r50_swin_sal": detection.retinanet_resnet50_fpn,
    "retinanet_r50_from_faster_rcnn_v2": detection.retinanet_resnet50_fpn,
    "fcos_r50": detection.fcos_resnet50_fpn,
}
TASK = {
    "faster_rcnn": ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"],
    "retinanet": ["classification", "bbox_regression"],
    "fcos": ["classification", "bbox_regression", "bbox_ctrness"],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project's folder with every file that the presets name, made by the user's commands."""
    root = tmp_path_factory.mktemp("project")
    teachers = root / "data/teachers"
    (root / "data/weights").mkdir(parents=True)
    torch.manual_seed(0)
    trunk = torchvision.models.resnet50(weights=None)
    torch.save(trunk.state_dict(), root / "data/weights/resnet50-0676ba61.pth")
    raw = root / "published.pth"
    for size in "ts":
        state = reference.random_state(reference.shapes("swin", **reference.SWIN[size]))
        torch.save({"state_dict": state}, raw)
        out = teachers / f"mask_rcnn_swin_{size}.safetensors"
        main(["import-mmdet", str(raw), "--out", str(out)])
    name = "fasterrcnn_resnet50_fpn_v2"
    stock = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    torch.save(stock.state_dict(), raw)
    out = teachers / f"{name}.safetensors"
    main(["import-torchvision", name, "--weights", str(raw), "--out", str(out)])
    raw.unlink()
    return root


def training_batches(patched, *, ctrl_c_at=0):
    """A list that takes every training batch from now on; Ctrl-C comes while one is loaded."""
    real, seen = loading.collate, []

    def collate(samples):
        if len(seen) + 1 == ctrl_c_at:
            raise KeyboardInterrupt
        seen.append(samples)
        return real(samples)

    patched.setattr(loading, "collate", collate)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_it_trains_resumes_evaluates_and_exports(name, project, monkeypatch):
    root = shared("coco-sample")
    settings = resolve(name, [f"data.root={root}", *FEW], scale="smoke", root=project)
    two = settings.arms == ("two-long",)
    steps = 1 if two or settings.arms == ("one-long",) else 2
    settings = resolve(
        name, [f"data.root={root}", *FEW, f"train.steps={steps}"], scale="smoke", root=project
    )
    (run,) = runs(settings)
    with monkeypatch.context() as patched:
        training_batches(patched, ctrl_c_at=2)
        with pytest.raises(KeyboardInterrupt):
            execute(run, show=False)
    assert run.record() is None
    with monkeypatch.context() as patched:
        second = training_batches(patched)
        record = execute(run, show=False)
    assert len(second) == 1  # the step before Ctrl-C is not made again
    assert record["resumed"]
    assert record["settings"]["data"]["short"] == 800
    assert [stage["teacher"] for stage in record["stages"]] == ["weak"] * two + ["strong"]

    lines = [json.loads(line) for line in (run.folder / "log.jsonl").open()]
    rows = [line for line in lines if "loss" in line]
    places = [(row["stage"], row["step"]) for row in rows]
    assert places == ([(0, 0), (1, 0)] if two else [(0, 0), (0, 1)])
    for row in rows:
        for term in (*TASK[settings.student.kind], "reconstruction", "alignment"):
            assert math.isfinite(row[term])
            assert row[term] > 0 or term == "loss_box_reg"  # no box may have been sampled
    assert 0 <= record["metrics"]["AP"] <= 1

    plain = PLAIN[name](weights=None, weights_backbone=None, num_classes=81, min_size=320)
    plain.load_state_dict(safetensors.torch.load_file(run.weights), strict=True)
    ours, metadata = load_detector(run.weights)
    assert metadata["classes"] == CocoDataset(root, "val").classes
    ours.transform.min_size = (320,)
    plain.score_thresh = getattr(ours, "score_thresh", None)
    image = CocoDataset(root, "val")[0][0]
    with torch.no_grad():
        expected, found = ours([image])[0], plain.eval()([image])[0]
    torch.testing.assert_close(found, expected)
