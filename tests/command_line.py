"""Calling `dfmsd` as a user does, for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

from tiny import tiny_detector

from dfmsd.__main__ import main
from dfmsd.data.scenes import SceneDataset
from dfmsd.detectors.saved import save_detector

TINY = (
    "scale=smoke",
    "data.size=64",
    "data.train_images=8",
    "data.val_images=4",
    "data.curve_images=2",
    'student.trunk_arguments={"channels": [8, 16, 24, 32]}',
    "student.fpn_channels=16",
    "train.steps=4",
    "train.batch_size=2",
    "train.save_every=1",
    "train.evaluations=2",
    "weak_file=weak.safetensors",
    "strong_file=strong.safetensors",
    "out=runs",
)
"""Seconds for all arms, in a folder with two teachers (see `teachers`)."""


def call(capsys, *arguments):
    """Exit status, standard output and standard error of `dfmsd ARGUMENTS`."""
    capsys.readouterr()
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as end:
        status = end.code or 0
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(capsys, *arguments):
    """The one line with which `dfmsd ARGUMENTS` is refused."""
    status, _, err = call(capsys, *arguments)
    lines = [line for line in err.splitlines() if "[#" not in line and "[." not in line]
    assert status == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("dfmsd: ")
    return lines[0]


def everything(folder):
    """Path → content and time of change of all files below a folder."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def saved(path, *, classes=None, **options):
    """`path`, after saving a small random detector there."""
    classes = classes or SceneDataset(1, size=64, seed=0).classes
    save_detector(tiny_detector(classes=len(classes), **options), path, classes=classes)
    return path


def teachers(folder):
    """Save two small teachers in a folder."""
    for seed, name in enumerate(("weak", "strong"), start=1):
        path = folder / f"{name}.safetensors"
        saved(path, kind="faster_rcnn", seed=seed, strides=(4, 8, 16, 32))
