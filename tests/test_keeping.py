"""Checkpoints: whole pairs, the last two, and what happens when one cannot be read or written."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import resource
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from several import alone
from tiny import LineDetector, TinyBatches, tiny_detector, tiny_images
from torch import nn

from dfmsd.detectors import checkpoints
from dfmsd.detectors.checkpoints import (
    CheckpointError,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from dfmsd.detectors.saved import load_detector, save_detector
from dfmsd.stages import Stage, run_stages
from dfmsd.training.checkpoint import (
    Checkpointing,
    CheckpointManager,
    list_checkpoints,
    load_latest,
)
from dfmsd.training.log import Logging
from dfmsd.training.optim import Schedule


def export(model, path, **place):
    save_weights(model, path, place)


def manager(folder, **options):
    return CheckpointManager(Checkpointing(folder, export, **options), Accelerator(cpu=True))


def save(kept, step, *, stage=0):
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, float(step))
    kept.save({"stage": stage, "step": step, "model": model.state_dict()}, model)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_pairs_stay(tmp_path):
    kept = manager(tmp_path)
    for step in (1, 20, 300):
        save(kept, step)
    save(kept, 0, stage=1)
    assert names(tmp_path) == [
        "checkpoint-00-0000300.pt",
        "checkpoint-00-0000300.safetensors",
        "checkpoint-01-0000000.pt",
        "checkpoint-01-0000000.safetensors",
    ]
    for path in list_checkpoints(tmp_path):
        state, model = load_state(path), nn.Linear(2, 1)
        place = load_weights(model, path.with_suffix(".safetensors"))
        assert place == {"stage": state["stage"], "step": state["step"]}
        assert torch.equal(model.weight, state["model"]["weight"])
    assert kept.load()["stage"] == 1


def test_what_a_killed_process_left_is_removed(tmp_path):
    kept = manager(tmp_path)
    save(kept, 1)
    left = [".checkpoint-00-0000002.pt.123.tmp", "checkpoint-00-0000002.safetensors"]
    for name in (*left, ".other.tmp", "stage1.safetensors"):
        (tmp_path / name).write_text("half")
    assert kept.load()["step"] == 1
    save(kept, 3)
    assert not set(left) & set(names(tmp_path))
    assert {".other.tmp", "stage1.safetensors"} < set(names(tmp_path))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    """One bit of a weight."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((2,), 2.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip])
def test_an_unreadable_newest_gives_way_to_the_older(tmp_path, caplog, damage):
    kept = manager(tmp_path)
    save(kept, 1)
    save(kept, 2)
    damage(tmp_path / "checkpoint-00-0000002.pt")
    with caplog.at_level(logging.WARNING):
        assert kept.load()["step"] == 1
    (line,) = caplog.messages
    assert "checkpoint-00-0000002.pt: not a readable state" in line
    assert line.endswith("going on from " + str(tmp_path / "checkpoint-00-0000001.pt"))
    assert "\n" not in line
    assert "checkpoint-00-0000002.pt.unreadable" in names(tmp_path)  # nothing is thrown away
    save(kept, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-00-0000001.pt",
        "checkpoint-00-0000002.pt",
    ]
    assert load_latest(tmp_path)[1]["step"] == 2


def test_with_none_readable_nothing_is_touched(tmp_path):
    kept = manager(tmp_path)
    for step in (1, 2):
        save(kept, step)
    for path in list_checkpoints(tmp_path):
        cut(path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"checkpoint-00-0000002\.pt: not a readable state"):
        kept.load()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    save_state({"epoch": 3}, tmp_path / "checkpoint-00-0000001.pt")
    with pytest.raises(CheckpointError, match="holds no training run; remove it to begin anew"):
        load_latest(tmp_path)
    assert load_latest(tmp_path / "empty") is None


def test_when_a_checkpoint_is_due(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("dfmsd.training.checkpoint.time.monotonic", lambda: clock[0])
    every, hourly, never = (
        manager(tmp_path, every_steps=3),
        manager(tmp_path, every_minutes=60),
        manager(tmp_path),
    )
    assert [every.is_due(done, pause=False) for done in (1, 2, 3, 6)] == [False, False, True, True]
    assert [kept.is_due(1, pause=True) for kept in (every, hourly, never)] == [True, True, False]
    clock[0] += 3599
    assert not hourly.is_overdue()
    clock[0] += 1
    assert hourly.is_overdue()
    assert not every.is_overdue()
    assert not never.is_overdue()
    save(hourly, 1)
    assert not hourly.is_overdue()


def test_the_students_of_a_run_load_as_plain_detectors(tmp_path):
    def save(model, path, **place):
        save_detector(model, path, classes=["a"], **place)

    student = tiny_detector(seed=0)
    run_stages(
        student,
        [Stage("task only", Schedule(steps=3, lr=1e-3)) for _ in range(2)],
        TinyBatches(),
        optimizer={},
        checkpoints=Checkpointing(tmp_path, save, every_steps=2),
        log=Logging(show=False),
    )
    states = list_checkpoints(tmp_path)
    assert [path.stem for path in states] == ["checkpoint-01-0000003", "checkpoint-02-0000000"]
    images, _ = tiny_images()
    for path in states:
        model, metadata = load_detector(path.with_suffix(".safetensors"))
        assert metadata["step"] == load_state(path)["step"]
        assert all(
            torch.equal(a["scores"], b["scores"])
            for a, b in zip(model(images), student.eval()(images), strict=True)
        )


def test_broken_off_anywhere_a_state_has_its_student(tmp_path, monkeypatch):
    """At every operation on a file; with SIGKILL in tests/test_survival.py."""
    count = itertools.count()

    def guard(name, number):
        original = getattr(os, name)

        def call(*arguments, **options):
            if next(count) == number:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return call

    broken = 0
    for number in range(40):
        folder = tmp_path / str(number)
        kept = manager(folder)
        save(kept, 1)
        save(kept, 2)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            count = itertools.count()
            for name in ("fsync", "replace", "unlink"):
                patch.setattr(os, name, guard(name, number))
            save(kept, 3)
            save(kept, 4)
            break
        broken += 1
        assert len(list_checkpoints(folder)) >= 2
        for path in list_checkpoints(folder):
            place = load_weights(nn.Linear(2, 1), path.with_suffix(".safetensors"))
            assert place["step"] == load_state(path)["step"]
    assert 10 < broken < 40


# --- a disk that is full


def full(number):
    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_full_disk_is_named_with_what_is_left(tmp_path, monkeypatch):
    kept = manager(tmp_path)

    def save_without_room(step):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.os, "fsync", full(errno.ENOSPC))
            save(kept, step)

    first = tmp_path / "checkpoint-00-0000002.pt"
    words = rf"{first}: could not be written \(No space left on device\); there is no earlier one"
    with pytest.raises(CheckpointError, match=words):
        save_without_room(2)
    assert names(tmp_path) == []
    save(kept, 2)
    words = r"0000004\.pt: could not .* the last good one is checkpoint-00-0000002\.pt; make room"
    with pytest.raises(CheckpointError, match=words):
        save_without_room(4)
    assert kept.load()["step"] == 2
    save(kept, 4)
    assert load_latest(tmp_path)[1]["step"] == 4


def small_files(folder):
    """Train while no file may grow beyond 2000 bytes, as on a disk that fills up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    run_stages(
        LineDetector(),
        [Stage("task only", Schedule(steps=60, lr=0.1))],
        TinyBatches(),
        optimizer={},
        checkpoints=Checkpointing(folder, export),
        log=Logging(show=False),
    )


def test_a_log_that_cannot_grow_is_named(tmp_path):
    _, error = alone(small_files, tmp_path)
    assert isinstance(error, OSError)
    assert (error.strerror, error.filename) == ("File too large", str(tmp_path / "log.jsonl"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_a_disk_that_really_is_full(tmp_path):
    """A file system of one megabyte: the run ends in words, and goes on when there is room."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        kept = manager(tmp_path)
        save(kept, 1)
        (tmp_path / "ballast").write_bytes(bytes(900_000))
        model = nn.Linear(300, 300)
        with pytest.raises(CheckpointError, match="No space left on device") as caught:
            kept.save({"stage": 0, "step": 2, "model": model.state_dict()}, model)
        assert "the last good one is checkpoint-00-0000001.pt" in str(caught.value)
        assert kept.load()["step"] == 1
        (tmp_path / "ballast").unlink()
        save(kept, 2)
        assert kept.load()["step"] == 2
    finally:
        subprocess.run(["umount", tmp_path], check=True)
