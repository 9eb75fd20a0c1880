"""A detector of the settings, trained in stages, evaluated and recorded."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import nn

from dfmsd.data.images import decoder
from dfmsd.detectors.build import inherit
from dfmsd.detectors.checkpoints import read_metadata
from dfmsd.detectors.files import named
from dfmsd.detectors.saved import save_detector
from dfmsd.experiments import build
from dfmsd.experiments.records import (
    append_record,
    check_writable,
    environment,
    mean_losses,
    read_records,
)
from dfmsd.experiments.settings import Engine, Settings, Train
from dfmsd.stages import Stage, run_stages
from dfmsd.training.checkpoint import Checkpointing, list_checkpoints, load_latest
from dfmsd.training.log import History, Logging, tensorboard
from dfmsd.training.loop import Evaluation
from dfmsd.training.signals import stop_signals
from dfmsd.training.steps import compile_detector, peer_errors


def optimizer_options(train: Train) -> dict[str, Any]:
    """What `make_optimizer` takes, but for the learning rate."""
    return {"name": train.optimizer, "weight_decay": train.weight_decay, "trunk": train.trunk}


def prepare(engine: Engine, detectors: Iterable[nn.Module | None]) -> None:
    """Memory layout and compilation of the settings; weights keep their names and values."""
    for detector in filter(None, detectors):
        if engine.channels_last:
            detector.to(memory_format=torch.channels_last)
        if engine.compile:
            compile_detector(detector)


def check_batch(settings: Settings, section: str) -> None:
    """ValueError unless processes can share a batch of `section`, each its share in equal parts."""
    size, processes = getattr(settings, section).batch_size, int(os.environ.get("WORLD_SIZE", "1"))
    accumulate = settings.engine.accumulate
    if size % (processes * accumulate):
        wanted = f"a multiple of {processes} (processes) × {accumulate} (engine.accumulate)"
        raise ValueError(f"{section}.batch_size={size}: expected {wanted}")


def check_places(settings: Settings) -> None:
    """OSError or CheckpointError unless folder and records can be written, and the latter read."""
    check_writable(Path(settings.out) / "run")
    check_writable(build.records_file(settings))
    read_records(build.records_file(settings))


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Context in which no other process trains in `folder`; ValueError says which one does."""
    file = folder / ".lock"
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = file.read_text() or "another process"
        raise ValueError(f"{folder}: {holder} is training in it; wait for its end") from None
    try:
        with named(file):
            file.write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        lock.release()


def train_and_record(
    settings: Settings,
    arm: str,
    teachers: dict[str, nn.Module],
    *,
    folder: Path,
    labels: dict[str, Any],
    show: bool = True,
) -> dict[str, Any]:
    """The record of a training of `settings.student`, after it; one that was killed continues.

    `teachers` are those of the arm, and the one that the student inherits from. `folder` takes
    checkpoints, log and students; CheckpointError when it holds a checkpoint of another run.
    `labels`, among them "arm" and "seed", are what the record is found by.
    """
    check_places(settings)  # what is wrong is better known before the training
    began, cpu, origin = time.time(), time.process_time(), environment()
    resumed, seed = bool(list_checkpoints(folder)), labels["seed"]
    accelerator = build.accelerator(settings)
    data = build.datasets(settings.data)
    torch.manual_seed(seed)
    classes = len(data[0].classes)
    student = build.detector_for(settings.student, settings.data, num_classes=classes)
    if settings.inherit != "no":
        teacher = teachers[settings.inherit_from]
        labels = labels | {"inherited": inherit(student, teacher, settings.inherit.split("+"))}
    stages = build.arm_stages(settings, arm, student, teachers)
    log = Logging(settings.train.log_every, title=f"{labels['arm']}, seed {seed}", show=show)
    how = {"folder": folder, "seed": seed, "log": log, "accelerator": accelerator}
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder) if accelerator.is_main_process else nullcontext():
        history = train_stages(student, stages, settings, data, **how)
    metrics = [read_metadata(stage_file(folder, n))["metrics"] for n in range(len(stages))]
    record = {
        "preset": settings.preset,
        "scale": settings.scale,
        **labels,
        "steps": [stage.schedule.steps for stage in stages],
        "metrics": metrics[-1],
        "stages": [{"teacher": s.name, **m} for s, m in zip(stages, metrics, strict=True)],
        "curve": history.evaluations,
        "losses": mean_losses(history.rows),
        "wall_s": round(time.time() - began, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "resumed": resumed,
        "processes": accelerator.num_processes,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": asdict(settings),
        "environment": origin,
    }
    if settings.data.kind == "coco":
        record["decoder"] = decoder()
    if accelerator.is_main_process:
        append_record(build.records_file(settings), record)
    accelerator.wait_for_everyone()
    return record


def stage_file(folder: Path, number: int) -> Path:
    """The student after stage `number` (0-based)."""
    return folder / f"stage{number + 1}.safetensors"


def train_stages(
    student: nn.Module,
    stages: list[Stage],
    settings: Settings,
    data: tuple[Any, Any],
    *,
    folder: Path,
    seed: int,
    log: Logging,
    accelerator: Accelerator,
) -> History:
    """The history, after running the stages; each leaves `stageN.safetensors` with its metrics.

    Raises PreemptedError when SIGTERM or SIGUSR1 came (the run is saved), and ChildProcessError
    when a loader process or another process of this run has ended.
    """
    train, engine, (train_set, val_set) = settings.train, settings.engine, data
    main, lengths = accelerator.is_main_process, [stage.schedule.steps for stage in stages]
    prepare(engine, [student, *(stage.teacher for stage in stages)])

    def score(model: nn.Module, images: int) -> dict[str, float]:
        options = {"limit": images or None, "accelerator": accelerator}
        return build.evaluate(model, val_set, settings.data, **options)

    export = partial(save_detector, classes=train_set.classes)

    def after_stage(number: int, _stage: Stage, model: nn.Module, _history: History) -> None:
        metrics = score(model, settings.data.val_images)
        if main:
            export(model, stage_file(folder, number), metrics=metrics)

    if engine.tensorboard:
        log = replace(log, watch=tensorboard(folder / "tensorboard", lengths))
    where = {"batch_size": train.batch_size, "seed": seed, "device": accelerator.device}
    batches = build.batches(train_set, settings.data, **where)
    every = max(1, sum(lengths) // train.evaluations) if train.evaluations else 0
    curve = Evaluation(lambda model: score(model.student, settings.data.curve_images), every)
    options = {"seed": seed, "clip": train.clip, "accumulate": engine.accumulate, "log": log}
    options |= {"accelerator": accelerator, "after_stage": after_stage, "evaluation": curve}
    with stop_signals() as stop, peer_errors():
        saving = Checkpointing(folder, export, train.save_every, engine.save_minutes, stop)
        how = {"optimizer": optimizer_options(train), "checkpoints": saving, **options}
        run_stages(student, stages, batches, **how)
    accelerator.wait_for_everyone()
    _, state = load_latest(folder)  # of the end
    place = {"before": (len(stages), 0), "saved": state.get("log")}
    return History.resume(folder if main else None, **place)
