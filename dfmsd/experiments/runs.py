"""Runs: an arm with a seed, trained, evaluated and recorded once, however often interrupted."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dfmsd.detectors.checkpoints import read_metadata
from dfmsd.detectors.inheritance import inherit
from dfmsd.experiments.build import (
    accelerator,
    arm_stages,
    datasets,
    detector_for,
    records_file,
)
from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.overrides import FILES, NOT_HASHED, fingerprint, split_override
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.records import append_record, environment, mean_losses, read_records
from dfmsd.experiments.settings import ARMS, Settings, SettingsError, nearest
from dfmsd.experiments.teachers import teacher, teacher_run
from dfmsd.experiments.train import train_stages
from dfmsd.experiments.workers import workers
from dfmsd.training.checkpoint import found
from dfmsd.training.progress import Progress


@dataclass(frozen=True)
class Run:
    """One row of a table with one seed."""

    settings: Settings
    arm: str
    seed: int
    experiment: str = ""
    row: str = ""
    """of the experiment, under which it is recorded"""

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
        return records_file(self.settings)

    def record(self) -> dict[str, Any] | None:
        """The newest record of this very run, or None."""
        return self.among(read_records(self.records))

    def among(self, records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        """The newest of the records that are of this very run, or None."""
        wanted = {"seed": self.seed, "arm": self.arm}
        if self.experiment:
            wanted |= {"experiment": self.experiment, "row": self.row}
        else:
            wanted["fingerprint"] = fingerprint(self.settings)
        same = [record for record in records if wanted.items() <= record.items()]
        return max(same, key=lambda record: record["finished"], default=None)

    def done(self) -> bool:
        """Whether record and weights are both there."""
        return self.record() is not None and self.weights.exists()  # a broken file is refused now


def experiment_runs(name: str, overrides: Sequence[str] = ()) -> list[Run]:
    """Every row of an experiment with every seed, seed by seed.

    Args:
        name: one of `EXPERIMENTS`.
        overrides: settings on top of the rows', e.g. jobs=2; `records` has its own default. Runs
            under one that changes what a row is are no runs of the experiment.

    Raises:
        SettingsError: no such experiment, or a setting that does not exist.
    """
    if name not in EXPERIMENTS:
        raise SettingsError(f"{name}: no such experiment{nearest(name, list(EXPERIMENTS))}")
    plan = EXPERIMENTS[name]
    shared = [*plan.settings, f"records=data/results/{name}.jsonl"]
    shared.append(f"seeds={','.join(map(str, plan.seeds))}")
    keys = {split_override(text)[0] for text in overrides} - NOT_HASHED
    changed = any(not key.endswith(FILES) for key in keys)
    listed = [
        Run(settings, row.arm, seed, *(() if changed else row.recorded or (name, key)))
        for key, row in plan.rows.items()
        for settings in [resolve(plan.preset, [*shared, *row.settings, *overrides])]
        for seed in settings.seeds
    ]
    return sorted(listed, key=lambda run: run.seed)


def runs(settings: Settings) -> list[Run]:
    """Every arm with every seed, seed by seed."""
    return [Run(settings, arm, seed) for seed in settings.seeds for arm in settings.arms]


def execute(run: Run, *, show: bool = True) -> dict[str, Any]:
    """The record of a run, after training it; a killed one continues, a finished one is kept.

    Raises:
        CheckpointError: the run's folder holds a checkpoint of another run.
        FileNotFoundError: a teacher's file is missing.
    """
    if run.done():
        return run.record()
    settings, began, cpu = run.settings, time.time(), time.process_time()
    place = environment()
    resumed = bool(found(run.folder))
    teachers = {name: teacher(settings, name, show=show) for name in _teachers(run)}
    world = accelerator(settings)
    data = datasets(settings.data)
    torch.manual_seed(run.seed)
    classes = len(data[0].classes)
    student = detector_for(settings.student, settings.data, num_classes=classes)
    inherited = []
    if settings.inherit != "no":
        inherited = inherit(student, teachers["strong"], settings.inherit.split("+"))
    stages = arm_stages(settings, run.arm, student, teachers)
    run.folder.mkdir(parents=True, exist_ok=True)
    history = train_stages(
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
        **({"experiment": run.experiment, "row": run.row} if run.experiment else {}),
        **({"inherited": inherited} if inherited else {}),
        "seed": run.seed,
        "fingerprint": fingerprint(settings),
        "steps": [stage.schedule.steps for stage in stages],
        "metrics": read_metadata(files[-1])["metrics"],
        "stages": [
            {"teacher": s.name, **read_metadata(f)["metrics"]}
            for s, f in zip(stages, files, strict=True)
        ],
        "curve": history.evaluations,
        "losses": mean_losses(history.rows),
        "wall_s": round(time.time() - began, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "resumed": resumed,
        "processes": world.num_processes,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": asdict(settings),
        "environment": place,
    }
    if world.is_main_process:
        append_record(run.records, record)
    world.wait_for_everyone()
    return record


def _teachers(run: Run) -> list[str]:
    """Names of the teachers that a run needs: those of its arm, and whom its student inherits."""
    heir = {"strong"} if run.settings.inherit != "no" else set()
    return sorted({*ARMS[run.arm].teachers, *heir})


def execute_all(settings: Settings, *, show: bool = True) -> list[dict[str, Any]]:
    """The records of every run of the settings, `settings.jobs` at a time."""
    return _execute(runs(settings), settings.jobs, show=show)


def execute_experiment(
    name: str, overrides: Sequence[str] = (), *, show: bool = True
) -> list[dict[str, Any]]:
    """The records of an experiment, after the runs that have none yet, wherever it was begun.

    Arguments and errors of `experiment_runs`.
    """
    listed = experiment_runs(name, overrides)
    open_ = without_record(listed)
    if open_:
        _execute(open_, open_[0].settings.jobs, show=show)
    known = _neighbours(listed)
    return [run.among(known) for run in listed]


def without_record(listed: list[Run]) -> list[Run]:
    """The runs of an experiment that neither it nor an experiment beside it has recorded."""
    known = _neighbours(listed)
    return [run for run in listed if run.among(known) is None]


def _neighbours(listed: list[Run]) -> list[dict[str, Any]]:
    """Every record in the folder of an experiment's records: experiments share runs."""
    files = sorted(listed[0].records.parent.glob("*.jsonl"))
    return [record for file in files for record in read_records(file)]


def _execute(listed: list[Run], jobs: int, *, show: bool) -> list[dict[str, Any]]:
    needed = {
        (name, teacher_run(run.settings, name)[1]): run.settings
        for run in listed
        for name in _teachers(run)
        if not run.done()
    }
    for (name, _), settings in sorted(needed.items(), key=lambda item: item[0]):
        teacher(settings, name, show=show)
    if jobs == 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun's processes share each run
        return [execute(run, show=show) for run in listed]
    return _execute_parallel(listed, jobs, show=show)


def _execute_parallel(listed: list[Run], jobs: int, *, show: bool) -> list[dict[str, Any]]:
    """The records of the runs, `jobs` worker processes sharing them; one progress line for all."""
    lengths = [round(sum(ARMS[run.arm].lengths) * run.settings.train.steps) for run in listed]
    title, done = f"{len(listed)} runs, {jobs} at a time", _steps_done(listed, lengths)
    progress = Progress(title, sum(lengths), start=done, show=show)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    longest_first = sorted(range(len(listed)), key=lambda i: (listed[i].seed, -lengths[i]))
    with workers(jobs) as pool:
        waiting = {pool.submit(execute, listed[i], show=False) for i in longest_first}
        while waiting:
            finished, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()  # a failure ends the pool, see `workers`
            note = f"{len(listed) - len(waiting)} runs finished"
            progress.update(_steps_done(listed, lengths), note)
    return [run.record() for run in listed]


def _steps_done(listed: list[Run], lengths: list[int]) -> int:
    """Steps in the logs of all runs, at most the length of each."""
    total = 0
    for run, length in zip(listed, lengths, strict=True):
        log = run.folder / "log.jsonl"
        logged = sum('"loss"' in line for line in log.open()) if log.exists() else 0
        total += min(logged * run.settings.train.log_every, length)
    return total
