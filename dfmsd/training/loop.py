"""One training loop for every recipe: precision, clipping, finite guard, exact resume.

The loop is here; what one step does is in `steps`, what is kept in `keeping` and `history`, what
ends a run early in `guard` and `dfmsd.training.signals`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from dfmsd.detectors.checkpoints import CheckpointError
from dfmsd.training.checkpoint import Export, Keeper
from dfmsd.training.finite import evidence
from dfmsd.training.log import History, Row
from dfmsd.training.optim import Schedule
from dfmsd.training.progress import Progress
from dfmsd.training.signals import Stop
from dfmsd.training.steps import Batch, Place, backward, step_seed, to_device


class Batches(Protocol):
    """What `fit` needs of the data: the batches from any step on, for one process of several."""

    def iterate(self, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """An endless iterator over (images, targets) that begins at global step `start`."""


def fit(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    weights: dict[str, float] | None = None,
    seed: int = 0,
    stage: int = 0,
    clip: float | None = 5.0,
    accumulate: int = 1,
    folder: Path | None = None,
    save_every: int = 0,
    save_minutes: float = 0.0,
    export: Export | None = None,
    stop: Stop | None = None,
    log_every: int = 1,
    watch: Callable[[Row], None] | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    title: str = "train",
    show: bool = True,
    accelerator: Accelerator | None = None,
) -> History:
    """Train `model` for `schedule.steps` steps, from where a checkpoint in `folder` stands.

    Args:
        model: its call on (images, targets) gives a dict of losses in train mode (a detector or a
            `Distiller`).
        batches: `batches.iterate(start, rank, world)`.
        optimizer: over the parameters of `model`; its learning rates are set by `schedule`.
        schedule: number of steps and learning rate.
        weights: weight of each loss by name; 1 where a name is missing.
        seed: of the run.
        stage: number of this stage; a checkpoint of another stage is not read.
        clip: largest gradient norm, or None.
        accumulate: parts in which each process works through its images of a step.
        folder: where checkpoints and `log.jsonl` live; None keeps everything in memory.
        save_every: steps between checkpoints; 0 saves none.
        save_minutes: minutes between checkpoints, beside `save_every`; 0 saves none.
        export: writes the plain student beside a checkpoint, see `Keeper`.
        stop: says when to save and end; None listens to no signal.
        log_every: steps between rows of the history.
        watch: called with every row of the history.
        evaluate: called on the model without wrappers every `evaluate_every` steps; gives a flat
            dict with "AP".
        evaluate_every: steps between evaluations; 0 for none.
        title: shown before the progress line.
        show: draw the progress line.
        accelerator: device, precision and processes; a plain one unless given.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; checkpoints stay as they were, and the batch
            is kept in `folder`.
        CheckpointError: the checkpoint in `folder` is of another model, or none can be written.
        PreemptedError: `stop` was asked for; the step was finished and saved.
    """
    accelerator, stop = accelerator or Accelerator(), stop or Stop()
    main, rank = accelerator.is_main_process, accelerator.process_index
    log = folder / "log.jsonl" if folder is not None and main else None
    model, optimizer = accelerator.prepare(model, optimizer)
    keeper = Keeper(folder, accelerator, export, steps=save_every, minutes=save_minutes)
    start = _resume(keeper, accelerator, model, optimizer, stage)
    history = History.load(log, before=(stage, start)) if log else History()
    progress = Progress(title, schedule.steps, start=start, show=show and main)
    data = batches.iterate(start, rank, accelerator.num_processes)
    looks = evaluate_every if evaluate is not None else 0

    def look(done: int) -> None:
        _share_buffers(accelerator, model)
        with stop.at_once():  # the checkpoint stands before the evaluation of its step
            metrics = evaluate(accelerator.unwrap_model(model))
        model.train()
        if main:
            history.add({"stage": stage, "step": done - 1, **metrics}, log, watch)

    with stop.waiting():  # signals wait for the end of a step
        if looks and start and start % looks == 0:
            look(start)
        model.train()
        for step in range(start, schedule.steps):
            _set_rates(optimizer, schedule, step)
            optimizer.zero_grad(set_to_none=True)
            batch, place = to_device(next(data), accelerator.device), Place(seed, stage, step)
            torch.manual_seed(step_seed(seed, stage, step, rank))
            facts = {"batch": batch, "rng": torch.get_rng_state(), **asdict(place)}
            with evidence(_file(folder, place, rank), **facts):
                losses, (stopping, late) = backward(
                    accelerator,
                    model,
                    batch,
                    place,
                    weights=weights or {},
                    accumulate=accumulate,
                    wishes=(bool(stop.asked), keeper.late()),
                )
            if clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            done, last = step + 1, step + 1 == schedule.steps
            if main and (step % log_every == 0 or last):
                history.add({"stage": stage, "step": step, **losses}, log, watch)
            looking = looks and done % looks == 0
            if stopping or late or keeper.due(done, pause=looking or last):
                _save(keeper, accelerator, model, optimizer, stage, done)
            if stopping:
                raise stop.error(f"step {done} of stage {stage + 1} is done and saved")
            if looking:
                look(done)
            progress.update(done, f"loss {losses['loss']:.3f}")
    _share_buffers(accelerator, model)
    accelerator.free_memory()
    return history


def _file(folder: Path | None, place: Place, rank: int) -> Path | None:
    """Where the batch of a step is kept when its losses are not finite."""
    name = f"nonfinite-{place.stage:02d}-{place.step:07d}-process{rank}.pt"
    return folder / name if folder is not None else None


def _set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Give every group of parameters its learning rate for this step."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.lr * schedule.factor(step) * group.get("share", 1.0)


def _share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the buffers (running statistics) of the main one, which are saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def _save(
    keeper: Keeper,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: int,
    step: int,
) -> None:
    """Write the checkpoint of `step` finished steps."""
    plain = accelerator.unwrap_model(model)
    state = {
        "stage": stage,
        "step": step,
        "model": plain.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
    }
    keeper.save(state, plain)


def _resume(
    keeper: Keeper,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: int,
) -> int:
    """The step that the newest checkpoint stands at, after loading it; 0 without one here."""
    state = keeper.load()
    if state is None or state["stage"] != stage or state["step"] == 0:
        return 0
    try:
        accelerator.unwrap_model(model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{keeper.path}: belongs to another model ({first})") from error
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    return int(state["step"])
