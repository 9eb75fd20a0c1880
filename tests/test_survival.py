"""Runs that are killed, wherever they stand, end as the uninterrupted run: bit for bit."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import time

import pytest
import sal_run
import torch
from several import alone, start
from tiny import LineDetector, TinyBatches

from dfmsd.detectors.checkpoints import CheckpointError, load_state, load_weights, save_weights
from dfmsd.stages import Stage, run_stages
from dfmsd.training import log as logs
from dfmsd.training.checkpoint import Checkpointing, list_checkpoints
from dfmsd.training.log import Logging
from dfmsd.training.loop import Evaluation
from dfmsd.training.optim import Schedule


def export(model, path, **place):
    save_weights(model, path, place)


def train(folder):
    """Two stages of six steps: checkpoints every two, evaluations every three, buffers too."""
    folder.mkdir(parents=True, exist_ok=True)
    student = LineDetector()
    run_stages(
        student,
        [Stage("task only", Schedule(steps=6, lr=0.1)) for _ in range(2)],
        TinyBatches(),
        optimizer={},
        checkpoints=Checkpointing(folder, export, every_steps=2),
        evaluation=Evaluation(lambda model: {"AP": model.student.weight.item()}, every=3),
        log=Logging(show=False),
    )
    export(student, folder / "student.safetensors")


def deadly(folder, number):
    """Train, and die at operation `number` on a file: in writing, renaming, removing, logging."""
    count = itertools.count(1)

    def guard(owner, name):
        original = getattr(owner, name)

        def call(*arguments, **options):
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, name, call)

    guard(os, "fsync")  # all is written, nothing is named yet
    guard(os, "replace")
    guard(os, "unlink")
    guard(json, "dumps")  # a row of the log
    train(folder)
    return next(count) - 1


def outcome(folder):
    """Log and final student of a finished run."""
    student = LineDetector()
    load_weights(student, folder / "student.safetensors")
    return (folder / "log.jsonl").read_text(), student.weight.item(), student.seen.item()


def check_pairs(folder):
    """Every state can be read, and its student is beside it and of the same step."""
    for path in list_checkpoints(folder):
        state = load_state(path)
        place = load_weights(LineDetector(), path.with_suffix(".safetensors"))
        assert place == {"stage": state["stage"], "step": state["step"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Outcome and number of operations on files of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    status, operations = alone(deadly, folder, 0)
    assert status == 0
    return outcome(folder), operations


def test_killed_five_times_at_random_in_writing_logging_or_between(tmp_path, whole):
    expected, operations = whole
    killed = 0
    for _ in range(5):
        status, _ = alone(deadly, tmp_path, random.randrange(1, operations // 2))
        killed += status == -signal.SIGKILL
        check_pairs(tmp_path)
        if status == 0:
            break
    assert killed > 0
    assert alone(train, tmp_path)[0] == 0
    assert outcome(tmp_path) == expected


@pytest.mark.slow
def test_killed_at_every_single_operation(tmp_path, whole):
    """Among them: between student and state of a pair, before its renaming, at the boundary."""
    expected, operations = whole
    assert operations > 60
    for number in range(1, operations + 1):
        folder = tmp_path / str(number)
        assert alone(deadly, folder, number)[0] == -signal.SIGKILL
        check_pairs(folder)
        assert alone(train, folder)[0] == 0
        assert outcome(folder) == expected, number


# --- a disk that is full, a log that was damaged


def full_at(patch, number):
    """Make write number `number` of a training find no room: a log's, a file's, or its renaming."""
    count = itertools.count(1)

    def guard(original):
        def call(*arguments, **options):
            if next(count) == number:
                raise OSError(errno.ENOSPC, "No space left on device", *arguments[1:2])
            return original(*arguments, **options)

        return call

    patch.setattr(os, "fsync", guard(os.fsync))
    patch.setattr(os, "replace", guard(os.replace))
    patch.setattr(logs, "open", guard(open), raising=False)
    return count


def writes(folder, number=0):
    """How many writes a training makes, the one of that number without room."""
    with pytest.MonkeyPatch.context() as patch:
        count = full_at(patch, number)
        train(folder)
    return next(count) - 1


def without_room(folder, number, expected):
    with pytest.raises((OSError, CheckpointError), match="No space left on device") as caught:
        writes(folder, number)
    assert str(folder) in str(caught.value) or caught.value.errno == errno.ENOSPC
    assert not list(folder.glob(".*.tmp"))
    check_pairs(folder)
    train(folder)
    assert outcome(folder) == expected, number


def test_a_disk_that_is_full_at_a_write_costs_nothing(tmp_path, whole):
    for number in random.sample(range(1, writes(tmp_path / "count") + 1), 3):
        without_room(tmp_path / str(number), number, whole[0])


@pytest.mark.slow
def test_a_disk_that_is_full_at_every_single_write(tmp_path, whole):
    for number in range(1, writes(tmp_path / "count") + 1):
        without_room(tmp_path / str(number), number, whole[0])


DAMAGES = {
    "gone": lambda log: log.unlink(),
    "empty": lambda log: log.write_bytes(b""),
    "binary": lambda log: log.write_bytes(random.randbytes(500)),
    "cut": lambda log: log.write_bytes(log.read_bytes()[:-9]),
    "a line less": lambda log: log.write_bytes(log.read_bytes().split(b"\n", 1)[1]),
    "twice": lambda log: log.write_bytes(2 * log.read_bytes()),
    "another number": lambda log: log.write_bytes(log.read_bytes().replace(b"0.", b"7.")),
    "no objects": lambda log: log.write_bytes(b"1\n[]\nnull\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("share", [pytest.param(0.4, marks=pytest.mark.slow), 0.8])
def test_whatever_becomes_of_the_log_the_run_ends_with_the_same(tmp_path, whole, damage, share):
    expected, operations = whole
    assert alone(deadly, tmp_path, int(share * operations))[0] == -signal.SIGKILL
    DAMAGES[damage](tmp_path / "log.jsonl")
    train(tmp_path)
    assert outcome(tmp_path) == expected


# --- real detectors, killed from outside


def distil(folder, slow):
    sal_run.main(folder, sal_run.Slow() if slow else TinyBatches())


def kill_when(folder, seen):
    """Start a run and kill it -9 as soon as `seen()` says so."""
    process, _ = start(distil, folder, True, ACCELERATE_USE_CPU="true")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.is_alive() and not seen():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"


def rows(folder):
    log = folder / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def same_runs(one, other):
    """Whether two finished runs of `sal_run` left the same losses and the same weights."""
    if (one / "log.jsonl").read_text() != (other / "log.jsonl").read_text():
        return False
    first, second = (torch.load(folder / "student.pt") for folder in (one, other))
    return all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled")
    assert alone(distil, folder, False)[0] == 0
    return folder


def test_kill_9_and_resume_is_exact_across_a_stage_boundary(tmp_path, distilled):
    """Two stages of 10 steps with two teachers; killed at a random step of each, then resumed."""
    for first in (1, 11):
        limit = random.randrange(first, first + 8)
        kill_when(tmp_path, lambda limit=limit: rows(tmp_path) >= limit)
    assert alone(distil, tmp_path, False)[0] == 0
    assert same_runs(tmp_path, distilled)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert [(r["stage"], r["step"]) for r in lines] == [(k, s) for k in (0, 1) for s in range(10)]


@pytest.mark.slow
def test_killed_five_times_also_in_writing_and_at_the_boundary(tmp_path, distilled):
    def writing():
        return rows(tmp_path) > 4 and any(tmp_path.glob(".checkpoint-*.tmp"))

    def boundary():
        return (tmp_path / "checkpoint-01-0000000.pt").exists()

    kill_when(tmp_path, lambda: rows(tmp_path) >= random.randrange(1, 4))
    kill_when(tmp_path, writing)
    kill_when(tmp_path, boundary)
    kill_when(tmp_path, lambda: rows(tmp_path) >= random.randrange(11, 14))
    kill_when(tmp_path, lambda: rows(tmp_path) >= 17)
    assert alone(distil, tmp_path, False)[0] == 0
    assert same_runs(tmp_path, distilled)


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments_of_two_stages(tmp_path, distilled):
    """At a random row each, a random time after it; or in starting again, if that row is there."""
    for limit in sorted(random.choices(range(1, 19), k=20)):
        kill_when(tmp_path, lambda limit=limit: rows(tmp_path) >= limit and random.random() < 0.05)
    assert alone(distil, tmp_path, False)[0] == 0
    assert same_runs(tmp_path, distilled)
