"""What a job needs, looked at before anything is trained."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from dfmsd.detectors.files import named
from dfmsd.experiments.build import detector_for, records_file, require_data
from dfmsd.experiments.overrides import fingerprint
from dfmsd.experiments.presets_coco import require
from dfmsd.experiments.records import check_writable, read_records
from dfmsd.experiments.settings import Settings

if TYPE_CHECKING:
    from dfmsd.experiments.runs import Run

_log = logging.getLogger(__name__)


def run_folder(settings: Settings) -> Path:
    """The folder of all runs of the settings."""
    name = f"{settings.preset}-{settings.scale}-{fingerprint(settings)}"
    return Path(settings.out) / name


def check_places(settings: Settings) -> None:
    """OSError or CheckpointError unless folder and records can be written, and records read."""
    check_writable(Path(settings.out) / "run")
    check_writable(records_file(settings))
    read_records(records_file(settings))


def require_teacher(settings: Settings, name: str) -> None:
    """Nothing, when a teacher's file is there, or that of its trunk; else FileNotFoundError."""
    file = getattr(settings, f"{name}_file")
    command = f"dfmsd train {settings.preset} {name} scale=quick --save {file}"
    hint = f"make it with `{command}`, or set {name}_file= to train it on the way"
    require(f"{name}_file", file, hint)
    if not file:
        require(f"{name}.weights", getattr(settings, name).weights)


def check_runs(runs: Sequence[Run]) -> None:
    """Look at what runs need, each once: data, teachers, the student and its trunk, places.

    Runs of the same settings on other data are told apart by a line of the log.

    Raises:
        ValueError, OSError: something is missing, does not fit, or cannot be written.
    """
    for settings, names in dict.fromkeys((run.settings, tuple(run.teachers)) for run in runs):
        require_data(settings.data)
        require("student.weights", settings.student.weights)
        for name in names:
            require_teacher(settings, name)
    for student, data in dict.fromkeys((run.settings.student, run.settings.data) for run in runs):
        detector_for(student, data, num_classes=1)
    for settings in dict.fromkeys(run.settings for run in runs):
        check_places(settings)
        folder, (_, dash, data) = run_folder(settings), fingerprint(settings).partition("-")
        same = folder.parent.glob(f"{folder.name.removesuffix(data)}*") if dash else ()
        for other in sorted(set(same) - {folder}):
            _log.warning("%s: of other data than %s now; not continued", other, settings.data.root)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Context in which no other process trains in `folder`; ValueError says which one does."""
    file = folder / ".lock"
    lock = filelock.FileLock(file)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        holder = file.read_text() or "another process"
        raise ValueError(f"{folder}: {holder} is training in it; wait for its end") from None
    try:
        with named(file):
            file.write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        lock.release()
