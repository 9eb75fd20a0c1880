"""Distiller: the teacher is untouched, sees the same pixels, and any stock detector will do."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from tiny import tiny_detector, tiny_images
from torch import nn
from torchvision.models import detection

from dfmsd.context import Context
from dfmsd.detectors.features import capture_features, feature_channels, strided_levels
from dfmsd.distill import Distiller, renormalise
from dfmsd.loss import DFMSDLoss


def pair(student_kind="retinanet", teacher_kind="faster_rcnn"):
    student = tiny_detector(student_kind, seed=1)
    teacher = tiny_detector(teacher_kind, seed=2, channels=24, strides=(4, 8, 16, 32))
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher))
    return student, teacher, Distiller(student, teacher, method)


def total(distiller, losses):
    return sum(distiller.weights.get(name, 1.0) * value for name, value in losses.items())


def test_feature_channels_by_stride():
    assert feature_channels(tiny_detector()) == {8: 16, 16: 16, 32: 16}
    model = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    assert feature_channels(model) == dict.fromkeys((8, 16, 32, 64, 128), 256)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", [32, 64]),  # two maps of stride 32
        ("ssd300_vgg16", [8, 16, 32, 64, 128, 256]),  # odd map sizes
        ("fasterrcnn_resnet50_fpn", [4, 8, 16, 32, 64]),
    ],
)
def test_strides_of_stock_detectors(name, strides):
    model = getattr(detection, name)(weights=None, weights_backbone=None)
    assert list(feature_channels(model)) == strides


def test_levels_that_come_coarse_first_have_their_own_strides():
    model = tiny_detector()
    expected = strided_levels(model)
    model.backbone.register_forward_hook(lambda _m, _i, maps: dict(reversed(maps.items())))
    assert strided_levels(model) == expected


@pytest.mark.parametrize("part", ["transform", "backbone"])
def test_a_student_that_goes_round_its_parts_is_named(part):
    student, _, distiller = pair()
    monkey = copy.deepcopy(getattr(student, part))
    whole = student.forward

    def around(images, targets):
        module = getattr(student, part)
        setattr(student, part, monkey)
        losses = whole(images, targets)
        setattr(student, part, module)
        return losses

    student.forward = around
    with pytest.raises(ValueError, match=r"RetinaNet did not call .* \.transform and \.backbone"):
        distiller.train()(*tiny_images())


def test_feature_channels_leaves_the_detector_as_it_was():
    model = tiny_detector().train()
    model.backbone.fpn.eval()
    before = copy.deepcopy(model.state_dict())
    feature_channels(model)
    assert model.backbone.body.training
    assert not model.backbone.fpn.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_tap_removes_its_hooks_even_after_an_error():
    model = tiny_detector()
    with pytest.raises(RuntimeError, match="stop"), capture_features(model):
        raise RuntimeError("stop")
    assert not model.backbone._forward_hooks
    assert not model.transform._forward_hooks


def test_losses_hold_task_and_method_terms_and_reach_every_trainable_part():
    student, _, distiller = pair()
    losses = distiller.train()(*tiny_images())
    assert {"classification", "bbox_regression", "reconstruction", "alignment"} <= set(losses)
    total(distiller, losses).backward()
    bare = [n for n, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert bare == []
    assert student.backbone.body.conv1[0].weight.grad.abs().sum() > 0


def test_teacher_has_no_gradient_and_does_not_change():
    _, teacher, distiller = pair()
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    for seed in range(3):
        distiller.train()
        optimizer.zero_grad()
        total(distiller, distiller(*tiny_images(seed=seed))).backward()
        optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("flip", ["distiller", "teacher", "backbone"])
def test_teacher_runs_in_eval_mode_after_train(flip):
    _, teacher, distiller = pair()
    modes = []
    teacher.backbone.register_forward_hook(
        lambda module, _inputs, _output: modes.append(any(m.training for m in module.modules()))
    )
    {"distiller": distiller, "teacher": teacher, "backbone": teacher.backbone}[flip].train()
    distiller.train()
    distiller(*tiny_images())
    assert modes == [False]


def test_teacher_is_in_no_state_dict():
    _, teacher, distiller = pair()
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "method"}
    own = {id(p) for p in distiller.parameters()}
    assert not own & {id(p) for p in teacher.parameters()}


def test_teacher_sees_the_very_pixels_of_the_student():
    """A stock student resizes to a random short side: the teacher gets that same tensor."""
    student = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=7, min_size=(64, 96, 128), max_size=160
    )
    teacher = tiny_detector("faster_rcnn", seed=2, strides=(4, 8, 16, 32))
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher))
    distiller = Distiller(student, teacher, method).train()
    seen = {}
    student.backbone.register_forward_hook(lambda _m, i, _o: seen.update(student=i[0].clone()))
    teacher.backbone.register_forward_hook(lambda _m, i, _o: seen.update(teacher=i[0].clone()))
    shapes = set()
    for seed in range(4):
        torch.manual_seed(seed)
        distiller(*tiny_images(size=80))
        assert torch.equal(seen["student"], seen["teacher"])
        shapes.add(seen["student"].shape)
    assert len(shapes) > 1


def test_renormalise_equals_normalising_the_image_anew():
    student, teacher = tiny_detector(), tiny_detector()
    teacher.transform.image_mean, teacher.transform.image_std = [0.1, 0.5, 0.9], [1.0, 0.5, 0.25]
    images = [torch.rand(3, 40, 64), torch.rand(3, 64, 50)]
    pixels, _ = student.transform(images)
    wanted, _ = teacher.transform(images)
    context = Context(pixels.tensors, pixels.image_sizes)
    got = renormalise(context, student.transform, teacher.transform)
    torch.testing.assert_close(got, wanted.tensors, atol=1e-5, rtol=1e-5)


def test_without_teacher_it_is_the_plain_student():
    student = tiny_detector()
    batch = tiny_images()
    torch.manual_seed(0)
    plain = student.train()(*batch)
    torch.manual_seed(0)
    wrapped = Distiller(student).train()(*batch)
    assert {k: v.item() for k, v in plain.items()} == pytest.approx(
        {k: v.item() for k, v in wrapped.items()}, rel=1e-6
    )


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"])
def test_stock_detectors_serve_as_student(name):
    student = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=7)
    if name.startswith("fcos"):
        student.transform.min_size, student.transform.max_size = (96,), 96
    teacher = tiny_detector("faster_rcnn", strides=(4, 8, 16, 32))
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher))
    distiller = Distiller(student, teacher, method).train()
    losses = distiller(*tiny_images(size=96))
    assert all(torch.isfinite(value) for value in losses.values())
    assert "alignment" in losses


@pytest.mark.parametrize("kinds", [("retinanet", "faster_rcnn"), ("faster_rcnn", "retinanet")])
def test_bf16_autocast_gives_float32_losses_near_the_float32_ones(kinds):
    _, _, distiller = pair(*kinds)
    batch = tiny_images()
    torch.manual_seed(0)
    plain = distiller.train()(*batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = distiller(*batch)
    assert all(value.dtype == torch.float32 for value in losses.values())
    for name in ("reconstruction", "alignment"):
        assert losses[name].item() == pytest.approx(plain[name].item(), abs=0.02), name
    total(distiller, losses).backward()


def test_refuses_half_a_pair_and_things_that_are_no_detector(caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="go together"):
        Distiller(tiny_detector(), tiny_detector())
    with pytest.raises(ValueError, match=r"student must be a torchvision detector.*Linear"):
        Distiller(nn.Linear(2, 2))


def test_look_gives_what_the_method_computes_and_leaves_the_student_as_it_was():
    student, _, distiller = pair("faster_rcnn")
    images = tiny_images()[0]
    distiller.train()
    looked = distiller.look(images)
    assert student.training
    with torch.no_grad(), capture_features(student.eval()) as seen:
        student(images)
    ours = dict(zip(feature_channels(student), seen.features.values(), strict=True))
    theirs = distiller.teacher_features(seen.images.tensors)
    context = Context(seen.images.tensors, seen.images.image_sizes)
    expected = distiller.method.levels(ours, theirs, context)
    assert looked.keys() == expected.keys()
    for stride, level in expected.items():
        assert not looked[stride].reconstruction.requires_grad
        torch.testing.assert_close(looked[stride].reconstruction, level.reconstruction)
        torch.testing.assert_close(looked[stride].losses, level.losses)


def test_look_takes_targets_for_a_method_that_needs_boxes():
    student, teacher = tiny_detector("faster_rcnn"), tiny_detector("faster_rcnn", seed=1)
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher), regions="boxes")
    distiller = Distiller(student, teacher, method)
    images, targets = tiny_images()
    assert distiller.look(images, targets).keys() == distiller.student_levels.keys()
    with pytest.raises(ValueError, match="targets must be one dict with boxes per image"):
        distiller.look(images)
