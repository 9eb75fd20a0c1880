"""Runs: an arm with a seed, trained, evaluated and recorded once, however often interrupted."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, current_process, get_context, parent_process
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from dfmsd.experiments.build import detector_for, records_file, require_data
from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.overrides import fingerprint, same_result
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.presets_coco import require
from dfmsd.experiments.records import commit, data_of, finished, read_folder, read_records
from dfmsd.experiments.settings import ARMS, Settings, flat
from dfmsd.experiments.shipped import adopt
from dfmsd.experiments.teachers import require_teacher, teacher, teacher_run
from dfmsd.experiments.train import check_batch, check_places, stage_file, train_and_record
from dfmsd.experiments.validation import check_name
from dfmsd.training.progress import Progress
from dfmsd.training.signals import PreemptedError, stop_signals

_log = logging.getLogger(__name__)
UNGUARDED = 76
"""Exit status of a worker whose script has no main guard and would begin the runs once more."""


@dataclass(frozen=True)
class Run:
    """One row of a table with one seed."""

    settings: Settings
    arm: str
    seed: int
    experiment: str = ""
    row: str = ""  # of the experiment, under which it is recorded

    @functools.cached_property
    def folder(self) -> Path:
        """Where its checkpoint, log and weights live."""
        settings = self.settings
        job = f"{settings.preset}-{settings.scale}-{fingerprint(settings)}"
        return Path(settings.out) / job / f"{self.arm}-seed{self.seed}"

    @property
    def steps(self) -> int:
        """Steps of all its stages."""
        return round(sum(ARMS[self.arm].lengths) * self.settings.train.steps)

    @property
    def weights(self) -> Path:
        """The student after the last stage."""
        return stage_file(self.folder, len(ARMS[self.arm].lengths) - 1)

    @property
    def records(self) -> Path:
        """The JSON-lines file that takes the record."""
        return records_file(self.settings)

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers that it needs: those of its arm, and whom its student inherits."""
        heir = {self.settings.inherit_from} if self.settings.inherit != "no" else set()
        return sorted({*ARMS[self.arm].teachers, *heir})

    @property
    def labels(self) -> dict[str, Any]:
        """What its record is found by: the row of an experiment, or else its settings."""
        labels = {"arm": self.arm, "seed": self.seed}
        if self.experiment:
            return labels | {"experiment": self.experiment, "row": self.row}
        return labels | {"fingerprint": fingerprint(self.settings)}

    def record(self) -> dict[str, Any] | None:
        """The newest record of this very run, or None."""
        return self.among(read_records(self.records))

    def among(self, records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        """The newest of the records that are of this very run, or None."""
        labels = self.labels.items()
        same = [r for r in records if labels <= r.items() and not self._is_of_other_data(r)]
        return max(same, key=finished, default=None)

    def _is_of_other_data(self, record: dict[str, Any]) -> bool:
        """Whether a record is of other data than the folder holds now; old ones tell its name."""
        own, its = data_of({"fingerprint": fingerprint(self.settings)}), data_of(record)
        if own and not its:
            root = flat(record.get("settings", {})).get("data.root", "")
            own, its = Path(self.settings.data.root).name, Path(root).name
        return bool(own) and own != its

    def done(self) -> bool:
        """Whether record and weights are both there."""
        return self.record() is not None and self.weights.exists()  # a broken file is refused now


def experiment_runs(name: str, changes: Sequence[str] = (), rows: Sequence[str] = ()) -> list[Run]:
    """The `rows` of an experiment, or all, with every seed, seed by seed.

    `changes` are settings on top of the rows', e.g. jobs=2; `records` has its own default. Runs
    under one that changes what a row is are no runs of the experiment. ValueError for wrong names.
    """
    check_name("experiment", name, list(EXPERIMENTS))
    plan = EXPERIMENTS[name]
    for key in rows:
        check_name("row", key, list(plan.rows))
    shared = [*plan.settings, f"records=data/results/{name}.jsonl"]
    shared.append(f"seeds={','.join(map(str, plan.seeds))}")
    queue = (
        Run(settings, row.arm, seed, *((row.recorded or (name, key)) if same else ()))
        for key, row in plan.rows.items()
        if not rows or key in rows
        for settings in [resolve(plan.preset, [*shared, *row.settings, *changes])]
        for same in [same_result(settings, resolve(plan.preset, [*shared, *row.settings]))]
        for seed in settings.seeds
    )
    return sorted(queue, key=lambda run: run.seed)


def runs(settings: Settings) -> list[Run]:
    """Every arm with every seed, seed by seed."""
    return [Run(settings, arm, seed) for seed in settings.seeds for arm in settings.arms]


def check_runs(queue: Sequence[Run]) -> None:
    """Look at what runs need, each once: data, teachers, the student and its trunk, places.

    Runs on other data get a line of the log; what is missing or unfit, a ValueError or OSError.
    """
    for run in queue:
        require_data(run.settings.data)
        require("student.weights", run.settings.student.weights)
        for name in run.teachers:
            require_teacher(run.settings, name)
        check_batch(run.settings, "train")
    for student, data in dict.fromkeys((run.settings.student, run.settings.data) for run in queue):
        detector_for(student, data, num_classes=1)
    for folder, settings in {run.folder.parent: run.settings for run in queue}.items():
        check_places(settings)
        data = data_of({"fingerprint": fingerprint(settings)})
        same = folder.parent.glob(f"{folder.name.removesuffix(data)}*") if data else ()
        for other in sorted(set(same) - {folder}):
            _log.warning("%s: of other data than %s now; not continued", other, settings.data.root)


def execute(run: Run, *, show: bool = True) -> dict[str, Any]:
    """The record of a run, after training it; a killed one continues, a finished one is kept."""
    if run.done():
        return run.record()
    teachers = {name: teacher(run.settings, name, show=show) for name in run.teachers}
    labels = run.labels | {"fingerprint": fingerprint(run.settings)}
    options = {"folder": run.folder, "labels": labels, "show": show}
    return train_and_record(run.settings, run.arm, teachers, **options)


def execute_all(
    queue: Sequence[Run], *, retrain: bool = False, show: bool = True
) -> list[dict[str, Any]]:
    """The records of the runs, `settings.jobs` at a time; their teachers are made before them.

    What they need is looked at first, see `check_runs`. Students that are shipped are taken, see
    `shipped.adopt`, unless `retrain`.
    """
    if getattr(current_process(), "_inheriting", False):  # a worker that imports the script
        os._exit(UNGUARDED)
    missing = [run for run in queue if not (run.done() or (not retrain and adopt(run)))]
    check_runs(missing)
    needed = {
        (not getattr(run.settings, f"{name}_file"), name, teacher_run(run.settings, name)[1]): run
        for run in missing
        for name in run.teachers
    }
    for (_, name, _), run in sorted(needed.items(), key=itemgetter(0)):  # those from files first
        teacher(run.settings, name, show=show)
    jobs = queue[0].settings.jobs
    if jobs == 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun's processes share each run
        return [execute(run, show=show) for run in queue]
    if not missing:
        return [run.record() for run in queue]
    return _execute_parallel(queue, jobs, show=show)


def without_record(queue: list[Run]) -> list[Run]:
    """The runs of an experiment that neither it nor an experiment beside it has recorded."""
    folder = queue[0].records.parent
    known = read_folder(folder) if folder.is_dir() else []
    return [run for run in queue if run.among(known) is None]


def _execute_parallel(queue: Sequence[Run], jobs: int, *, show: bool) -> list[dict[str, Any]]:
    """The records of the runs, `jobs` worker processes sharing them; one progress line for all."""
    title, steps = f"{len(queue)} runs, {jobs} at a time", sum(run.steps for run in queue)
    progress = Progress(title, steps, start=_steps_done(queue), show=show)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    longest_first = sorted(queue, key=lambda run: (run.seed, -run.steps))
    # one task per process: its peak memory is then the peak of its one run
    once = {"initializer": _prepare_worker, "max_tasks_per_child": 1}
    others, pool = set(active_children()), ProcessPoolExecutor(jobs, get_context("spawn"), **once)
    try:
        with stop_signals():
            waiting = {pool.submit(execute, run, show=False) for run in longest_first}
            workers = set(active_children()) - others
            while waiting:
                finished, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()  # a failure ends the pool
                progress.update(_steps_done(queue), f"{len(queue) - len(waiting)} runs finished")
    except BrokenProcessPool as error:
        pool.shutdown(cancel_futures=True)  # exit codes are known once its thread has ended
        if UNGUARDED in [worker.exitcode for worker in workers]:
            guard = 'a script must start its runs below `if __name__ == "__main__":`'
            raise ChildProcessError(f"jobs={jobs}: {guard}, or with jobs=1") from None
        text = "a worker process was killed (out of memory?); the same command continues, "
        raise ChildProcessError(f"{text}with jobs=1 in the least memory") from error
    except (KeyboardInterrupt, PreemptedError):  # a training saves at the workers' SIGTERM
        pool.shutdown(wait=False, cancel_futures=True)
        while active := set(active_children()) - others:  # then those that the pool puts in place
            for worker in active:
                worker.terminate()
            for worker in active:
                worker.join()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [run.record() for run in queue]


def _prepare_worker() -> None:
    """One thread, and an end of the worker when the process that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    torch.set_num_threads(1)
    commit()  # of the code that was just loaded

    def follow_parent() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _steps_done(queue: Sequence[Run]) -> int:
    """Steps in the logs of all runs, at most the length of each."""
    total = 0
    for run in queue:
        log = run.folder / "log.jsonl"
        logged = log.read_bytes().count(b'"loss"') if log.exists() else 0
        total += min(logged * run.settings.train.log_every, run.steps)
    return total
