"""mmdetection's files: what their config settles, what is asked, and one line for each mistake."""

from __future__ import annotations

import json
import os
import sys
import types
from typing import ClassVar

import mmdet_reference as mm
import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import TINY as TINY_JOB
from command_line import call, refused
from tiny import tiny_detector

from dfmsd.detectors.checkpoints import CheckpointError, read_metadata
from dfmsd.detectors.features import feature_channels
from dfmsd.detectors.mmdet.contents import read_config, settings
from dfmsd.detectors.mmdet.load import load_mmdet
from dfmsd.detectors.saved import load_detector
from dfmsd.distill import Distiller
from dfmsd.loss import DFMSDLoss

TINY = {"width": 8, "depths": (1, 1, 2, 1), "heads": (1, 2, 2, 4), "window": 3}
SHALLOW = {"depths": (1, 1, 1, 1)}
LEVELS = {"outputs": (1, 2, 3), "extras": 2, "head": "bbox_head"}

CONFIG_2 = """
dataset_type = 'CocoDataset'
img_norm_cfg = dict(
    mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
model = dict(
    type='RetinaNet',
    backbone=dict(
        type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True, style='caffe',
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron2/resnet50_caffe')),
    neck=dict(
        type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1,
        add_extra_convs='on_output', num_outs=5, relu_before_extra_convs=True),
    train_cfg=dict(pos_weight=-1, debug=False))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', img_scale=[(1333, 640), (1333, 800)], keep_ratio=True),
    dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False),
]
lr_config = dict(policy='step', warmup_ratio=0.001, step=[8, 11])
work_dir = './work_dirs/x'
gpu_ids = range(0, 8)
"""
CONFIG_3 = """
model = dict(
    backbone=dict(depth=101, groups=32, base_width=4, style='pytorch', type='ResNeXt'),
    data_preprocessor=dict(
        bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], pad_size_divisor=32,
        std=[58.395, 57.12, 57.375], type='DetDataPreprocessor'),
    neck=dict(
        add_extra_convs='on_input', in_channels=[256, 512, 1024, 2048], num_outs=5,
        out_channels=256, start_level=1, type='FPN'),
    type='RetinaNet')
train_dataloader = dict(dataset=dict(type='CocoDataset'), batch_size=2)
"""


def saved(path, state, **meta):
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def swin():
    return mm.random_state(mm.shapes("swin", channels=16, **TINY))


@pytest.fixture(scope="module")
def retinanet():
    """A RetinaNet's ResNet and pyramid, its extra levels on the pyramid's last."""
    options = {"channels": 16, "source": "output"} | LEVELS | SHALLOW
    return mm.random_state(mm.shapes("resnet", **options))


# --- the config in the file


@torch.no_grad()
def test_the_config_of_mmdetection_2_settles_what_shapes_cannot(tmp_path, retinanet):
    path = saved(tmp_path / "r.pth", retinanet, config=CONFIG_2, CLASSES=("person",))
    teacher = load_mmdet(path)
    rgb = torch.rand(3, 64, 64)
    bgr = rgb.flip(0) * 255 - torch.tensor([103.53, 116.28, 123.675])[:, None, None]
    how = {"extras": 2, "source": "output", "relu": True, "style": "caffe"}
    how |= SHALLOW | {"trunk": "resnet", "outputs": (1, 2, 3)}
    expected = mm.features(retinanet, bgr[None], **how)
    for level, wanted in zip(teacher([rgb]).values(), expected, strict=True):
        assert (level - wanted).norm() / wanted.norm() < 1e-5
    assert teacher.report["config"] == "stored in the file"
    assert teacher.report["pixels"] == "as the config says"


def test_the_config_of_mmdetection_3(tmp_path, retinanet):
    named = {"channels": 16, "source": "input"} | LEVELS | SHALLOW
    state = mm.random_state(mm.shapes("resnet", **named))
    recipe = load_mmdet(saved(tmp_path / "r.pth", state, cfg=CONFIG_3)).recipe["mmdet"]
    assert recipe["extra"] == {"kind": "convs", "count": 2, "source": "input", "relu": False}
    assert recipe["style"] == "pytorch"
    assert recipe["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert recipe["std"] == pytest.approx([0.229, 0.224, 0.225])


def test_what_a_config_says():
    two, three = settings(read_config(CONFIG_2)), settings(read_config(CONFIG_3))
    assert two == {
        "style": "caffe",
        "source": "output",
        "relu": True,
        "levels": 5,
        "mean": [103.53, 116.28, 123.675],
        "std": [1.0, 1.0, 1.0],
        "order": "bgr",
        "other": [],
    }
    assert (three["style"], three["source"], three["relu"]) == ("pytorch", "input", False)
    assert (three["mean"][0], three["order"]) == (123.675, "rgb")


@pytest.mark.parametrize(
    ("neck", "source"),
    [
        ("add_extra_convs=True", "input"),
        ("add_extra_convs=True, extra_convs_on_inputs=False", "output"),
        ("add_extra_convs='on_output'", "output"),
        ("add_extra_convs=False", None),
        ("", None),
    ],
)
def test_every_way_to_name_the_source(neck, source):
    text = f"model = dict(backbone=dict(type='ResNet'), neck=dict(type='FPN', {neck}))"
    assert settings(read_config(text)).get("source") == source


def test_names_assigned_before_are_followed():
    text = "norm = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True)\n"
    text += "model = dict(backbone=dict(style='caffe'), neck=dict(num_outs=5), x=[f(1), -1])\n"
    text += "data = dict(pipeline=[{'type': 'Normalize', **norm}, dict(type='Normalize', **norm)])"
    config = read_config(text)
    assert config["model"]["x"] == [None, -1]
    assert settings(config)["order"] == "rgb"
    assert settings(config)["std"] == [4, 5, 6]


@pytest.mark.parametrize(
    "text",
    [
        "_base_ = 'x.py'\nmodel = dict(backbone=dict(style='caffe'), neck=dict())",
        "model = dict(backbone=dict(), neck=dict())\nmodel = dict(backbone=dict(style='caffe'))",
        "model = dict(",
        "model = ['a']",
        "",
    ],
)
def test_a_part_of_a_config_settles_nothing(text):
    assert settings(read_config(text)) == {}


def test_a_config_is_read_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "import os\nos.mkdir('made')\nmodel = dict(backbone=os.mkdir('made'), neck=dict())"
    assert settings(read_config(text)) == {}
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "neck",
    [
        "upsample_cfg=dict(mode='bilinear')",
        "act_cfg=dict(type='ReLU')",
        "add_extra_convs='on_lateral'",
    ],
)
def test_settings_that_change_the_features_unseen_are_refused(tmp_path, retinanet, neck):
    text = f"model = dict(backbone=dict(type='ResNet'), neck=dict({neck}))"
    path = saved(tmp_path / "r.pth", retinanet, config=text)
    with pytest.raises(CheckpointError, match=rf"r\.pth: its config has neck\.{neck[:7]}"):
        load_mmdet(path)


# --- what is asked


def test_what_neither_shapes_nor_config_tell_is_asked(tmp_path, retinanet):
    path = saved(tmp_path / "r.pth", retinanet)
    questions = [({}, "style"), ({"style": "pytorch"}, "relu")]
    questions += [({"style": "caffe"}, "mean"), ({"style": "caffe", "mean": (1, 2, 3)}, "std")]
    for given, name in questions:
        with pytest.raises(CheckpointError, match=rf"r\.pth: {name}: shapes cannot tell") as caught:
            load_mmdet(path, **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="source=input: the file itself says output"):
        load_mmdet(path, style="pytorch", relu=False, source="input")
    with pytest.raises(CheckpointError, match="three numbers"):
        load_mmdet(path, style="caffe", relu=False, mean=[1], std=[1], order="rgb")


def test_a_config_of_another_model_is_noticed(tmp_path, retinanet):
    text = "model = dict(backbone=dict(type='ResNet'), neck=dict(add_extra_convs='on_input'))"
    path = saved(tmp_path / "r.pth", retinanet, config=text)
    with pytest.raises(CheckpointError, match="reads input, but the shapes allow output"):
        load_mmdet(path)


@pytest.mark.parametrize(
    "given", [{"style": "pytorch"}, {"relu": False}, {"source": "input"}, {"order": "rgb"}]
)
def test_an_argument_that_contradicts_the_file_is_refused(tmp_path, retinanet, given):
    path = saved(tmp_path / "r.pth", retinanet, config=CONFIG_2)
    ((name, value),) = given.items()
    with pytest.raises(CheckpointError, match=rf"r\.pth: {name}={value}: the file itself says"):
        load_mmdet(path, **given)


# --- what stands next to the weights


def pickled_elsewhere(name, value):
    """A stand-in for a class of another library, so that files can name it."""
    module, _, attribute = name.rpartition(".")
    kind = type(attribute, (), {"__module__": module})
    for part in ("mmengine", "mmengine.logging", module):
        sys.modules.setdefault(part, types.ModuleType(part))
    setattr(sys.modules[module], attribute, kind)
    made = kind()
    made.__dict__.update(value)
    return made


def test_the_training_log_of_mmengine_is_ignored(tmp_path, swin):
    name = "mmengine.logging.history_buffer.HistoryBuffer"
    values = {"max_length": 9, "_log_history": np.array([1.5, 2.5]), "n": np.float64(3.0)}
    log = {"train/loss": pickled_elsewhere(name, values)}
    content = {"state_dict": swin, "message_hub": {"log_scalars": log}, "meta": {"cfg": None}}
    torch.save(content, tmp_path / "swin.pth")
    for module in [module for module in sys.modules if module.split(".")[0] == "mmengine"]:
        del sys.modules[module]
    assert load_mmdet(tmp_path / "swin.pth").report["used"] > 50


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("should-not-exist",))


class Foreign:
    """An object of the user's own code, which notes that it was made or filled."""

    log: ClassVar[list[str]] = []

    def __init__(self):
        self.log.append("made")

    def __setstate__(self, state):
        self.log.append("filled")


def test_code_in_a_file_is_not_run(tmp_path, swin, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": swin, "meta": {"hook": Evil()}}, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match=r"swin\.pth.*it asks for posix\.mkdir;") as caught:
        load_mmdet(tmp_path / "swin.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "should-not-exist").exists()


def test_objects_of_other_code_are_left_out_and_not_made(tmp_path, swin):
    content = {"state_dict": swin, "args": Foreign(), "epoch": 3}
    torch.save(content, tmp_path / "swin.pth")
    Foreign.log.clear()
    report = load_mmdet(tmp_path / "swin.pth").report
    assert report["file"] == "taken from state_dict; left out args, epoch"
    assert Foreign.log == []


# --- mistakes


def without(state, part):
    return {key: value for key, value in state.items() if part not in key}


MISTAKES = {
    "missing": (
        lambda s: without(s, "backbone.stages.2.blocks.1.attn.w_msa.proj.bias"),
        r"1 missing: backbone\.stages\.2\.blocks\.1\.attn\.w_msa\.proj\.bias",
    ),
    "missing output norm": (lambda s: without(s, "norm3"), r"2 missing: backbone\.norm3\.weight"),
    "missing embedding": (
        lambda s: without(s, "patch_embed"),
        r"neither Swin nor ResNet: .* found backbone\.stages\.0",
    ),
    "missing table": (
        lambda s: without(s, "stages.0.blocks.0.attn.w_msa.relative_position_bias_table"),
        r"1 missing: backbone\.stages\.0\.blocks\.0\.attn\.w_msa\.relative_position_bias_table",
    ),
    "extra": (
        lambda s: s | {"backbone.absolute_pos_embed": torch.zeros(1, 9, 8)},
        r"1 unexpected: backbone\.absolute_pos_embed",
    ),
    "normed pyramid": (
        lambda s: s | {"neck.fpn_convs.0.bn.weight": torch.zeros(16)},
        r"1 unexpected: neck\.fpn_convs\.0\.bn\.weight",
    ),
    "another shape": (
        lambda s: s | {"backbone.stages.1.blocks.0.norm1.bias": torch.zeros(7)},
        r"1 of another shape: backbone\.stages\.1\.blocks\.0\.norm1\.bias "
        r"\(expected \(16,\), found \(7,\)\)",
    ),
    "another pyramid": (
        lambda s: s | {"neck.lateral_convs.1.conv.weight": torch.zeros(16, 17, 1, 1)},
        r"neck\.lateral_convs\.1\.conv\.weight takes 17 channels.*\[8, 16, 32, 64\]",
    ),
    "odd window": (
        lambda s: {k: v[:-1] if "s.0.attn.w_msa.relative_p" in k else v for k, v in s.items()},
        r"relative_position_bias_table has 24 rows, expected \(2 window - 1\)²",
    ),
    "no pyramid": (lambda s: without(s, "neck."), r"keys backbone\.… and neck\.…, found backbone"),
    "nothing": (lambda s: {}, "found nothing"),
    "not finite": (
        lambda s: s | {"backbone.norm3.bias": torch.full((64,), float("nan"))},
        r"backbone\.norm3\.bias: 64 of 64 numbers are not finite",
    ),
    "too large": (
        lambda s: s | {"backbone.patch_embed.projection.weight": torch.zeros(4096, 3, 4, 4)},
        r"takes 8 channels, the trunk's stages have \[4096",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_file_key_and_shape(tmp_path, swin, mistake):
    change, message = MISTAKES[mistake]
    path = saved(tmp_path / "swin.pth", change(dict(swin)))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_mmdet(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path, swin):
    whole = saved(tmp_path / "whole.pth", swin).read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"<html>")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}: not a readable state") as caught:
            load_mmdet(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="absent: no such file"):
        load_mmdet(tmp_path / "absent")
    stock = {"backbone.body.conv1.weight": torch.zeros(1), "backbone.fpn.x": torch.zeros(1)}
    torch.save(stock, tmp_path / "stock.pth")
    with pytest.raises(CheckpointError, match=r"of torchvision.*import-torchvision NAME"):
        load_mmdet(tmp_path / "stock.pth")
    torch.save({"model": {"layers.0.x": torch.zeros(1)}}, tmp_path / "classifier.pth")
    with pytest.raises(CheckpointError, match=r"found model\.layers"):
        load_mmdet(tmp_path / "classifier.pth")


# --- the command


def test_the_command_writes_a_teacher_that_presets_take(capsys, tmp_path, swin):
    path = saved(tmp_path / "mask_rcnn_swin.pth", swin)
    status, out, err = call(capsys, "import-mmdet", path)
    assert (status, err) == (0, "")
    written = tmp_path / "mask_rcnn_swin.safetensors"
    first, last = out.splitlines()
    said = json.loads(first)
    for key, value in (TINY | {"trunk": "swin", "channels": 16}).items():
        assert said["recipe"][key] == (list(value) if isinstance(value, tuple) else value)
    assert said["recipe"]["extra"] == {"kind": "pool", "count": 1}
    assert said["recipe"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    used = len([key for key in swin if not key.startswith("rpn_head")])
    assert (said["report"]["used"], said["report"]["left"]) == (used, {"rpn_head": 2})
    assert said["report"]["pixels"] == "assumed"
    assert f"strong_file={written}" in last
    teacher, metadata = load_detector(written)
    assert metadata["source"] == "mask_rcnn_swin.pth"
    assert str(tmp_path) not in str(read_metadata(written))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for stride, level in load_mmdet(path)(images).items():
            assert torch.equal(level, teacher(images)[stride])
    student = tiny_detector(channels=16)
    Distiller(student, teacher, DFMSDLoss(feature_channels(student), feature_channels(teacher)))


def test_the_command_asks_and_takes_the_answers(capsys, tmp_path, retinanet):
    path, out = saved(tmp_path / "r.pth", retinanet), tmp_path / "t.safetensors"
    line = refused(capsys, "import-mmdet", path, "--out", out)
    assert line == (
        f"dfmsd: {path}: style: shapes cannot tell, and it holds no config that does; give style: "
        "pytorch or caffe (stride in the 3x3 or in the first 1x1 convolution)"
    )
    assert not out.exists()
    answers = ["--style", "caffe", "--mean", 103.53, 116.28, 123.675, "--std", 1, 1, 1]
    answers += ["--order", "bgr", "--relu", True]
    status, said, err = call(capsys, "import-mmdet", path, "--out", out, *answers)
    assert (status, err) == (0, "")
    recipe, report = json.loads(said.splitlines()[0]).values()
    assert (recipe["style"], report["order"], report["pixels"]) == ("caffe", "bgr", "given")
    assert recipe["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert recipe["std"] == pytest.approx([1 / 255] * 3)
    assert recipe["extra"] == {"kind": "convs", "count": 2, "source": "output", "relu": True}
    assert load_detector(out)[0].recipe["mmdet"] == recipe


def test_the_command_does_not_replace_what_it_reads(capsys, tmp_path, swin):
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({name: value.contiguous() for name, value in swin.items()}, path)
    before = path.read_bytes()
    for command in (
        ["import-mmdet", path],
        ["import-torchvision", "ssd300_vgg16", "--weights", path],
    ):
        line = refused(capsys, *command, "--out", path)
        assert line == f"dfmsd: {path}: is the file that is read; name another one with --out"
    assert refused(capsys, "import-mmdet", path) == line
    assert path.read_bytes() == before


def test_a_teacher_of_features_is_no_detector(capsys, tmp_path, swin):
    path = saved(tmp_path / "swin.pth", swin)
    call(capsys, "import-mmdet", path)
    (tmp_path / "a.png").write_bytes(b"")
    file = tmp_path / "swin.safetensors"
    line = refused(capsys, "predict", tmp_path / "a.png", "--checkpoint", file)
    assert line == f"dfmsd: {file}: a teacher of features; without a head it finds no boxes"


def test_a_job_distils_from_an_imported_teacher(capsys, tmp_path, swin, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call(capsys, "import-mmdet", saved(tmp_path / "swin.pth", swin))
    settings = [*TINY_JOB, "arms=one", "train.steps=2", "data.val_images=2"]
    settings += ["strong_file=swin.safetensors", "out=runs"]
    status, out, err = call(capsys, "distill", "scenes", *settings)
    assert status == 0, err
    assert "last student:" in out
