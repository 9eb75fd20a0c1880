"""Pseudo-labels: which detections become targets; and the teacher's score at each cell."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_detector, tiny_images
from torchvision.models import detection

from dfmsd.baselines import PseudoLabels, ScoreL2
from dfmsd.detectors.features import feature_channels, score_maps
from dfmsd.detectors.saved import save_detector
from dfmsd.distill import Distiller
from dfmsd.experiments import build
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.teachers import teacher

TRUE = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([3]), "image_id": 7}
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": 8}
DETECTED = {
    "boxes": torch.tensor(
        [
            [20.0, 20, 30, 30],  # new
            [0, 0, 10, 8],  # IoU 0.8 with the true box
            [0, 0, 10, 5],  # IoU 0.5, not above it
            [40, 40, 50, 50],  # not confident
            [60, 60, 60.5, 70],  # less than a pixel wide
        ]
    ),
    "labels": torch.tensor([1, 3, 2, 1, 1]),
    "scores": torch.tensor([0.7, 0.99, 0.9, 0.69, 0.9]),
}


def test_merged_by_hand():
    target = PseudoLabels().merge(TRUE, DETECTED)
    assert target["boxes"].tolist() == [[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 5]]
    assert target["labels"].tolist() == [3, 1, 2]
    assert target["image_id"] == 7
    assert len(TRUE["boxes"]) == 1  # the data set's own target stays


def test_masks_are_refused():
    with pytest.raises(ValueError, match="boxes only, a target also has masks"):
        PseudoLabels().merge(TRUE | {"masks": torch.ones(1, 9, 9)}, DETECTED)


def test_a_picture_without_labels_gets_the_detections_alone():
    target = PseudoLabels().merge(EMPTY, DETECTED)
    assert torch.equal(target["boxes"], DETECTED["boxes"][:3])
    assert target["labels"].tolist() == [1, 3, 2]
    nothing = {key: value[:0] for key, value in DETECTED.items()}
    for target in (TRUE, EMPTY):
        assert torch.equal(PseudoLabels().merge(target, nothing)["boxes"], target["boxes"])


def test_limits_a_threshold_of_one_and_an_overlap_of_zero():
    assert len(PseudoLabels(threshold=1.0).merge(TRUE, DETECTED)["boxes"]) == 1
    assert len(PseudoLabels(overlap=0.0).merge(TRUE, DETECTED)["boxes"]) == 2
    assert len(PseudoLabels(threshold=0.0, overlap=1.0).merge(TRUE, DETECTED)["boxes"]) == 5


@pytest.fixture(scope="module", params=["faster_rcnn", "retinanet", "fcos"])
def pair(request):
    """A student, and an untrained teacher that is surer of its detections than such ones are."""
    student = tiny_detector("retinanet", seed=1)
    teacher = tiny_detector(request.param, seed=2, channels=32, strides=(8, 16, 32))
    if request.param != "faster_rcnn":
        teacher.head.classification_head.cls_logits.bias.data += 4
    if request.param == "fcos":  # untrained it finds boxes without width or height
        teacher.head.regression_head.bbox_reg.bias.data += 1
    return student, teacher


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_the_student_is_trained_on_what_the_teacher_detects(pair, half):
    student, teacher = map(copy.deepcopy, pair)
    threshold = 0.1
    images, targets = tiny_images()
    targets[1] |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    model = Distiller(student, teacher, PseudoLabels(threshold=threshold)).train()
    teacher.train()
    seen = {}
    student.transform.register_forward_pre_hook(lambda _m, given: seen.update(targets=given[1]))
    teacher.register_forward_hook(lambda m, _i, _o: seen.update(training=m.training))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = model(images, targets)
    assert not seen["training"]
    found = teacher.eval()(images)  # in full precision: in bf16 boxes would be pixels off
    confident = [x["boxes"][x["scores"] >= threshold] for x in found]
    assert len(confident[1])
    assert torch.equal(seen["targets"][1]["boxes"], confident[1])
    assert 1 <= len(seen["targets"][0]["boxes"]) <= 1 + len(confident[0])
    assert set(losses) == {"classification", "bbox_regression"}
    assert model.weights == {}
    sum(losses.values()).backward()
    assert student.backbone.body.conv1[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert {key.split(".")[0] for key in model.state_dict()} == {"student"}


def test_where_the_teacher_is_never_sure_it_is_the_plain_student(pair):
    student, teacher = map(copy.deepcopy, pair)
    losses = []
    for model in (Distiller(student), Distiller(student, teacher, PseudoLabels(threshold=1.0))):
        torch.manual_seed(0)
        losses.append(model.train()(*tiny_images()))
    assert losses[0] == losses[1]


def test_a_teacher_that_finds_no_boxes_of_these_classes_is_refused(tmp_path):
    file = tmp_path / "t.safetensors"
    save_detector(tiny_detector(), file, classes=["six", "other", "names", "than", "the", "data"])
    chosen = [f"strong_file={file}", "method.name=pseudo_labels"]
    with pytest.raises(ValueError, match=r"t.safetensors: it detects 6 classes, six, .* the data"):
        teacher(resolve("scenes", chosen), "strong")
    teacher(resolve("scenes", chosen[:1]), "strong")
    with pytest.raises(ValueError, match="teacher: gives features and no boxes"):
        PseudoLabels().targets(lambda _: {8: torch.zeros(1, 4, 2, 2)}, *tiny_images())


def test_the_settings_choose_it_and_its_threshold():
    chosen = ["method.name=pseudo_labels", "method.threshold=0.4"]
    made = build.method(resolve("scenes", chosen), None, None)
    assert (type(made), made.threshold, made.overlap) == (PseudoLabels, 0.4, 0.5)


# --- scores of cells ------------------------------------------------------------------------------


def test_score_maps_are_the_heads_own_scores_at_each_cell(pair):
    teacher = copy.deepcopy(pair[1]).eval()
    grids = {8: (3, 5), 16: (2, 3), 32: (1, 2)}
    features = {s: torch.randn(2, 32, *grid, requires_grad=True) for s, grid in grids.items()}
    scores = score_maps(teacher, features)
    for stride, feature in features.items():
        if hasattr(teacher, "rpn"):
            logits = teacher.rpn.head.cls_logits(teacher.rpn.head.conv(feature))
        else:
            head = teacher.head.classification_head
            logits = head.cls_logits(head.conv(feature))
        expected = logits.sigmoid().amax(1, keepdim=True)
        torch.testing.assert_close(scores[stride], expected.detach())
        assert scores[stride].shape == (2, 1, *feature.shape[2:])
        assert not scores[stride].requires_grad
    assert len({round(value, 6) for value in scores[8].flatten().tolist()}) > 10


def test_a_detector_without_scores_of_cells_is_refused():
    with pytest.raises(ValueError, match="an FCOS to score cells, got SSD"):
        score_maps(detection.ssd300_vgg16(weights=None, weights_backbone=None), {})


def test_the_distiller_gives_scores_to_the_method_that_asks(pair):
    student, teacher = map(copy.deepcopy, pair)
    method = ScoreL2(*map(feature_channels, pair), match="index")
    model, seen = Distiller(student, teacher, method).train(), SimpleNamespace()
    method.register_forward_pre_hook(lambda _m, given: setattr(seen, "given", given))
    model(*tiny_images())
    _, features, context = seen.given
    for stride, score in score_maps(teacher, features).items():
        assert torch.equal(context.scores[stride], score)
    method.needs_scores = False
    with pytest.raises(ValueError, match=r"context.scores"):
        model(*tiny_images())
    assert seen.given[2].scores is None
