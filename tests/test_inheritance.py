"""What a student inherits: neck and head, where name and shape agree."""

from __future__ import annotations

import pytest
import torch
from command_line import TINY, call, refused, teachers
from tiny import tiny_detector

from dfmsd import stages
from dfmsd.detectors.build import build_detector, inherit
from dfmsd.detectors.checkpoints import read_tensors
from dfmsd.detectors.recipe import Recipe
from dfmsd.experiments import train as training
from dfmsd.experiments.records import read_records


def test_neck_and_head_compute_what_the_teachers_do():
    student, teacher = tiny_detector(seed=1), tiny_detector(seed=2)
    trunk = {k: v.clone() for k, v in student.backbone.body.state_dict().items()}
    inherit(student, teacher, ("neck", "head"))
    maps = {str(i): torch.randn(1, c, 16 >> i, 16 >> i) for i, c in enumerate((16, 24, 32))}
    ours, theirs = student.backbone.fpn(maps), teacher.backbone.fpn(maps)
    for name, level in theirs.items():
        assert torch.equal(ours[name], level)
    for name, found in teacher.head(list(theirs.values())).items():
        assert torch.equal(student.head(list(theirs.values()))[name], found)
    assert all(torch.equal(student.backbone.body.state_dict()[k], v) for k, v in trunk.items())


def test_the_neck_alone_leaves_the_head():
    student, teacher = tiny_detector(seed=1), tiny_detector(seed=2)
    head = {k: v.clone() for k, v in student.head.state_dict().items()}
    copied = inherit(student, teacher, ("neck",))
    assert len(copied) == 2 * (3 + 3)  # lateral and output convolutions: weight, bias
    assert all(name.startswith("backbone.fpn.") for name in copied)
    assert all(torch.equal(student.head.state_dict()[k], v) for k, v in head.items())


def test_other_shapes_and_other_names_stay():
    """Three classes against six: the class predictors differ, the rest of the head fits."""
    student, teacher = tiny_detector(classes=3, seed=1), tiny_detector(classes=6, seed=2)
    copied = inherit(student, teacher, ("head",))
    assert "head.regression_head.bbox_reg.weight" in copied
    assert not any("cls_logits" in name for name in copied)


def test_levels_of_the_neck_pair_by_stride():
    """A student that begins at stride 8 takes the teacher's level of stride 8, its second."""
    recipe = {
        "kind": "faster_rcnn",
        "trunk": "timm:resnet10t",
        "num_classes": 3,
        "image_size": 96,
        "fpn_channels": 16,
    }
    arguments = {"trunk_arguments": {"channels": [8, 8, 8, 8]}}
    student, teacher = (
        build_detector(Recipe(strides=strides, **recipe, **arguments))
        for strides in ((8, 16, 32), (4, 8, 16, 32))
    )
    inherit(student, teacher, ("neck",))
    for block in ("inner_blocks", "layer_blocks"):
        levels = (getattr(detector.backbone.fpn, block) for detector in (student, teacher))
        for mine, its in zip(*(list(level)[-3:] for level in levels), strict=True):
            assert torch.equal(mine[0].weight, its[0].weight)


def test_a_student_does_not_change_with_its_teacher_later():
    student, teacher = tiny_detector(seed=1), tiny_detector(seed=2)
    inherit(student, teacher, ("neck",))
    before = student.backbone.fpn.layer_blocks[0][0].weight.clone()
    with torch.no_grad():
        teacher.backbone.fpn.layer_blocks[0][0].weight.zero_()
    assert torch.equal(student.backbone.fpn.layer_blocks[0][0].weight, before)


def test_a_part_that_fits_nowhere_is_refused():
    student, teacher = tiny_detector("retinanet"), tiny_detector("faster_rcnn")
    with pytest.raises(ValueError, match="of the head fits from a FasterRCNN to a RetinaNet"):
        inherit(student, teacher, ("neck", "head"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teachers(tmp_path)
    return tmp_path


def test_every_row_starts_from_the_stronger_teacher(folder, capsys, monkeypatch):
    """Rows without a teacher too: otherwise initialisation would count as distillation."""
    starts = {}

    def keep(student, stages, settings, data, *, log, **options):
        starts[log.title] = {k: v.clone() for k, v in student.state_dict().items()}
        return train(student, stages, settings, data, log=log, **options)

    train = training.train_stages
    monkeypatch.setattr(training, "train_stages", keep)
    job = [*TINY, "student.strides=4,8,16,32", "inherit=neck+head", "jobs=1"]
    status, _, err = call(capsys, "distill", "scenes", *job)
    assert status == 0, err
    strong = read_tensors(folder / "strong.safetensors")
    assert len(starts) == 3
    for state in starts.values():
        for name in ("backbone.fpn.layer_blocks.1.0.weight", "rpn.head.conv.0.0.weight"):
            assert torch.equal(state[name], strong[name].to(state[name].dtype))
    for record in read_records(folder / "runs" / "records.jsonl"):
        assert "rpn.head.conv.0.0.weight" in record["inherited"]


@pytest.mark.parametrize("heir", ["weak", "strong"])
def test_only_the_first_stage_begins_with_an_inheritance(folder, capsys, monkeypatch, heir):
    """The published staged recipe: neck and head of the first teacher, then the student goes on."""
    starts, ends = [], []

    def keep(distiller, *given, **options):
        starts.append({k: v.clone() for k, v in distiller.student.state_dict().items()})
        history = fit(distiller, *given, **options)
        ends.append({k: v.clone() for k, v in distiller.student.state_dict().items()})
        return history

    fit = stages.fit
    monkeypatch.setattr(stages, "fit", keep)
    job = [*TINY, "student.strides=4,8,16,32", "inherit=neck+head", f"inherit_from={heir}"]
    status, _, err = call(capsys, "distill", "scenes", *job, "arms=two", "jobs=1")
    assert status == 0, err
    teacher = read_tensors(folder / f"{heir}.safetensors")
    [record] = read_records(folder / "runs" / "records.jsonl")
    assert len(record["inherited"]) > 10
    for name in record["inherited"]:
        assert torch.equal(starts[0][name], teacher[name].to(starts[0][name].dtype))
    assert all(torch.equal(starts[1][name], value) for name, value in ends[0].items())


def test_a_head_that_does_not_fit_ends_the_job_in_one_line(folder, capsys):
    job = [*TINY, "student.kind=retinanet", "student.strides=8,16,32", "inherit=neck+head"]
    assert "from a FasterRCNN to a RetinaNet" in refused(capsys, "distill", "scenes", *job)
