"""The presets at full scale: the field's recipe, by hand, and students that can be built."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import pytest
import torch
import tyro

from dfmsd.__main__ import commands
from dfmsd.detectors.features import feature_channels
from dfmsd.experiments import presets
from dfmsd.experiments.build import arm_stages, detector_for
from dfmsd.experiments.preflight import Preflight
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.presets_coco import PRESETS as COCO
from dfmsd.experiments.presets_coco import require
from dfmsd.experiments.settings import ARMS
from dfmsd.experiments.teachers import teacher


@pytest.mark.parametrize("scale", ["smoke", "quick", "full"])
@pytest.mark.parametrize("name", COCO)
def test_what_a_scale_may_change(name, scale):
    full, settings = resolve(name, scale="full"), resolve(name, scale=scale)
    assert (settings.preset, settings.scale) == (name, scale)
    assert settings.student == full.student
    assert (settings.data.short, settings.data.size) == (800, 1333)
    assert settings.method == full.method
    # linear scaling, by hand: 0.02 or 0.01 for 16 images
    lr = 0.02 if name.startswith("faster_rcnn") else 0.01
    assert settings.train.peak == pytest.approx(lr / 8 if scale == "smoke" else lr)


@pytest.mark.parametrize("name", COCO)
def test_the_doc_says_what_is_expected(name):
    assert "Expected, COCO val2017" in COCO[name].__doc__


@pytest.mark.parametrize("name", COCO)
def test_the_student_is_that_of_the_field(name):
    settings = resolve(name, ["student.weights="], scale="full")
    model = detector_for(settings.student, settings.data, num_classes=80)
    two_stage = name.startswith("faster_rcnn")
    strides = [4, 8, 16, 32, 64] if two_stage else [8, 16, 32, 64, 128]
    assert feature_channels(model) == dict.fromkeys(strides, 256)
    frozen = {
        n.split(".")[0] for n, p in model.backbone.body.named_parameters() if not p.requires_grad
    }
    # the stem and the first stage; frozen batch norms have no parameters
    assert frozen == {"conv1", "layer1"}
    assert not any(type(part).__name__ == "BatchNorm2d" for part in model.backbone.body.modules())
    small, large = torch.rand(3, 480, 640), torch.rand(3, 300, 640)
    seen, _ = model.transform([small, large])
    # by hand: 800 / 480 and 1333 / 640 (less than 800 / 300)
    assert seen.image_sizes == [(800, 1066), (624, 1333)]


def test_one_times_and_two_times():
    settings = resolve("faster_rcnn_r50_swin_sal", scale="full")
    for arm, steps in (("none", [90_000]), ("none-long", [180_000])):
        (stage,) = arm_stages(settings, arm, None, {})
        assert [stage.schedule.steps] == steps
        ends = {1: 59_999, 0.1: 79_999, 0.01: 89_999}
        for factor, step in ends.items():
            assert stage.schedule.factor(step * sum(ARMS[arm].lengths)) == pytest.approx(factor)
    lengths = [round(90_000 * length) for length in ARMS["two-long"].lengths]
    assert lengths == [90_000, 90_000]
    assert stage.schedule.factor(0) == pytest.approx(1 / 2000)
    assert settings.train.lr == 0.02
    assert resolve("fcos_r50", scale="full").train.lr == 0.01


def test_files_of_a_preset_are_seen_from_the_notebooks():
    near, far = (resolve("fcos_r50", root=root, scale="full") for root in (".", ".."))
    assert near.strong_file == "data/teachers/mask_rcnn_swin_s.safetensors"
    for field in ("strong_file", "weak_file", "out"):
        assert getattr(far, field) == f"../{getattr(near, field)}"
    assert (far.data.root, far.student.weights) == (
        f"../{near.data.root}",
        f"../{near.student.weights}",
    )
    assert presets.resolve("scenes", root="..").student.weights == ""
    assert replace(far.data, root=near.data.root) == near.data


def words_of_absence(name, project):
    """What teachers, preflight and the student's construction say when the files are missing."""
    settings = resolve(name, scale="full", root=project)
    said = []
    for teacher_name in ("weak", "strong"):
        if getattr(settings, f"{teacher_name}_file"):
            with pytest.raises(FileNotFoundError) as caught:
                teacher(settings, teacher_name)
            report = Preflight(settings, None)
            with report.refuse(f"teacher {teacher_name}"):
                report.check_teacher(teacher_name, None, 1)
            assert report.reasons == [f"teacher {teacher_name}: {caught.value}"]
            said.append(str(caught.value))
    with pytest.raises(FileNotFoundError) as caught:
        detector_for(settings.student, settings.data, num_classes=80)
    return [*said, str(caught.value)]


@pytest.mark.parametrize("name", COCO)
def test_a_missing_file_says_how_to_get_it(name, tmp_path):
    *teachers, trunk = words_of_absence(name, tmp_path)
    assert trunk.startswith(f"weights={tmp_path}/data/weights/resnet50-0676ba61.pth: no such file;")
    assert "download.pytorch.org/models/resnet50-0676ba61.pth" in trunk
    assert "student.weights=hub" in trunk
    assert len(teachers) == (1 if name == "retinanet_r50_from_faster_rcnn_v2" else 2)
    for line in (*teachers, trunk):
        assert "dfmsd train" not in line
        assert line.endswith('(README, "Full COCO")')
        assert "\n" not in line
    for line in teachers:  # the command it names exists, and writes the very file
        file = re.match(r"(?:weak|strong)_file=(.*?): no such file; ", line)[1]
        command = re.search(r"`dfmsd (.*?)`", line)[1].split()
        no_run = functools.wraps(commands()[command[0]])(lambda *_, **__: None)
        tyro.cli(no_run, args=command[1:])
        assert command[command.index("--out") + 1] == file
        kind = "import-torchvision" if name.endswith("faster_rcnn_v2") else "import-mmdet"
        assert command[0] == kind


def test_another_missing_file_is_to_be_trained(tmp_path):
    settings = resolve("scenes", [f"weak_file={tmp_path}/own.safetensors"], scale="smoke")
    with pytest.raises(FileNotFoundError, match="make it with `dfmsd train scenes weak"):
        teacher(settings, "weak")
    with pytest.raises(FileNotFoundError) as caught:
        require("weights", "own.pth")
    assert str(caught.value) == "weights=own.pth: no such file"
