"""Detectors trained without distillation: the teachers of a job, made once, then loaded."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dfmsd.detectors.checkpoints import read_metadata
from dfmsd.detectors.files import printable
from dfmsd.detectors.saved import load_detector
from dfmsd.experiments.build import datasets
from dfmsd.experiments.overrides import fingerprint
from dfmsd.experiments.presets_coco import require
from dfmsd.experiments.settings import Settings
from dfmsd.experiments.train import check_batch, stage_file, train_and_record
from dfmsd.experiments.validation import check_name

SECTIONS = ("data", "train", "student", "precision", "engine")  # that can change such a detector


def teacher_run(settings: Settings, name: str, *, seed: int = 0) -> tuple[Settings, Path]:
    """The settings under which `dfmsd train` makes a detector of the job, and its folder.

    `name` is "weak", "strong" or "student" (the latter without any distillation).
    """
    check_name("detector", name, ("weak", "strong", "student"))
    train = settings.train if name == "student" else settings.teach
    if name == "weak" and settings.weak_steps:
        train = replace(train, steps=settings.weak_steps)
    data = settings.data
    if name != "student":
        count = settings.teacher_images if data.kind == "scenes" else data.train_images
        data = replace(data, train_images=count, train_share=1.0)
    own = replace(settings, data=data, train=train, student=getattr(settings, name), inherit="no")
    folder = f"{settings.preset}-{settings.scale}-{name}-{fingerprint(own, *SECTIONS)}"
    return own, Path(settings.out) / (f"{folder}-seed{seed}" if seed else folder)


def train_detector(
    settings: Settings, name: str, *, seed: int = 0, show: bool = True
) -> tuple[Path, dict[str, Any]]:
    """The weights file and its metadata, after training a detector without distillation."""
    own, folder = teacher_run(settings, name, seed=seed)
    weights = stage_file(folder, 0)
    if not weights.exists():
        labels = {"arm": f"train {name}", "seed": seed, "fingerprint": fingerprint(own, *SECTIONS)}
        train_and_record(own, "none", {}, folder=folder, labels=labels, show=show)
    return weights, read_metadata(weights)


def require_teacher(settings: Settings, name: str) -> None:
    """FileNotFoundError without a teacher's file; ValueError when it cannot be trained instead."""
    file = getattr(settings, f"{name}_file")
    root = f"data.root={shlex.quote(settings.data.root)} " * (settings.data.kind != "scenes")
    command = f"dfmsd train {settings.preset} {name} {root}scale=quick --save {file}"
    hint = f"make it with `{command}`, or set {name}_file= to train it on the way"
    require(f"{name}_file", file, hint)
    if not file:
        require(f"{name}.weights", getattr(settings, name).weights)
        check_batch(settings, "teach")


def teacher(settings: Settings, name: str, *, show: bool = True) -> nn.Module:
    """The teacher `name`: from its file (FileNotFoundError without it), or trained now.

    ValueError when its detections are to be pseudo-labels and are not of the classes of the data.
    """
    require_teacher(settings, name)
    file = getattr(settings, f"{name}_file") or train_detector(settings, name, show=show)[0]
    labels = settings.method.name == "pseudo_labels"
    model, metadata = load_detector(file, head=labels)
    if labels and (found := metadata["classes"]) != (own := datasets(settings.data)[0].classes):
        texts = (f"{len(names)} classes, {printable(', '.join(names))}" for names in (found, own))
        raise ValueError("{}: it detects {}; the data have {}".format(file, *texts))
    return model
