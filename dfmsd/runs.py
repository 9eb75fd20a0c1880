"""Runs: an arm with a seed, trained, evaluated and recorded once, however often it was interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfmsd.checkpoints import read_metadata
from dfmsd.config import ARMS, Settings, SettingsError, fingerprint, flat
from dfmsd.engine import History
from dfmsd.progress import Progress
from dfmsd.recipes import (
    accelerator,
    arm_stages,
    batches,
    datasets,
    detector,
    evaluate,
    load_detector,
    save_detector,
    schedule,
)
from dfmsd.results import append_record, environment, read_records
from dfmsd.stages import Stage, run_stages

TEACHERS = ("weak", "strong")


@dataclass(frozen=True)
class Run:
    """One row of a table with one seed."""

    settings: Settings
    arm: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its checkpoint, log and weights live."""
        name = f"{self.settings.preset}-{self.settings.scale}-{fingerprint(self.settings)}"
        return Path(self.settings.out) / name / f"{self.arm}-seed{self.seed}"

    @property
    def weights(self) -> Path:
        """The student after the last stage."""
        return self.folder / f"stage{len(ARMS[self.arm].lengths)}.safetensors"

    @property
    def records(self) -> Path:
        """The JSON-lines file that takes the record."""
        return Path(self.settings.records or Path(self.settings.out) / "records.jsonl")

    def record(self) -> dict[str, Any] | None:
        """The newest record of this very run, or None."""
        wanted = {"arm": self.arm, "seed": self.seed, "fingerprint": fingerprint(self.settings)}
        found = [r for r in read_records(self.records) if wanted.items() <= r.items()]
        return found[-1] if found else None

    def done(self) -> bool:
        """Whether record and weights are both there."""
        return self.weights.exists() and self.record() is not None


def runs(settings: Settings) -> list[Run]:
    """Every arm with every seed, seed by seed."""
    return [Run(settings, arm, seed) for seed in settings.seeds for arm in settings.arms]


def execute(run: Run, *, show: bool = True) -> dict[str, Any]:
    """The record of a run, after training it; a killed one continues, a finished one is not repeated.

    Raises:
        CheckpointError: the run's folder holds a checkpoint of another run.
        FileNotFoundError: a teacher's file is missing.
    """
    if run.done():
        return run.record()
    settings, began, cpu = run.settings, time.time(), time.process_time()
    resumed = (run.folder / "checkpoint.pt").exists()
    teachers = {name: teacher(settings, name, show=show) for name in ARMS[run.arm].teachers}
    world = accelerator(settings)
    data = datasets(settings.data)
    torch.manual_seed(run.seed)
    size = settings.data.size
    student = detector(settings.student, num_classes=len(data[0].classes), image_size=size)
    stages = arm_stages(settings, run.arm, student, teachers)
    run.folder.mkdir(parents=True, exist_ok=True)
    history = _train(
        student,
        stages,
        settings,
        data,
        folder=run.folder,
        seed=run.seed,
        title=f"{run.arm}, seed {run.seed}",
        show=show,
        world=world,
    )
    files = [run.folder / f"stage{number + 1}.safetensors" for number in range(len(stages))]
    record = {
        "preset": settings.preset,
        "scale": settings.scale,
        "arm": run.arm,
        "seed": run.seed,
        "fingerprint": fingerprint(settings),
        "steps": [stage.schedule.steps for stage in stages],
        "metrics": read_metadata(files[-1])["metrics"],
        "stages": [{"teacher": s.name, **read_metadata(f)["metrics"]} for s, f in zip(stages, files, strict=True)],
        "curve": history.evaluations,
        "losses": _mean_losses(history),
        "wall_s": round(time.time() - began, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "resumed": resumed,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": asdict(settings),
        "environment": environment(),
    }
    if world.is_main_process:
        append_record(run.records, record)
    return record


def _train(
    model: nn.Module,
    stages: list[Stage],
    settings: Settings,
    data: tuple[Any, Any],
    *,
    folder: Path,
    seed: int,
    title: str,
    show: bool,
    world: Any,
) -> History:
    """Run the stages in `folder`; each leaves `stageN.safetensors` with its metrics. The last history."""
    train, (train_set, val_set) = settings.train, data
    kept = History()

    def after_stage(number: int, stage: Stage, student: nn.Module, history: History) -> None:
        metrics = evaluate(student, val_set, settings.data, accelerator=world)
        kept.rows, kept.evaluations = history.rows, history.evaluations
        if world.is_main_process:
            file = folder / f"stage{number + 1}.safetensors"
            save_detector(student, file, classes=train_set.classes, metrics=metrics)

    def glance(distiller: nn.Module) -> dict[str, float]:
        limit = settings.data.curve_images or None
        return evaluate(distiller.student, val_set, settings.data, limit=limit, accelerator=world)

    total = sum(stage.schedule.steps for stage in stages)
    run_stages(
        model,
        stages,
        batches(train_set, settings.data, batch_size=train.batch_size, seed=seed),
        optimizer={"name": train.optimizer, "weight_decay": train.weight_decay},
        folder=folder,
        after_stage=after_stage,
        accelerator=world,
        seed=seed,
        clip=train.clip,
        save_every=train.save_every,
        log_every=train.log_every,
        evaluate=glance,
        evaluate_every=max(1, total // train.evaluations) if train.evaluations else 0,
        title=title,
        show=show,
    )
    return kept


def _mean_losses(history: History, parts: int = 40) -> list[dict[str, float]]:
    """The logged losses averaged over at most `parts` stretches, for learning curves from the record."""
    rows = history.rows
    length = max(1, -(-len(rows) // parts))
    means = []
    for first in range(0, len(rows), length):
        stretch = [row for row in rows[first : first + length] if row["stage"] == rows[first]["stage"]]
        names = stretch[0].keys()
        means.append({k: round(sum(row[k] for row in stretch) / len(stretch), 5) for k in names})
    return means


def execute_all(settings: Settings, *, show: bool = True) -> list[dict[str, Any]]:
    """The records of every run of the settings, `settings.jobs` at a time; finished ones are not repeated."""
    listed = runs(settings)
    names = {name for run in listed for name in ARMS[run.arm].teachers if not run.done()}
    for name in sorted(names):
        teacher(settings, name, show=show)
    if settings.jobs == 1:
        return [execute(run, show=show) for run in listed]
    return _execute_parallel(listed, settings.jobs, show=show)


def _quiet(run: Run) -> dict[str, Any]:
    """A run in a worker process: one thread, no progress line."""
    torch.set_num_threads(1)
    return execute(run, show=False)


def _execute_parallel(listed: list[Run], jobs: int, *, show: bool) -> list[dict[str, Any]]:
    """The records of the runs, `jobs` worker processes sharing them; one progress line for all."""
    lengths = [round(sum(ARMS[run.arm].lengths) * run.settings.train.steps) for run in listed]
    progress = Progress(f"{len(listed)} runs, {jobs} at a time", sum(lengths), show=show)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    longest_first = sorted(range(len(listed)), key=lambda i: -lengths[i])
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_quiet, listed[i]): i for i in longest_first}
        waiting = set(futures)
        while waiting:
            finished = {f for f in waiting if f.done()}
            for future in finished:
                future.result()
            waiting -= finished
            steps = sum(min(_steps_done(run), n) for run, n in zip(listed, lengths, strict=True))
            progress.update(steps, f"{len(listed) - len(waiting)} runs finished")
            time.sleep(0.5)
    return [run.record() for run in listed]


def _steps_done(run: Run) -> int:
    """Steps in the log of a run, or all of them when it is done."""
    log = run.folder / "log.jsonl"
    return sum('"loss"' in line for line in log.open()) if log.exists() else 0


def teacher_run(settings: Settings, name: str) -> tuple[Settings, Path]:
    """The settings under which `dfmsd train` makes the detector `name`, and its folder.

    Args:
        settings: of the job.
        name: "weak", "strong" or "student" (the latter without any distillation).

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
    parts = {k: v for k, v in flat(own).items() if k.split(".")[0] in ("data", "train", "student")}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(settings.out) / f"{settings.preset}-{settings.scale}-{name}-{key}"
    return own, folder


def train_detector(
    settings: Settings, name: str, *, seed: int = 0, show: bool = True
) -> tuple[Path, dict[str, Any]]:
    """Train a detector without distillation: its weights file and its record (also added to the records)."""
    began, cpu = time.time(), time.process_time()
    own, folder = teacher_run(settings, name)
    weights = folder / "stage1.safetensors"
    if not weights.exists():
        data = datasets(own.data)
        torch.manual_seed(seed)
        model = detector(
            own.student, num_classes=len(data[0].classes), image_size=own.data.size
        )
        folder.mkdir(parents=True, exist_ok=True)
        stage = Stage("task only", schedule(own.train, steps=own.train.steps))
        history = _train(
            model,
            [stage],
            own,
            data,
            folder=folder,
            seed=seed,
            title=f"train {name}",
            show=show,
            world=accelerator(own),
        )
        record = {
            "preset": own.preset,
            "scale": own.scale,
            "arm": f"train {name}",
            "seed": seed,
            "fingerprint": folder.name.rsplit("-", 1)[-1],
            "steps": [own.train.steps],
            "metrics": read_metadata(weights)["metrics"],
            "curve": history.evaluations,
            "wall_s": round(time.time() - began, 1),
            "cpu_s": round(time.process_time() - cpu, 1),
            "settings": {k: asdict(own)[k] for k in ("data", "train", "student")},
            "environment": environment(),
        }
        append_record(Run(settings, "none", seed).records, record)
    return weights, read_metadata(weights)


def teacher(settings: Settings, name: str, *, show: bool = True) -> nn.Module:
    """The teacher `name`: from its file, or trained now when the settings name no file.

    Raises:
        FileNotFoundError: the file is not there; the message says how to make it.
    """
    file = getattr(settings, f"{name}_file")
    if file and not Path(file).exists():
        raise FileNotFoundError(
            f"{name}_file={file}: no such file; make it with "
            f"`dfmsd train {settings.preset} {name}`, or set {name}_file= to train it on the way"
        )
    path = Path(file) if file else train_detector(settings, name, show=show)[0]
    return load_detector(path)[0]
