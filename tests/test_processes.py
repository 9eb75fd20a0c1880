"""Several processes train one model: plain DDP, exact resume, and nobody is left waiting."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import TINY, teachers
from several import alone, in_parallel, launch
from tiny import Line, LineDetector, TinyBatches, tiny_detector, tiny_images

from dfmsd.baselines import BASELINES
from dfmsd.data.batches import Batches
from dfmsd.data.scenes import SceneDataset
from dfmsd.detectors.checkpoints import load_weights, save_weights
from dfmsd.detectors.features import feature_channels
from dfmsd.detectors.saved import save_detector
from dfmsd.distill import Distiller
from dfmsd.experiments.records import read_records
from dfmsd.loss import DFMSDLoss
from dfmsd.stages import Stage, fit_adapters, run_stages
from dfmsd.training.checkpoint import Checkpointing, list_checkpoints, load_latest
from dfmsd.training.evaluation import evaluate_detector
from dfmsd.training.log import Logging
from dfmsd.training.loop import Evaluation, fit
from dfmsd.training.optim import Schedule, make_optimizer
from dfmsd.training.signals import PreemptedError, stop_signals
from dfmsd.training.steps import NonFiniteLossError, backward, peer_errors, step_seed

ROOT = Path(__file__).parent.parent


class Mixed(SceneDataset):
    """Scenes of two sizes within one size group: some batches are padded, for some processes."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        if index % 3:
            return image, target
        boxes = target["boxes"].clamp(max=60)
        return image[:, :60], target | {"boxes": boxes}


def distiller(kind, name):
    """A small student and teacher, the same at each call."""
    student = tiny_detector(kind, channels=32)
    teacher = tiny_detector("faster_rcnn", seed=1, channels=24, strides=(4, 8, 16, 32))
    torch.manual_seed(5)
    method = DFMSDLoss if name == "dfmsd" else BASELINES[name]
    return Distiller(student, teacher, method(*map(feature_channels, (student, teacher)))).train()


def share(rank):
    """The two images of a process: the second's are padded, and one is without boxes."""
    images, targets = tiny_images(4)
    images[3] = images[3][:, :40]
    targets[2] |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    torch.manual_seed(step_seed(0, 0, 0, rank))  # as `fit` does
    return images[2 * rank :][:2], targets[2 * rank :][:2]


def gradient_of_all(kind, name):
    """Gradients and losses of one step, as the engine computes it on several processes."""
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), distiller(kind, name)
    weights, prepared = model.weights, accelerator.prepare(model)
    batch = share(accelerator.process_index)
    losses, _ = backward(accelerator, prepared, batch, 0, weights=weights)
    return {key: value.grad for key, value in model.named_parameters()}, losses


def gradients_alone(kind, name):
    """The same of each share in one process, with plain torch."""
    answers = []
    for rank in range(2):
        model = distiller(kind, name)
        losses = model(*share(rank))
        sum(model.weights.get(key, 1.0) * value for key, value in losses.items()).backward()
        gradients = {key: value.grad for key, value in model.named_parameters()}
        answers.append((gradients, {key: value.item() for key, value in losses.items()}))
    return answers


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("faster_rcnn", "dfmsd"),
        pytest.param("retinanet", "pkd", marks=pytest.mark.slow),
        pytest.param("fcos", "mgd", marks=pytest.mark.slow),
    ],
)
def test_the_gradient_is_the_mean_of_the_gradients_of_the_shares(kind, name):
    _, ((first, losses), (second, others)) = alone(gradients_alone, kind, name)
    for gradients, means in in_parallel(gradient_of_all, 2, kind, name):
        assert gradients.keys() == first.keys()
        for key, gradient in gradients.items():
            if first[key] is None:  # a frozen part of the trunk
                assert gradient is None
                continue
            expected = (first[key] + second[key]) / 2
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6, msg=key)
        for key, value in losses.items():
            assert means[key] == pytest.approx((value + others[key]) / 2, rel=1e-6)
    assert losses["loss_classifier" if kind == "faster_rcnn" else "classification"] > 0
    assert any(not torch.equal(first[key], second[key]) for key in first if first[key] is not None)


# --- evaluation


def evaluated(count, batch_size):
    from accelerate import Accelerator

    data = Mixed(count, size=64, seed=2)
    detector = tiny_detector("faster_rcnn", seed=3, strides=(4, 8, 16, 32))
    detector.roi_heads.score_thresh = 0.0  # even an untrained one finds something
    world = Accelerator(cpu=True)
    return evaluate_detector(detector, data, batch_size=batch_size, accelerator=world, small=400)


def test_processes_evaluate_to_the_very_same_metrics():
    one = alone(evaluated, 7, 2)[1]
    assert one["AP50"] > 0
    assert str(in_parallel(evaluated, 2, 7, 2)) == str([one, one])  # the text, as NaN is not NaN


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


def test_a_signal_to_one_process_stops_both_at_the_same_step_and_they_go_on_exactly(tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = in_parallel(run_line, 2, tmp_path / "whole")
    assert whole[0] == whole[1]
    assert len(whole[0][2]) == 3
    first, second = in_parallel(run_line, 2, tmp_path / "cut", 6, 3)
    assert isinstance(first, PreemptedError)
    assert "another process was asked to stop: step 4 of stage 1 is done and saved" in str(first)
    assert "SIGTERM came: step 4 of stage 1 is done and saved" in str(second)
    path, state = load_latest(tmp_path / "cut")
    assert (state["stage"], state["step"]) == (0, 4)
    place = load_weights(LineDetector(), path.with_suffix(".safetensors"))
    assert place == {"stage": 0, "step": 4}
    again = in_parallel(run_line, 2, tmp_path / "cut")
    assert [answer[:2] for answer in again] == [answer[:2] for answer in whole]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert len(list_checkpoints(tmp_path / "cut")) == 2


def distilled(folder, kill_at=None):
    """Four steps of a distillation with random masks; gives the student's weights."""
    from accelerate import Accelerator

    class Killing(TinyBatches):
        def iterate(self, start=0, rank=0, world=1):
            for step, batch in enumerate(super().iterate(start, rank, world), start=start):
                if (step, rank) == (kill_at, 1):
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    model = distiller("retinanet", "mgd")
    with stop_signals() as stop:
        fit(
            model,
            Killing(4),
            make_optimizer(model, lr=1e-2),
            Schedule(steps=4, lr=1e-2),
            checkpoints=Checkpointing(folder, stop=stop),
            accelerator=Accelerator(cpu=True),
            log=Logging(show=False),
        )
    return model.state_dict()


def fitted(*seen):
    """Sizes of the batches that adapters are fitted on, and their weights after it."""
    from accelerate import Accelerator

    model, sizes = distiller("retinanet", "fitnet"), []
    model.student.register_forward_pre_hook(lambda _m, given: sizes.append(len(given[0])))
    batches, count = (TinyBatches(4), 2) if not seen else (Shares(4), 4)
    fit_adapters(model, model.method, batches, count, accelerator=Accelerator(cpu=True))
    return sizes, model.method.state_dict()


class Shares(TinyBatches):
    """As batches of their own what two processes get of each."""

    def iterate(self, *_):
        for both in zip(*(super(Shares, self).iterate(0, rank, 2) for rank in (0, 1)), strict=True):
            yield from both


def test_processes_share_the_batches_that_adapters_are_fitted_on():
    (sizes, expected), both = fitted(Shares), in_parallel(fitted, 2)
    assert [sizes, *(sizes for sizes, _ in both)] == [[2] * 4, [2, 2], [2, 2]]
    for _, found in both:
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


def test_an_interrupted_distillation_resumes_exactly_on_as_many_processes(tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = in_parallel(distilled, 2, tmp_path / "whole")
    assert isinstance(in_parallel(distilled, 2, tmp_path / "cut", 1)[0], PreemptedError)
    assert load_latest(tmp_path / "cut")[1]["step"] == 2
    again = in_parallel(distilled, 2, tmp_path / "cut")
    assert len(lines(tmp_path / "cut")) == 4
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for key, value in whole[0].items():
        assert torch.equal(again[0][key], value), key


def test_begun_on_two_processes_ended_on_one(tmp_path):
    assert isinstance(in_parallel(run_line, 2, tmp_path, 6, 3)[0], PreemptedError)
    _, one = alone(run_line, tmp_path)
    assert len(one[2]) == 3  # evaluations, the first of them after the signal
    assert sum("loss" in row for row in lines(tmp_path)) == 12


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
    for rank, error in enumerate(in_parallel(explode, 2, tmp_path)):
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

    with peer_errors():
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
    with pytest.raises(RuntimeError, match="gloo"), peer_errors():
        raise RuntimeError("gloo, but there is one process only")


def lose_a_loader_process():
    batches = Batches(SceneDataset(8, size=32), 2, seed=0, workers=1).iterate()
    with peer_errors():
        next(batches)
        multiprocessing.active_children()[0].kill()
        time.sleep(20)


def test_a_loader_process_that_dies_between_two_batches_is_one_line():
    with pytest.raises(ChildProcessError, match=r"^a loader process was lost: .* continues from"):
        lose_a_loader_process()


# --- launched as a user does


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


OPTIONS = (*TINY, "arms=none,two", "train.optimizer=sgd", "train.lr=1e-2")


def torchrun(*arguments, cwd):
    """Run dfmsd on two processes, which must end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "dfmsd"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_torchrun_writes_one_record_per_run(tmp_path):
    teachers(tmp_path)
    output = torchrun("distill", "scenes", *OPTIONS, "jobs=2", cwd=tmp_path)
    assert output.count("last student: ") == 1
    records = read_records(tmp_path / "runs" / "records.jsonl")
    assert sorted((record["arm"], record["processes"]) for record in records) == [
        ("none", 2),
        ("two", 2),
    ]


@pytest.mark.slow
def test_every_process_takes_part_in_the_preflight(tmp_path):
    for name in ("weak", "strong"):  # of other classes: their AP is not asked for
        model = tiny_detector("faster_rcnn", seed=1, strides=(4, 8, 16, 32), classes=2)
        save_detector(model, tmp_path / f"{name}.safetensors", classes=["cat", "dog"])
    output = torchrun("preflight", "scenes", *OPTIONS, "--images", "2", cwd=tmp_path)
    for part in ("balance: ", "speed: ", "4 steps of 2 images"):
        assert output.count(part) == 1


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
