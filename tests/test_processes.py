"""Several processes train one model: as one would, and nobody is left waiting."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import TINY, teachers
from several import alone, launch, together
from tiny import CNN, Line, LineDetector, TinyBatches, tiny_detector, tiny_images

from dfmsd.baselines import BASELINES
from dfmsd.data.batches import Batches
from dfmsd.data.scenes import SceneDataset
from dfmsd.detectors.build import build_detector
from dfmsd.detectors.checkpoints import load_weights, save_weights
from dfmsd.detectors.features import feature_channels
from dfmsd.detectors.saved import save_detector
from dfmsd.distill import Distiller
from dfmsd.experiments.records import read_records
from dfmsd.loss import DFMSDLoss
from dfmsd.stages import Stage, run_stages
from dfmsd.together import nobody_lost
from dfmsd.training.checkpoint import Checkpointing, list_checkpoints, load_latest
from dfmsd.training.evaluation import evaluate_detector
from dfmsd.training.finite import NonFiniteLossError
from dfmsd.training.log import Logging
from dfmsd.training.loop import Evaluation, fit
from dfmsd.training.optim import Schedule, make_optimizer
from dfmsd.training.signals import PreemptedError, stop_signals

ROOT = Path(__file__).parent.parent


def frozen(kind, seed, channels, strides):
    """A small detector whose batch norms do not look at the batch."""
    torch.manual_seed(seed)
    return build_detector(
        kind,
        "timm:resnet10t",
        num_classes=6,
        image_size=64,
        strides=strides,
        fpn_channels=channels,
        head_channels=32,
        trunk_arguments=CNN,
        frozen_norm=True,
    )


class Mixed(SceneDataset):
    """Scenes of two sizes within one size group: some batches are padded, for some processes."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        if index % 3:
            return image, target
        boxes = target["boxes"].clamp(max=60)
        return image[:, :60], target | {"boxes": boxes}


def trained(kind, name, optimizer, *, accumulate=1, steps=10):
    """Losses of ten steps with four images each, and the student's weights."""
    from accelerate import Accelerator

    student = frozen(kind, 0, 32, (8, 16, 32))
    teacher = frozen("faster_rcnn", 1, 24, (4, 8, 16, 32))
    torch.manual_seed(5)
    kind = DFMSDLoss if name == "dfmsd" else BASELINES[name]
    options = {"select": "random"} if name == "dfmsd" else {}
    method = kind(feature_channels(student), feature_channels(teacher), adapter="conv", **options)
    model, data = Distiller(student, teacher, method), Mixed(24, size=64, seed=1)
    lr = {"adamw": 1e-3, "sgd": 1e-2}[optimizer]
    history = fit(
        model,
        Batches(data, 4, seed=0, sizes=[(64, 64)] * 24),
        make_optimizer(model, name=optimizer, lr=lr),
        Schedule(steps=steps, lr=lr),
        accumulate=accumulate,
        accelerator=Accelerator(cpu=True),
        log=Logging(show=False),
    )
    return history.rows, student.state_dict()


def assert_same(one, other, *, rel=1e-5):
    assert len(one) == len(other)
    for mine, yours in zip(one, other, strict=True):
        assert mine == pytest.approx(yours, rel=rel)


@pytest.mark.parametrize(
    ("kind", "name", "optimizer"),
    [("retinanet", "dfmsd", "adamw"), ("faster_rcnn", "mgd", "adamw"), ("fcos", "pkd", "sgd")],
)
def test_two_processes_have_the_losses_of_one(kind, name, optimizer):
    (rows, weights), (first, second) = (
        alone(trained, kind, name, optimizer)[1],
        together(trained, 2, kind, name, optimizer),
    )
    assert len(rows) == 10
    assert_same(first[0], rows)
    assert second[0] == []  # one process writes
    assert all(torch.equal(value, second[1][key]) for key, value in first[1].items())
    if optimizer == "sgd":  # Adam makes steps of what is only rounding
        for key, value in weights.items():
            torch.testing.assert_close(first[1][key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_two_processes_have_the_losses_of_one_with_every_baseline(name):
    one = alone(trained, "retinanet", name, "sgd")[1]
    assert_same(together(trained, 2, "retinanet", name, "sgd")[0][0], one[0])


# --- evaluation


def evaluated(count, batch_size):
    from accelerate import Accelerator

    data = Mixed(count, size=64, seed=2)
    detector = frozen("faster_rcnn", 3, 16, (4, 8, 16, 32))
    detector.roi_heads.score_thresh = 0.0  # even an untrained one finds something
    world = Accelerator(cpu=True)
    return evaluate_detector(detector, data, batch_size=batch_size, accelerator=world, small=400)


def test_processes_evaluate_to_the_very_same_metrics():
    one = alone(evaluated, 7, 2)[1]
    assert one["AP50"] > 0
    assert str(together(evaluated, 2, 7, 2)) == str([one, one])  # the text, as NaN is not NaN


# --- stages, resuming, stopping


def run_line(folder, steps=6, kill_at=None):
    """Two stages of a model that stands for a detector; gives what there is to know at the end."""
    from accelerate import Accelerator

    class Killing(TinyBatches):
        def iterate(self, start=0, rank=0, world=1):
            for step, batch in enumerate(super().iterate(start, rank, world), start=start):
                if step == kill_at and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    student, logged = LineDetector(), []

    def evaluate(model):
        logged.append(model.student.weight.item() + model.student.seen.item())
        return {"AP": logged[-1]}

    with stop_signals() as stop:
        run_stages(
            student,
            [Stage("task only", Schedule(steps=steps, lr=0.1)) for _ in range(2)],
            Killing(4),
            optimizer={},
            checkpoints=Checkpointing(
                folder,
                lambda model, path, **place: save_weights(model, path, place),
                every_steps=2,
                stop=stop,
            ),
            evaluation=Evaluation(evaluate, every=4),
            accelerator=Accelerator(cpu=True),
            log=Logging(show=False),
        )
    return student.weight.item(), student.seen.item(), logged


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


def test_a_signal_to_one_process_stops_both_at_the_same_step_and_any_number_goes_on(tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = together(run_line, 2, tmp_path / "whole")
    assert whole[0] == whole[1]
    assert len(whole[0][2]) == 2
    first, second = together(run_line, 2, tmp_path / "cut", 6, 3)
    assert isinstance(first, PreemptedError)
    assert "another process was asked to stop: step 4 of stage 1 is done and saved" in str(first)
    assert "SIGTERM came: step 4 of stage 1 is done and saved" in str(second)
    path, state = load_latest(tmp_path / "cut")
    assert (state["stage"], state["step"]) == (0, 4)
    place = load_weights(LineDetector(), path.with_suffix(".safetensors"))
    assert place == {"stage": 0, "step": 4}
    again = together(run_line, 2, tmp_path / "cut")
    assert [answer[:2] for answer in again] == [answer[:2] for answer in whole]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert len(list_checkpoints(tmp_path / "cut")) == 2
    # the same run on one process: the same images, so nearly the same numbers
    (tmp_path / "one").mkdir()
    _, one = alone(run_line, tmp_path / "one")
    assert one[0] == pytest.approx(whole[0][0], rel=1e-5)
    losses = [[r for r in lines(tmp_path / name) if "loss" in r] for name in ("whole", "one")]
    assert_same(*losses)


def test_begun_on_two_processes_ended_on_one(tmp_path):
    assert isinstance(together(run_line, 2, tmp_path, 6, 3)[0], PreemptedError)
    _, one = alone(run_line, tmp_path)
    (tmp_path / "whole").mkdir()
    _, whole = alone(run_line, tmp_path / "whole")
    assert one[0] == pytest.approx(whole[0], rel=1e-5)
    assert_same(*([r for r in lines(f) if "loss" in r] for f in (tmp_path, tmp_path / "whole")))


class BadHere(Line):
    """Infinite on the second process only, from step 2 on."""

    calls = 0

    def forward(self, images, targets):
        self.calls += 1
        factor = float("inf") if self.calls == 3 and os.environ["RANK"] == "1" else 1.0
        losses = super().forward(images, targets)
        return losses | {"fit": factor * losses["fit"]}


def explode(folder):
    model = BadHere()
    fit(
        model,
        TinyBatches(),
        make_optimizer(model, lr=0.1),
        Schedule(steps=5, lr=0.1),
        checkpoints=Checkpointing(folder),
        log=Logging(show=False),
    )


def test_a_loss_that_explodes_on_one_process_stops_both_and_keeps_both_batches(tmp_path):
    for rank, error in enumerate(together(explode, 2, tmp_path)):
        assert isinstance(error, NonFiniteLossError)
        assert "step 2: fit is not finite" in str(error)
        path = tmp_path / f"nonfinite-00-0000002-process{rank}.pt"
        assert str(path) in str(error)
        images, _ = tiny_images(2, seed=2)
        kept = torch.load(path)["batch"][0]
        assert torch.equal(kept[0], images[rank])


def lonely(folder):
    """Train while the second process dies in the middle of a step."""

    class Dying(TinyBatches):
        def iterate(self, start=0, rank=0, world=1):
            for step, batch in enumerate(super().iterate(start, rank, world), start=start):
                if (step, rank) == (3, 1):
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

    with nobody_lost():
        schedule, model = Schedule(steps=9, lr=0.1), Line()
        optimizer = make_optimizer(model)
        options = {"checkpoints": Checkpointing(folder, every_steps=2), "log": Logging(show=False)}
        fit(model, Dying(), optimizer, schedule, **options)


def test_the_process_that_is_left_says_so_in_one_line_and_has_its_checkpoint(tmp_path):
    (first, pipe), (second, _) = launch(lonely, 2, tmp_path)
    error = pickle.loads(pipe.recv_bytes())
    first.join()
    second.join()
    assert second.exitcode == -signal.SIGKILL
    assert isinstance(error, ChildProcessError)
    assert str(error).startswith("another process of this run has ended")
    assert load_latest(tmp_path)[1]["step"] == 2


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="gloo"), nobody_lost():
        raise RuntimeError("gloo, but there is one process only")


# --- launched as a user does


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


OPTIONS = (*TINY, "engine.draws=image", "arms=none,two", "student.frozen_norm=True")
OPTIONS += ("train.optimizer=sgd", "train.lr=1e-2")


@pytest.mark.slow
def test_torchrun_gives_the_records_of_one_process(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    teachers(files)
    for name, launcher in (("one", []), ("two", ["torch.distributed.run", "--nproc_per_node=2"])):
        folder = tmp_path / name
        shutil.copytree(files, folder)  # two savings of one model may order the file differently
        command = [sys.executable, *(f for m in launcher[:1] for f in ("-m", m)), *launcher[1:]]
        done = subprocess.run(
            [*command, "-m", "dfmsd", "distill", "scenes", *OPTIONS, "jobs=2"],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("last student: ") == 1
    one, two = (read_records(tmp_path / name / "runs" / "records.jsonl") for name in ("one", "two"))
    assert [record["processes"] for record in one + two] == [1, 1, 2, 2]
    for mine, yours in zip(sorted(one, key=str), sorted(two, key=str), strict=True):
        assert (mine["arm"], mine["fingerprint"]) == (yours["arm"], yours["fingerprint"])
        for row, other in zip(mine["losses"], yours["losses"], strict=True):
            assert row == pytest.approx(other, rel=1e-5, abs=1e-5)  # rounded to five digits


@pytest.mark.slow
def test_every_process_takes_part_in_the_preflight(tmp_path):
    for name in ("weak", "strong"):  # of other classes: their AP is not asked for
        model = tiny_detector("faster_rcnn", seed=1, strides=(4, 8, 16, 32), classes=2)
        save_detector(model, tmp_path / f"{name}.safetensors", classes=["cat", "dog"])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "dfmsd"]
    done = subprocess.run(
        [*command, "preflight", "scenes", *OPTIONS, "--images", "2"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for part in ("balance: ", "speed: ", "4 steps of 2 images"):
        assert done.stdout.count(part) == 1


@pytest.mark.slow
def test_a_process_that_is_killed_ends_torchrun_and_the_job_continues(tmp_path):
    teachers(tmp_path)
    options = [*OPTIONS, "arms=none", "train.steps=40", "train.evaluations=0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["-m", "dfmsd", "distill", "scenes", *options]
    run = {"cwd": tmp_path, "env": environment(), "text": True, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **run)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(tmp_path.rglob("checkpoint-00-0000003.pt")):
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "SIGKILL" in err or "Signal 9" in err
    done = subprocess.run(command, **run, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = read_records(tmp_path / "runs" / "records.jsonl")
    assert record["resumed"]
    assert sum(record["steps"]) == 40


NOTEBOOK = """
from accelerate import notebook_launcher
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.runs import execute_all, runs

settings = resolve("scenes", {options!r})
notebook_launcher(execute_all, (runs(settings),), num_processes=2, use_port="{port}")
"""


@pytest.mark.slow
def test_notebook_launcher_runs_it_from_a_notebook(tmp_path):
    import socket

    import nbformat
    from nbconvert.preprocessors import ExecutePreprocessor

    teachers(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = NOTEBOOK.format(options=[*OPTIONS, "arms=none"], port=port)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (environment() | {"PYTHONPATH": str(ROOT)}).items():
            patch.setenv(key, value)
        ExecutePreprocessor(timeout=600).preprocess(book, {"metadata": {"path": str(tmp_path)}})
    (record,) = read_records(tmp_path / "runs" / "records.jsonl")
    assert record["processes"] == 2
