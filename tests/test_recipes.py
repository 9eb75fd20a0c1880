"""Settings → objects: every preset builds, learning rates, saved detectors, shipped teachers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command_line import saved
from tiny import tiny_detector, tiny_images

from dfmsd.baselines import BASELINES
from dfmsd.data.scenes import SceneDataset, write_coco
from dfmsd.detectors.checkpoints import CheckpointError, read_metadata, read_tensors
from dfmsd.detectors.saved import load_detector
from dfmsd.distill import Distiller
from dfmsd.experiments.build import (
    VAL_SEED,
    arm_stages,
    batches,
    datasets,
    detector,
    detector_for,
    evaluate,
    method,
    records_file,
    scaled_rate,
    schedule,
    shown_size,
)
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.settings import ARMS, Train
from dfmsd.experiments.teachers import teacher, teacher_run
from dfmsd.loss import DFMSDLoss

ROOT = Path(__file__).parent.parent
SMALL = ["data.size=64", "student.fpn_channels=32", "train.steps=4"]
COUNTS = ["data.train_images=3", "data.val_images=2"]


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "fcos"])
@pytest.mark.parametrize("preset", ["scenes", "photos"])
def test_every_preset_distils_every_kind_of_detector(preset, kind):
    settings = resolve(preset, ["scale=smoke", f"student.kind={kind}", *SMALL])
    student = detector(settings.student, num_classes=6, image_size=64)
    teachers = {
        name: detector(getattr(settings, name), num_classes=6, image_size=64)
        for name in ("weak", "strong")
    }
    stages = arm_stages(settings, "two", student, teachers)
    assert [stage.name for stage in stages] == ["weak", "strong"]
    assert [stage.schedule.steps for stage in stages] == [2, 2]
    assert [stage.teacher for stage in stages] == [teachers["weak"], teachers["strong"]]
    model = Distiller(student, stages[1].teacher, stages[1].method).train()
    losses = model(*tiny_images())
    assert {"reconstruction", "alignment"} < set(losses)
    assert all(torch.isfinite(value) for value in losses.values())
    assert len(stages[1].method.pairs) == len(settings.student.strides)


@pytest.mark.parametrize("name", ["dfmsd", *BASELINES])
def test_the_settings_choose_method_weight_and_levels(name):
    student = tiny_detector("faster_rcnn", strides=(4, 8, 16, 32))
    strong = tiny_detector("retinanet", seed=1, channels=24)
    chosen = [f"method.name={name}", "method.factor=0.5", "method.strides=8,16"]
    whole = method(resolve("scenes", chosen[:1]), student, strong)
    part = method(resolve("scenes", chosen), student, strong)
    assert type(part) is (DFMSDLoss if name == "dfmsd" else BASELINES[name])
    assert part.weights == {term: weight / 2 for term, weight in whole.weights.items()}
    assert (whole.pairs, part.pairs) == ([(8, 8), (16, 16), (32, 32)], [(8, 8), (16, 16)])
    images, targets = tiny_images()
    losses = Distiller(student, strong, part).train()(images, targets)
    assert set(part.weights) <= set(losses)
    with pytest.raises(ValueError, match="no level in common"):
        method(resolve("scenes", [f"method.name={name}", "method.strides=4"]), student, strong)


def test_levels_pair_by_index_whichever_take_part():
    student = tiny_detector("retinanet", strides=(8, 16, 32))
    strong = tiny_detector("faster_rcnn", seed=1, strides=(4, 8, 16, 32))
    chosen = ["method.match=index", "method.strides=16,32"]
    assert method(resolve("scenes", chosen[:1]), student, strong).pairs == [
        (8, 4),
        (16, 8),
        (32, 16),
    ]
    assert method(resolve("scenes", chosen), student, strong).pairs == [(16, 8), (32, 16)]
    with pytest.raises(
        ValueError, match=r"method.strides=64: no .* with the student's \[8, 16, 32\]"
    ):
        method(resolve("scenes", ["method.strides=64"]), student, strong)


def test_short_makes_the_detector_resize_and_groups_by_what_it_sees(tmp_path):
    write_coco(tmp_path / "data", train=4, val=2, size=60)
    chosen = ["scale=smoke", f"data.root={tmp_path / 'data'}", "data.short=96", "data.size=128"]
    settings = resolve("photos", chosen)
    train, _ = datasets(settings.data)
    assert {image.shape for image, _ in train} == {(3, 60, 60)}
    model = detector_for(settings.student, settings.data, num_classes=6)
    seen, _ = model.transform([train[0][0]])
    assert seen.image_sizes == [(96, 96)]
    assert set(batches(train, settings.data, batch_size=2, seed=0).groups) == {(3, 3)}
    # by hand: 128 / 200 is less than 96 / 100
    assert shown_size(settings.data, 100, 200) == (64, 128)
    assert shown_size(replace(settings.data, short=0), 100, 200) == (100, 200)


def test_arms_without_teacher_and_lengths():
    settings = resolve("scenes", ["scale=smoke", "train.steps=10"])
    for name, arm in ARMS.items():
        if not arm.teachers:
            (stage,) = arm_stages(settings, name, None, {})
            assert (stage.name, stage.teacher, stage.method) == ("task only", None, None)
            assert stage.schedule.steps == 10 * arm.lengths[0]


def test_learning_rates_over_the_stage_and_over_the_run():
    """Warm-up 10 %, then a cosine: peaks and ends by hand."""
    train = Train(steps=20, lr=1.0, warmup=0.1)
    own = [schedule(train, steps=20, offset=offset) for offset in (0, 20)]
    for stage in own:  # each begins anew: 2 steps of warm-up, half-way at 2 + 18 / 2
        rates = [stage.factor(step) for step in range(20)]
        assert rates[:3] == [0.5, 1.0, 1.0]
        assert rates[11] == pytest.approx(0.5)
        assert rates[19] < 0.01
    shared = [schedule(train, steps=20, offset=offset, total=40) for offset in (0, 20)]
    rates = [stage.factor(step) for stage in shared for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[22] == pytest.approx(0.5)  # 4 + 36 / 2, in the second stage
    assert rates[20] > 0.5 > rates[23]
    assert rates[39] < 0.01
    stepped = replace(train, schedule="step", warmup=0.0)
    rates = [schedule(stepped, steps=9).factor(step) for step in range(9)]
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 2 + [0.01])


def test_the_learning_rate_follows_the_batch_and_one_line_says_so():
    train = Train(lr=0.02, batch_size=8, batch_of_lr=16)
    assert schedule(train, steps=20).lr == pytest.approx(0.01)
    assert scaled_rate(train) == "learning rate 0.02 × 8 / 16 = 0.01: batch 8, recipe for 16"
    for same in (replace(train, batch_of_lr=0), replace(train, batch_size=16)):
        assert schedule(same, steps=20).lr == 0.02
        assert scaled_rate(same) == ""


def test_schedule_over_reaches_the_stages(tmp_path):
    made = {}
    for over in ("stage", "run"):
        texts = ["scale=smoke", f"train.schedule_over={over}", "train.steps=20", *SMALL[:2]]
        settings = resolve("scenes", texts)
        student = detector(settings.student, num_classes=6, image_size=64)
        teachers = dict.fromkeys(("weak", "strong"), student)
        made[over] = [s.schedule for s in arm_stages(settings, "two-long", student, teachers)]
    assert [s.offset for s in made["stage"]] == [0, 0]
    assert [(s.offset, s.total) for s in made["run"]] == [(0, 40), (20, 40)]


def test_data_of_the_settings():
    settings = resolve("scenes", ["scale=smoke", "data.size=64", *COUNTS])
    train, val = datasets(settings.data)
    more, _ = datasets(replace(settings.data, train_images=5))
    assert (len(train), len(val), len(more)) == (3, 2, 5)
    assert train[0][0].shape == (3, 64, 64)
    assert torch.equal(more[2][0], train[2][0])  # the student's scenes are the teachers' first
    assert not torch.equal(val[0][0], train[0][0])
    draw = lambda seed: next(batches(train, settings.data, batch_size=2, seed=seed).iterate(3))  # noqa: E731
    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first[0], other[0], strict=True))


def test_records_go_where_the_settings_say():
    assert records_file(resolve("scenes", ["out=a"])) == Path("a/records.jsonl")
    assert records_file(resolve("scenes", ["out=a", "records=b.jsonl"])) == Path("b.jsonl")


# --- saved detectors


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "fcos"])
def test_a_saved_detector_finds_the_same(tmp_path, kind):
    from dfmsd.detectors.saved import save_detector

    settings = resolve("scenes", [f"student.kind={kind}", "student.fpn_channels=32"])
    torch.manual_seed(1)
    model = detector(settings.student, num_classes=3, image_size=64).eval()
    path = tmp_path / "d.safetensors"
    save_detector(model, path, classes=["a", "b", "c"], metrics={"AP": 0.5})
    again, metadata = load_detector(path)
    assert not again.training
    assert (metadata["classes"], metadata["metrics"]) == (["a", "b", "c"], {"AP": 0.5})
    images, _ = tiny_images()
    with torch.no_grad():
        for expected, found in zip(model(images), again(images), strict=True):
            assert len(expected["boxes"]) == len(found["boxes"])
            for key in ("boxes", "labels", "scores"):
                assert torch.equal(expected[key], found[key])


def test_stock_detectors_load_too(tmp_path):
    from dfmsd.detectors.build import stock_detector
    from dfmsd.detectors.saved import save_detector

    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    model = stock_detector(name, num_classes=3)
    save_detector(model, tmp_path / "d.safetensors", classes=["a", "b"])
    again, _ = load_detector(tmp_path / "d.safetensors")
    pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_recorded_teachers_are_still_those_of_the_settings():
    """Settings that are younger than a teacher's record do not change its fingerprint."""
    lines = (ROOT / "data" / "results" / "teachers.jsonl").read_text().splitlines()
    recorded = {row["arm"]: row["fingerprint"] for row in map(json.loads, lines)}
    for name in ("weak", "strong"):
        _, folder = teacher_run(resolve("scenes", ["scale=quick"]), name)
        assert folder.name == f"scenes-quick-{name}-{recorded[f'train {name}']}"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no readable metadata"),
        ({}, "not saved by dfmsd"),
        ({"dfmsd": '{"recipe": {"kind": "fcos"}}'}, "not saved by dfmsd"),
        ({"dfmsd": '{"recipe": {"kind": "fcos"}, "classes": []}'}, "its recipe makes no detector"),
        ({"dfmsd": '{"recipe": {"stock": "yolo"}, "classes": []}'}, "its recipe makes no detector"),
        ({"dfmsd": '{"recipe": 5, "classes": []}'}, "its recipe makes no detector"),
        ({"dfmsd": "{"}, "no readable metadata"),
    ],
)
def test_foreign_files_are_refused(tmp_path, metadata, message):
    path = tmp_path / "d.safetensors"
    if metadata is None:
        path.write_bytes(b"\x00" * 100)
    else:
        safetensors.torch.save_file({"x": torch.zeros(1)}, path, metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_detector(path)
    assert str(caught.value).startswith(f"{path}: ")


# --- teachers


def test_a_missing_teacher_says_how_to_make_it(tmp_path):
    settings = resolve("scenes", [f"strong_file={tmp_path / 'a.safetensors'}"])
    with pytest.raises(FileNotFoundError) as caught:
        teacher(settings, "strong")
    command = f"dfmsd train scenes strong scale=quick --save {tmp_path / 'a.safetensors'}"
    assert f"strong_file={tmp_path / 'a.safetensors'}: no such file" in str(caught.value)
    assert f"`{command}`" in str(caught.value)


def test_a_teacher_of_the_settings_comes_from_its_file(tmp_path):
    path = saved(tmp_path / "t.safetensors", kind="faster_rcnn")
    model = teacher(resolve("scenes", [f"weak_file={path}"]), "weak")
    expected = read_tensors(path)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_folders_of_teachers_depend_on_what_makes_them():
    def folder(*texts, name="weak", seed=0):
        return teacher_run(resolve("scenes", texts), name, seed=seed)[1]

    assert folder() == folder("arms=none", "train.lr=1", "method.strength=0", "strong.kind=fcos")
    different = [folder("weak.kind=fcos"), folder("teach.lr=1"), folder("weak_steps=7")]
    different += [folder("data.size=64"), folder(name="strong"), folder(seed=1), folder(seed=2)]
    different += [folder("precision=bf16"), folder("engine.accumulate=4")]
    assert len({folder(), *different}) == 10
    assert folder() == folder("engine.save_minutes=3", "engine.tensorboard=true")


@pytest.fixture(scope="module")
def shipped():
    """AP of the shipped teachers on 40 validation scenes."""
    settings = resolve("scenes", ["scale=quick"], root=ROOT)
    scenes = SceneDataset(40, size=settings.data.size, seed=VAL_SEED)
    return {
        name: evaluate(teacher(settings, name), scenes, settings.data)["AP"]
        for name in ("weak", "strong")
    }


def test_shipped_teachers_are_as_good_as_their_names(shipped):
    assert 0.5 < shipped["weak"] < shipped["strong"]


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_shipped_teachers_are_small_and_hold_their_record(name, shipped):
    path = ROOT / "data" / "teachers" / f"{name}.safetensors"
    assert path.stat().st_size <= 12e6
    metadata = read_metadata(path)
    assert metadata["classes"] == SceneDataset(1, size=64, seed=0).classes
    assert metadata["metrics"]["AP"] == pytest.approx(shipped[name], abs=0.1)
    kinds = {value.dtype for value in read_tensors(path).values()}
    assert torch.float16 in kinds
    assert all(v.dtype == torch.float32 for v in load_detector(path)[0].parameters())


def test_a_missing_data_folder_names_its_setting():
    settings = resolve("photos", ["data.root=no/where"], scale="smoke")
    with pytest.raises(FileNotFoundError, match=r"^data.root=no/where: no such folder"):
        datasets(settings.data)
