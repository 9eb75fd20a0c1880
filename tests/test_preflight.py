"""Preflight: what is measured is what a plain computation gives, and what is wrong is named."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from command_line import TINY, call, everything, refused, teachers
from tiny import tiny_detector, tiny_images

from dfmsd import stages
from dfmsd.align import alignment_loss
from dfmsd.detectors.checkpoints import read_tensors
from dfmsd.detectors.features import feature_channels
from dfmsd.detectors.saved import save_detector
from dfmsd.distill import Distiller
from dfmsd.experiments import preflight
from dfmsd.experiments.preflight import Preflight, is_due, run_preflight
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.profile import (
    collect_features,
    level_statistics,
    loss_balance,
    throughput,
)
from dfmsd.loss import DFMSDLoss
from dfmsd.training.log import Logging
from dfmsd.training.optim import Schedule, make_optimizer


def pair():
    student, teacher = tiny_detector(seed=0), tiny_detector("faster_rcnn", seed=1)
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher))
    return Distiller(student, teacher, method)


def test_level_statistics_by_hand():
    a = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[None]  # one channel, mean 4, population variance 5
    same = level_statistics([a[None], a[None]])
    assert same["constant"] == pytest.approx(1)
    assert same["mean"] == pytest.approx(4)
    assert same["sd"] == pytest.approx((40 / 7) ** 0.5)
    opposite = level_statistics([a[None], 8 - a[None]])  # the mean picture is flat
    assert opposite["constant"] == pytest.approx(0)
    # half of it is the same: pictures ±1 plus an own ±1 of opposite sign in the second image
    b, c = (
        torch.tensor([[1.0, 1, -1, -1]])[None, None],
        torch.tensor([[1.0, -1, 1, -1]])[None, None],
    )
    assert level_statistics([b + c, b - c])["constant"] == pytest.approx(0.5)
    dead = torch.cat([a[None], torch.full((1, 1, 2, 2), 9.0)], 1)
    assert level_statistics([dead, dead])["dead"] == 0.5
    assert level_statistics([dead])["constant"] != level_statistics([dead])["constant"]  # NaN


def test_collected_features_are_what_the_method_compares():
    distiller, (images, targets) = pair(), tiny_images(1)
    torch.manual_seed(0)
    ours, theirs = collect_features(distiller, [(images[0], targets[0])])
    losses = distiller.train()(images, targets)
    by_hand = [
        alignment_loss(distiller.method.adapters[str(s)](ours[s][0]), theirs[s][0])
        for s in (8, 16, 32)
    ]
    torch.testing.assert_close(
        losses["alignment"], torch.stack(by_hand).mean(), rtol=1e-4, atol=1e-5
    )


def test_balance_is_that_of_two_separate_backwards():
    distiller, batch = pair(), tiny_images(2)
    torch.manual_seed(3)
    found = loss_balance(distiller, batch)
    gradients, sums = [], []
    for distilled in (True, False):
        torch.manual_seed(3)
        distiller.zero_grad()
        total = 0
        for name, loss in distiller(*batch).items():
            if (name in distiller.weights) == distilled:
                total = total + distiller.weights.get(name, 1.0) * loss
        total.backward()
        sums.append(total.item())
        trunk = distiller.student.backbone.parameters()
        gradients.append(torch.cat([p.grad.flatten() for p in trunk if p.grad is not None]))
    assert found["ratio"] == pytest.approx(sums[0] / sums[1], rel=1e-3)
    norms = [gradient.norm().item() for gradient in gradients]
    assert found["gradient_ratio"] == pytest.approx(norms[0] / norms[1], rel=1e-3)
    cosine = (gradients[0] @ gradients[1] / (norms[0] * norms[1])).item()
    assert found["cosine"] == pytest.approx(cosine, abs=1e-3)


class Slow:
    """Batches of three images, all but the first after 0.2 s."""

    def iterate(self, start=0, rank=0, world=1):
        yield tiny_images(3)
        while True:
            time.sleep(0.2)
            yield tiny_images(3)


def test_throughput_counts_images_and_waiting():
    distiller, world, rows = Distiller(tiny_detector()), Accelerator(cpu=True), []
    schedule, optimizer = Schedule(steps=3, lr=1e-3), make_optimizer(distiller)
    began = time.perf_counter()
    log = Logging(watch=rows.append, show=False)
    found = throughput(distiller, optimizer, Slow(), schedule, accelerator=world, log=log)
    whole = time.perf_counter() - began
    assert len(rows) == 3  # one of them is not timed
    assert 6 / whole < found["images_s"] < 3 / 0.2
    assert 0.4 / whole < found["waiting"] < 1
    assert found["peak_gib"] == 0


def test_the_steps_are_made_as_the_settings_say(place, monkeypatch):
    monkeypatch.setattr(preflight.build, "evaluate", lambda *_, **__: {"AP": 1.0})
    forward, sizes, layouts = Distiller.forward, [], set()

    def seen(self, images, targets=None):
        if torch.is_grad_enabled():  # not while the levels are looked at
            sizes.append(len(images))
            kernel = self.student.backbone.body.conv1[0].weight
            layouts.add(kernel.is_contiguous(memory_format=torch.channels_last))
            layouts.add(self.teacher.backbone.fpn.layer_blocks[0][0].weight.is_contiguous())
        return forward(self, images, targets)

    monkeypatch.setattr(Distiller, "forward", seen)
    how = [
        "inherit=neck",
        "engine.accumulate=2",
        "engine.channels_last=True",
        "train.clip=1e-9",
        "train.lr=1.0",
    ]
    report = run_preflight(resolve("scenes", [*TINY, *how]), images=2, steps=2)
    (inherited,) = (text for part, _, text in report.findings if part == "inherited")
    laterals, outputs = ("inner_blocks", "layer_blocks")
    names = [f"backbone.fpn.{kind}.{n}.0" for kind in (laterals, outputs) for n in range(4)]
    assert inherited == f"16 tensors of the neck: {', '.join(names)}"  # weight and bias of each
    assert not report.reasons  # the clipping holds that learning rate down
    assert sizes == [1] * (1 + 3 * 2)  # the balance of one part; three steps of two parts
    assert layouts == {True, False}


@pytest.mark.parametrize("arms", ["none", "two"])
def test_the_student_inherits_from_the_teacher_of_the_settings(place, monkeypatch, arms):
    monkeypatch.setattr(preflight.build, "evaluate", lambda *_, **__: {"AP": 1.0})
    inherit, heads = preflight.inherit, []

    def noted(student, teacher, parts):
        heads.append(teacher.roi_heads.box_head.fc6.weight.clone())
        return inherit(student, teacher, parts)

    monkeypatch.setattr(preflight, "inherit", noted)
    how = ["inherit=neck", "inherit_from=weak", f"arms={arms}"]
    report = run_preflight(resolve("scenes", [*TINY, *how]), images=2, steps=1)
    assert not report.reasons
    (head,) = heads
    weak = read_tensors(place / "weak.safetensors")["roi_heads.box_head.fc6.weight"]
    assert torch.equal(head, weak.to(head.dtype))


def test_what_the_engine_cannot_do_is_refused(place, monkeypatch):
    monkeypatch.setattr(preflight.build, "evaluate", lambda *_, **__: {"AP": 1.0})
    report = run_preflight(resolve("scenes", [*TINY, "engine.accumulate=3"]), images=2, steps=1)
    (reason,) = report.reasons
    assert reason.startswith("steps: ")
    assert "2 images make no 3 equal parts" in reason


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teachers(tmp_path)
    return tmp_path


def test_a_teacher_that_detects_nothing_is_refused(place):
    report = run_preflight(resolve("scenes", TINY), images=2, steps=1)
    assert [reason.split(":")[0] for reason in report.reasons] == [
        "teacher weak",
        "teacher strong",
    ]
    assert "AP 0.0 on 2 validation images" in report.reasons[0]


def of_other_classes(path):
    model = tiny_detector("faster_rcnn", seed=1, strides=(4, 8, 16, 32), classes=2)
    save_detector(model, path, classes=["cat", "dog"])


def test_the_whole_report(place, capsys):
    for name in ("weak", "strong"):
        of_other_classes(place / f"{name}.safetensors")
    before = everything(place)
    status, out, err = call(capsys, "preflight", "scenes", *TINY, "--images", 2)
    assert (status, err) == (0, "")
    said = [line[9:].split(":")[0] for line in out.splitlines()]
    parts = {"data", "job", "student", "teacher weak", "teacher strong", "balance", "speed"}
    assert parts <= set(said)
    assert "other classes than the data have" in out
    assert "8 training and 4 validation images, 6 classes" in out
    assert "two, 4 steps of 2 images, 1.0 epochs" in out
    assert "| 4 |" in out
    assert everything(place) == before
    assert "peak learning rate 0.002" in out
    out = call(capsys, "preflight", "scenes", *TINY, "train.batch_of_lr=8", "--images", 2)[1]
    assert out.count("learning rate 0.002 × 2 / 8 = 0.0005: batch 2, recipe for 8") == 1


@pytest.mark.parametrize(
    ("settings", "part", "words"),
    [
        (
            ["weak_file=none.safetensors"],
            "teacher weak",
            "weak_file=none.safetensors: no such file",
        ),
        (["weak_file=broken.safetensors"], "teacher weak", "broken.safetensors"),
        (["student.weights=none.pth"], "data and student", "none.pth"),
        (["method.match=index", "method.strides=64"], "method", "no level in common"),
    ],
)
def test_what_is_wrong_is_named(place, monkeypatch, capsys, settings, part, words):
    monkeypatch.setattr(preflight.build, "evaluate", lambda *_, **__: {"AP": 1.0})
    (place / "broken.safetensors").write_bytes(b"no weights")
    report = run_preflight(resolve("scenes", [*TINY, *settings]), images=2, steps=1)
    assert any(r.startswith(part) and words in r for r in report.reasons), report
    line = refused(capsys, "preflight", "scenes", *TINY, *settings)
    assert line.startswith("dfmsd: preflight refused the job, ")
    assert words in line


def test_distill_says_that_the_learning_rate_is_another(place, capsys):
    how = (*TINY, "arms=none", "train.steps=1", "train.evaluations=0")
    for scaled, times in (("train.batch_of_lr=4", 1), ("train.batch_of_lr=0", 0)):
        status, out, _ = call(capsys, "distill", "scenes", *how, scaled)
        assert status == 0
        assert out.count("learning rate 0.002 × 2 / 4 = 0.001: batch 2, recipe for 4\n") == times


def test_a_long_job_begins_with_it_and_a_continued_one_does_not(place, capsys):
    settings = resolve("scenes", [*TINY, "train.steps=5000", "arms=none"])
    assert is_due(settings)
    assert not is_due(replace(settings, train=replace(settings.train, steps=4999)))
    line = refused(capsys, "distill", "scenes", *TINY, "train.steps=5000", "weak_file=none")
    assert "preflight refused the job, teacher weak: weak_file=none: no such file" in line
    folder = preflight.runs(settings)[0].folder
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("")
    assert not is_due(settings)


def test_it_begins_the_last_stage_as_the_job_does(place, monkeypatch):
    monkeypatch.setattr(preflight.build, "evaluate", lambda *_, **__: {"AP": 1.0})
    fitted, made = [], preflight.Preflight._measure
    real = stages.fit_adapters
    monkeypatch.setattr(
        stages, "fit_adapters", lambda *a, **o: fitted.append(a[1]) or real(*a, **o)
    )
    methods = []
    monkeypatch.setattr(
        preflight.Preflight, "_measure", lambda s, d, *a: methods.append(d.method) or made(s, d, *a)
    )
    for arm in ("two", "one"):
        extras = [f"arms={arm}", "method.anchor=1", "method.adapter=fitted"]
        report = run_preflight(resolve("scenes", [*TINY, *extras]), images=2, steps=1)
        assert not report.reasons
    assert [isinstance(method, stages.Anchored) for method in methods] == [True, False]
    assert fitted == [methods[0].method, methods[1]]


def test_levels_without_anything_to_teach_are_named(place, monkeypatch):
    monkeypatch.setattr(preflight.build, "evaluate", lambda *_, **__: {"AP": 1.0})
    real = preflight.collect_features

    def doctored(*arguments):
        student, teacher = real(*arguments)
        first = teacher[8][0]
        teacher[8] = [first + 0.01 * image for image in teacher[8]]
        teacher[16] = [0 * image + 3 for image in teacher[16]]
        teacher[32][0] = teacher[32][0] / 0
        return student, teacher

    monkeypatch.setattr(preflight, "collect_features", doctored)
    report = run_preflight(resolve("scenes", [*TINY, "arms=one"]), images=3, steps=1)
    notes = {part: words for part, verdict, words in report.findings if verdict != "ok"}
    assert "nearly the same picture for every image" in notes["stride 8"]
    assert notes["stride 8"].endswith("method.strides=4,16,32")
    assert "of the teacher's channels never change" in notes["stride 16"]
    assert report.reasons == ["stride 32: features are not finite"]
    assert "images_s" not in report.numbers


def test_a_distillation_of_weight_zero_is_a_note():
    report = Preflight(resolve("scenes", ["method.factor=0"]), None)
    report.check_balance({"ratio": 0.0, "gradient_ratio": 0.0, "cosine": 0.0})
    assert report.findings == [("balance", "note", "distillation weighs nothing")]
