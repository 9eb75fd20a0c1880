"""The stages of a job run, with everything that its settings say about how."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfmsd.detectors.saved import save_detector
from dfmsd.experiments.build import batches, evaluate
from dfmsd.experiments.settings import Settings, Train
from dfmsd.stages import Stage, run_stages
from dfmsd.together import nobody_lost
from dfmsd.training.log import History, tensorboard
from dfmsd.training.signals import stop_signals
from dfmsd.training.steps import lay_out


def optimizer_options(train: Train) -> dict[str, Any]:
    """What `make_optimizer` takes, but for the learning rate."""
    return {"name": train.optimizer, "weight_decay": train.weight_decay, "trunk": train.trunk}


def step_options(settings: Settings) -> dict[str, Any]:
    """What `fit` takes to make its steps as the settings say."""
    how = settings.engine
    return {"clip": settings.train.clip, "accumulate": how.accumulate}


def prepare(
    settings: Settings, student: nn.Module, teachers: Iterable[nn.Module], device: torch.device
) -> None:
    """Lay student and teachers out as the settings say; weights keep their names and values.

    Raises:
        ValueError: the device cannot compute it so.
    """
    engine = settings.engine
    for detector in (student, *teachers):
        lay_out(detector, channels_last=engine.channels_last, compiled=engine.compile)


def train_stages(
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
    """The history, after running the stages; each leaves `stageN.safetensors` with its metrics.

    Raises:
        PreemptedError: SIGTERM or SIGUSR1 came; the run is saved.
        ChildProcessError: a loader process or another process of this run has ended.
    """
    train, engine, (train_set, val_set) = settings.train, settings.engine, data
    kept = History()
    lengths = [stage.schedule.steps for stage in stages]
    main = world.is_main_process
    teachers = [stage.teacher for stage in stages if stage.teacher is not None]
    prepare(settings, model, teachers, world.device)

    def after_stage(number: int, stage: Stage, student: nn.Module, history: History) -> None:
        limit = settings.data.val_images or None
        metrics = evaluate(student, val_set, settings.data, limit=limit, accelerator=world)
        kept.rows, kept.evaluations = history.rows, history.evaluations
        if main:
            export(student, folder / f"stage{number + 1}.safetensors", metrics=metrics)

    def export(student: nn.Module, path: Path, **extra: Any) -> None:
        save_detector(student, path, classes=train_set.classes, **extra)

    def glance(distiller: nn.Module) -> dict[str, float]:
        limit = settings.data.curve_images or None
        return evaluate(distiller.student, val_set, settings.data, limit=limit, accelerator=world)

    with stop_signals() as stop, nobody_lost():
        run_stages(
            model,
            stages,
            batches(train_set, settings.data, batch_size=train.batch_size, seed=seed),
            optimizer=optimizer_options(train),
            folder=folder,
            export=export,
            after_stage=after_stage,
            accelerator=world,
            seed=seed,
            save_every=train.save_every,
            save_minutes=engine.save_minutes,
            stop=stop,
            log_every=train.log_every,
            watch=tensorboard(folder / "tensorboard", lengths) if engine.tensorboard else None,
            evaluate=glance,
            evaluate_every=max(1, sum(lengths) // train.evaluations) if train.evaluations else 0,
            title=title,
            show=show,
            **step_options(settings),
        )
    world.wait_for_everyone()
    if main and not kept.rows:  # all was done when a kill came before the record
        kept = History.load(folder / "log.jsonl", before=(len(stages), 0))
    return kept
