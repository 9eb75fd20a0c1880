"""Detectors trained without distillation: the teachers of a job, made once, then loaded."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfmsd.detectors.checkpoints import read_metadata
from dfmsd.detectors.saved import load_detector
from dfmsd.experiments.build import accelerator, datasets, detector_for, records_file, schedule
from dfmsd.experiments.overrides import fingerprint
from dfmsd.experiments.presets_coco import require
from dfmsd.experiments.records import append_record, environment, read_records
from dfmsd.experiments.settings import Settings, SettingsError
from dfmsd.experiments.train import train_stages
from dfmsd.stages import Stage

TEACHERS = ("weak", "strong")


def teacher_run(settings: Settings, name: str, *, seed: int = 0) -> tuple[Settings, Path]:
    """The settings under which `dfmsd train` makes the detector `name`, and its folder.

    Args:
        settings: of the job.
        name: "weak", "strong" or "student" (the latter without any distillation).
        seed: of the run.

    Raises:
        SettingsError: another name.
    """
    if name not in (*TEACHERS, "student"):
        raise SettingsError(f"{name}: no such detector; one of weak, strong, student")
    train = settings.train if name == "student" else settings.teach
    if name == "weak" and settings.weak_steps:
        train = replace(train, steps=settings.weak_steps)
    data = settings.data
    if name != "student" and data.kind == "scenes":
        data = replace(data, train_images=settings.teacher_images)
    own = replace(settings, data=data, train=train, student=getattr(settings, name))
    key = fingerprint(own, "data", "train", "student")
    folder = Path(settings.out) / f"{settings.preset}-{settings.scale}-{name}-{key}"
    return own, folder.with_name(f"{folder.name}-seed{seed}") if seed else folder


def train_detector(
    settings: Settings, name: str, *, seed: int = 0, show: bool = True
) -> tuple[Path, dict[str, Any]]:
    """The weights file and its metadata, after training a detector without distillation."""
    began, cpu = time.time(), time.process_time()
    own, folder = teacher_run(settings, name, seed=seed)
    weights = folder / "stage1.safetensors"
    if not weights.exists():
        place, world = environment(), accelerator(own)
        read_records(records_file(settings))  # a broken file is better known before the training
        data = datasets(own.data)
        torch.manual_seed(seed)
        model = detector_for(own.student, own.data, num_classes=len(data[0].classes))
        folder.mkdir(parents=True, exist_ok=True)
        stage = Stage("task only", schedule(own.train, steps=own.train.steps))
        history = train_stages(
            model,
            [stage],
            own,
            data,
            folder=folder,
            seed=seed,
            title=f"train {name}",
            show=show,
            world=world,
        )
        record = {
            "preset": own.preset,
            "scale": own.scale,
            "arm": f"train {name}",
            "seed": seed,
            "fingerprint": folder.name.removesuffix(f"-seed{seed}").rsplit("-", 1)[-1],
            "steps": [own.train.steps],
            "metrics": read_metadata(weights)["metrics"],
            "curve": history.evaluations,
            "wall_s": round(time.time() - began, 1),
            "cpu_s": round(time.process_time() - cpu, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "settings": {k: asdict(own)[k] for k in ("data", "train", "student")},
            "environment": place,
        }
        if world.is_main_process:
            append_record(records_file(settings), record)
        world.wait_for_everyone()
    return weights, read_metadata(weights)


def teacher(settings: Settings, name: str, *, show: bool = True) -> nn.Module:
    """The teacher `name`: from its file, or trained now when the settings name no file.

    Raises:
        FileNotFoundError: the file is not there; the message says how to make it.
    """
    file = getattr(settings, f"{name}_file")
    ours = f"make it with `dfmsd train {settings.preset} {name} scale=quick --save {file}`, "
    require(f"{name}_file", file, f"{ours}or set {name}_file= to train it on the way")
    path = Path(file) if file else train_detector(settings, name, show=show)[0]
    return load_detector(path)[0]
