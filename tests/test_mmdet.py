"""Imported mmdetection weights reproduce mmdetection's features."""

from __future__ import annotations

import mmdet_reference as mm
import pytest
import timm
import torch
import torchvision
from tiny import tiny_detector, tiny_images

from dfmsd.detectors.checkpoints import load_weights, save_weights
from dfmsd.detectors.features import feature_channels
from dfmsd.detectors.mmdet.contents import describe, their_name
from dfmsd.detectors.mmdet.load import load_mmdet
from dfmsd.detectors.mmdet.teacher import build_teacher
from dfmsd.distill import Distiller
from dfmsd.loss import DFMSDLoss

TINY = {"width": 8, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4), "window": 5}
SHALLOW = {"depths": (2, 1, 1, 1)}
RESNETS = {
    "plain": SHALLOW,
    "32x4d": SHALLOW | {"groups": 32, "base": 4},
    "64x4d": SHALLOW | {"groups": 64, "base": 4},
    "basic": SHALLOW | {"bottleneck": False},
}
RGB = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


def saved(path, state, **meta):
    """A checkpoint file as mmdetection writes it."""
    meta = {"mmdet_version": "2.25", "epoch": 12, "CLASSES": ("a", "b")} | meta
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


def worst(found, expected):
    """Largest relative error of any level; the levels must agree in number and shape."""
    found = list(found.values())
    assert [level.shape for level in found] == [level.shape for level in expected]
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def loaded_as_defined(path, state, images, trunk, options, how=None, **asked):
    """The teacher of a file with `state`; its levels are those of the definitions."""
    teacher = load_mmdet(path, **asked)
    expected = mm.features(state, images, trunk=trunk, **(how or {}), **options)
    assert worst(teacher(images), expected) < 1e-5
    return teacher


# --- Swin


@pytest.mark.parametrize(
    "size",
    [(160, 160), (97, 131), (64, 150), (33, 30)],
    ids=["even", "odd", "one side in a window", "all in a window"],
)
def test_swin_gives_the_levels_of_the_definitions(tmp_path, size):
    state = mm.random_state(mm.shapes("swin", channels=16, **TINY))
    path = saved(tmp_path / "swin.pth", state)
    teacher = loaded_as_defined(path, state, torch.randn(2, 3, *size), "swin", TINY)
    assert teacher.strides == [4, 8, 16, 32, 64]


@torch.no_grad()
def test_the_shift_of_a_map_in_one_window_matters(tmp_path):
    """Without it the last level is off by far more than the tolerance: the test above can fail."""
    state = mm.random_state(mm.shapes("swin", channels=16, **TINY))
    teacher = load_mmdet(saved(tmp_path / "swin.pth", state))
    images = torch.randn(1, 3, 97, 131)
    kept = teacher(images)
    stages = teacher.backbone.body.features
    for block in (stages[7][1], stages[5][1]):
        block.attn.__class__ = torchvision.models.swin_transformer.ShiftedWindowAttention
    dropped = teacher(images)
    errors = [((dropped[s] - kept[s]).norm() / kept[s].norm()).item() for s in (4, 8, 16, 32)]
    assert min(errors) > 1e-3


def original(state):
    """`state` as Swin's own repository names it and orders PatchMerging's columns."""
    found = {}
    for key, value in state.items():
        if ".downsample." in key:
            quarters = value.unflatten(-1, (-1, 4))  # (0,0), (0,1), (1,0), (1,1) of each channel
            value = torch.cat([quarters[..., place] for place in (0, 2, 1, 3)], dim=-1)
        key = key.replace("stages.", "layers.").replace("projection", "proj")
        key = key.replace("w_msa.", "").replace("ffn.layers.0.0", "mlp.fc1")
        found[key.replace("ffn.layers.1", "mlp.fc2")] = value
    return found


def test_checkpoints_of_swins_own_repository(tmp_path):
    state = mm.random_state(mm.shapes("swin", channels=16, **TINY))
    theirs = original(state)
    assert "backbone.layers.0.blocks.0.mlp.fc1.weight" in theirs
    path = saved(tmp_path / "swin.pth", theirs)
    teacher = loaded_as_defined(path, state, torch.randn(1, 3, 70, 90), "swin", TINY)
    assert teacher.report["left"] == {"rpn_head": 2}


def test_parallel_training_and_half_precision_leave_no_trace(tmp_path):
    state = mm.random_state(mm.shapes("swin", channels=16, **TINY))
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    path = saved(tmp_path / "swin.pth", {f"module.{k}": v for k, v in halves.items()})
    rounded = {k: v.float() if v.is_floating_point() else v for k, v in halves.items()}
    teacher = loaded_as_defined(path, rounded, torch.randn(1, 3, 64, 64), "swin", TINY)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}


# --- ResNet


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
@pytest.mark.parametrize("name", RESNETS)
def test_resnet_gives_the_levels_of_the_definitions(tmp_path, name, style):
    options = RESNETS[name]
    state = mm.random_state(mm.shapes("resnet", channels=16, **options))
    pixels = RGB | {"order": "rgb"} if style == "caffe" else {}
    asked = {} if name == "basic" else {"style": style} | pixels
    path, images = saved(tmp_path / "resnet.pth", state), torch.randn(1, 3, 75, 98)
    loaded_as_defined(path, state, images, "resnet", options, {"style": style}, **asked)


def test_a_file_of_old_without_counters(tmp_path):
    state = mm.random_state(mm.shapes("resnet", channels=16, **SHALLOW))
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path, images = saved(tmp_path / "resnet.pth", old), torch.randn(1, 3, 64, 64)
    loaded_as_defined(path, state, images, "resnet", SHALLOW, style="pytorch")


@torch.no_grad()
def test_bgr_pixels_become_rgb(tmp_path):
    """The file saw (BGR - mean) / std in 0..255; the teacher takes RGB in 0..1 its own way."""
    state = mm.random_state(mm.shapes("resnet", channels=16, **SHALLOW))
    mean, std = [103.53, 116.28, 123.675], [1.0, 2.0, 3.0]
    path = saved(tmp_path / "resnet.pth", state)
    teacher = load_mmdet(path, style="caffe", mean=mean, std=std, order="bgr")
    rgb = torch.rand(3, 64, 96)
    bgr = (rgb.flip(0) * 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = mm.features(state, bgr[None], trunk="resnet", style="caffe", **SHALLOW)
    assert worst(teacher([rgb]), expected) < 1e-5
    assert teacher.report["order"] == "bgr"
    assert teacher.transform.image_mean == pytest.approx([v / 255 for v in reversed(mean)])
    assert teacher.transform.image_std == pytest.approx([3 / 255, 2 / 255, 1 / 255])


# --- levels on top


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("source", ["input", "output"])
@pytest.mark.parametrize("trunk", ["swin", "resnet"])
def test_retinanet_levels_both_ways(tmp_path, trunk, source, relu):
    options = (TINY if trunk == "swin" else SHALLOW) | {"outputs": (1, 2, 3)}
    named = {"channels": 16, "extras": 2, "source": source, "head": "bbox_head"}
    state = mm.random_state(mm.shapes(trunk, **named, **options))
    asked = {"relu": relu} | ({"style": "pytorch"} if trunk == "resnet" else {})
    path, images = saved(tmp_path / "retinanet.pth", state), torch.randn(1, 3, 130, 97)
    how = {"extras": 2, "source": source, "relu": relu}
    teacher = loaded_as_defined(path, state, images, trunk, options, how, **asked)
    assert list(teacher(images)) == [8, 16, 32, 64, 128]


def test_a_trunk_as_wide_as_the_pyramid_asks_for_the_source(tmp_path):
    options = TINY | {"outputs": (1, 2, 3)}
    named = {"channels": 64, "extras": 2, "source": "output", "head": "bbox_head"}
    state = mm.random_state(mm.shapes("swin", **named, **options))
    path, images = saved(tmp_path / "retinanet.pth", state), torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"source: shapes cannot tell.*input or output"):
        load_mmdet(path, relu=False)
    for source in ("input", "output"):
        asked = {"source": source, "relu": False}
        how = asked | {"extras": 2}
        loaded_as_defined(path, state, images, "swin", options, how, **asked)


def test_norms_of_stages_outside_the_pyramid_are_left(tmp_path):
    options = TINY | {"outputs": (1, 2, 3)}
    state = mm.random_state(mm.shapes("swin", channels=16, **options))
    extra = mm.random_state(mm.norm_shapes("backbone.norm0", 8))
    path, images = saved(tmp_path / "swin.pth", state | extra), torch.randn(1, 3, 64, 64)
    teacher = loaded_as_defined(path, state, images, "swin", options)
    assert teacher.report["left"] == {"rpn_head": 2, "backbone": 2}


# --- the published models, by their names and shapes


def empty(named):
    return {name: torch.empty(shape, device="meta") for name, shape in named.items()}


def trunk_parameters(model, *heads):
    parts = [part for name, part in model.named_children() if name not in heads]
    return sum(value.numel() for part in parts for value in part.parameters())


PUBLISHED = {
    "swin_t": ("swin", mm.SWIN["t"], "torchvision:swin_t"),
    "swin_s": ("swin", mm.SWIN["s"], "torchvision:swin_s"),
    "swin_b": ("swin", mm.SWIN["b"], "torchvision:swin_b"),
    "r50": ("resnet", mm.RESNET["50"], "torchvision:resnet50"),
    "r101": ("resnet", mm.RESNET["101"], "torchvision:resnet101"),
    "x101_32x4d": ("resnet", mm.RESNET["x101_32x4d"], "timm:resnext101_32x4d"),
    "x101_64x4d": ("resnet", mm.RESNET["x101_64x4d"], "torchvision:resnext101_64x4d"),
}


@pytest.mark.parametrize("detector", ["rcnn", "retinanet"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configurations_are_recognised(name, detector):
    trunk, options, other = PUBLISHED[name]
    retinanet = {"outputs": (1, 2, 3), "extras": 2, "source": "input", "head": "bbox_head"}
    state = empty(mm.shapes(trunk, **options, **(retinanet if detector == "retinanet" else {})))
    shapes = describe(state)
    pool, convs = {"kind": "pool", "count": 1}, {"kind": "convs", "source": "input", "relu": False}
    extra = convs | {"count": shapes["extras"]} if detector == "retinanet" else pool
    assert shapes["sources"] == (["input"] if detector == "retinanet" else [])
    recipe = shapes | {"extra": extra, "style": "pytorch", "mean": [0.5] * 3, "std": [0.5] * 3}
    with torch.device("meta"):
        teacher = build_teacher(recipe)
        family, _, model = other.partition(":")
        get_model = torchvision.models.get_model if family == "torchvision" else timm.create_model
        theirs = get_model(model)
    # every name and shape of the file is one of ours, and the other way round
    ours = teacher.backbone.state_dict()
    found = {their_name(key, recipe): value for key, value in ours.items()}
    body = {key: value for key, value in state.items() if key.startswith(("backbone.", "neck."))}
    assert found.keys() == body.keys()
    for key, value in found.items():
        square = key.endswith("relative_position_index")
        assert value.numel() == body[key].numel() if square else value.shape == body[key].shape
    # the written-down list is the model that others know: as many parameters as theirs
    count = trunk_parameters(teacher.backbone.body, "norms")
    assert count == trunk_parameters(theirs, "head", "fc", "norm")
    strides = [8, 16, 32, 64, 128] if detector == "retinanet" else [4, 8, 16, 32, 64]
    assert teacher.strides == strides
    assert teacher.backbone.fpn.layer_blocks[0][0].weight.shape == (256, 256, 3, 3)


# --- as a teacher


def test_it_teaches_and_comes_back_from_a_file_of_ours(tmp_path):
    state = mm.random_state(mm.shapes("swin", channels=16, **TINY))
    teacher = load_mmdet(saved(tmp_path / "swin.pth", state))
    assert feature_channels(teacher) == dict.fromkeys((4, 8, 16, 32, 64), 16)
    save_weights(teacher, tmp_path / "teacher.safetensors", {})
    again = build_teacher(teacher.recipe["mmdet"])
    load_weights(again, tmp_path / "teacher.safetensors")
    student = tiny_detector("retinanet", channels=16)
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher))
    images, targets = tiny_images(size=64)
    losses = []
    for model in (teacher, again):
        torch.manual_seed(0)
        distiller = Distiller(student, model, method).train()
        losses.append({k: v.item() for k, v in distiller(images, targets).items()})
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert losses[0] == losses[1]
    assert set(method.weights) <= losses[0].keys()


@torch.no_grad()
def test_the_distiller_shows_it_the_pixels_in_its_own_units(tmp_path):
    state = mm.random_state(mm.shapes("resnet", channels=16, **SHALLOW))
    path = saved(tmp_path / "resnet.pth", state)
    mean, std = [103.53, 116.28, 123.675], [1.0, 1.0, 1.0]
    teacher = load_mmdet(path, style="caffe", mean=mean, std=std, order="bgr")
    student = tiny_detector("retinanet", channels=16)
    seen = []
    teacher.backbone.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher))
    distiller = Distiller(student, teacher, method).train()
    images, targets = tiny_images(count=1, size=64)
    seen.clear()
    distiller(images, targets)
    wanted = images[0] * 255 - torch.tensor(mean).flip(0)[:, None, None]
    torch.testing.assert_close(seen[-1][0, :, :64, :64], wanted, rtol=1e-4, atol=1e-2)
