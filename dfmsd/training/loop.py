"""One training loop for every method: precision, clipping, finite losses, exact resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, send_to_device
from torch import nn
from torch.optim import Optimizer

from dfmsd.detectors.checkpoints import CheckpointError
from dfmsd.training.checkpoint import Checkpointing, CheckpointManager
from dfmsd.training.log import History, Logging
from dfmsd.training.optim import Schedule
from dfmsd.training.progress import Progress
from dfmsd.training.signals import Stop
from dfmsd.training.steps import (
    Batch,
    backward,
    check_gradients,
    save_batch_on_error,
    step_seed,
)


class Batches(Protocol):
    """What `fit` needs of the data: the batches from any step on, for one process of several."""

    def iterate(self, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """An endless iterator over (images, targets) that begins at global step `start`."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured while a model trains, and how often."""

    function: Callable[[nn.Module], dict[str, float]]  # of the model: a flat dict with the key AP
    every: int  # steps between evaluations
    before: int = 0  # steps of the stages before, which count

    def is_due(self, done: int) -> bool:
        """Whether it is time for an evaluation after so many steps of the stage."""
        return self.every > 0 and (self.before + done) % self.every == 0


def fit(
    model: nn.Module,
    batches: Batches,
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    seed: int = 0,
    stage: int = 0,
    clip: float | None = 5.0,
    accumulate: int = 1,
    checkpoints: Checkpointing | None = None,
    log: Logging | None = None,
    evaluation: Evaluation | None = None,
    accelerator: Accelerator | None = None,
) -> History:
    """Train `model` for `schedule.steps` steps, from where a checkpoint in its folder stands.

    Args:
        model: its call on (images, targets) gives a dict of losses in train mode (a detector or a
            `Distiller`); its `weights`, if it has such, weigh them by name, others count once.
        batches: `batches.iterate(start, rank, world)`.
        optimizer: over the parameters of `model`; its learning rates are set by `schedule`.
        schedule: number of steps, learning rate, and how `weights` fade.
        seed: of the run.
        stage: number of this stage; a checkpoint of another stage is not read.
        clip: largest gradient norm, or None.
        accumulate: parts in which each process works through its images of a step.
        checkpoints: where and how often the run is saved; in memory only unless given.
        log: how it is logged and shown.
        evaluation: what is measured on the way.
        accelerator: device, precision and processes; a plain one unless given.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; checkpoints stay as they were, and the batch
            is kept in their folder.
        CheckpointError: the checkpoint is of another model, or none can be written.
        PreemptedError: `checkpoints.stop` was asked for; the step was finished and saved.
    """
    accelerator, checkpoints = accelerator or Accelerator(), checkpoints or Checkpointing()
    log, stop, main = log or Logging(), checkpoints.stop or Stop(), accelerator.is_main_process
    evaluation, folder = evaluation or Evaluation(lambda _: {}, 0), checkpoints.folder
    wrapped, optimizer = accelerator.prepare(model, optimizer)  # for one process or several
    how = {"weights": getattr(model, "weights", {}), "clip": clip, "accumulate": accumulate}
    steps = _Steps(accelerator, wrapped, optimizer, schedule, seed, stage, folder=folder, **how)
    manager = CheckpointManager(checkpoints, accelerator)
    start, saved = _resume(manager, model, optimizer, stage)
    history = History.resume(folder if main else None, before=(stage, start), saved=saved)
    progress = Progress(log.title, schedule.steps, start=start, show=log.show and main)
    data = batches.iterate(start, accelerator.process_index, accelerator.num_processes)

    def record(step: int, values: dict[str, float]) -> None:
        if main:
            history.add({"stage": stage, "step": step, **values}, log.watch)

    def evaluate_now(done: int) -> None:
        broadcast(list(model.buffers()))  # running statistics: everywhere those that are saved
        with stop.defer(False):  # the checkpoint stands before the evaluation of its step
            metrics = evaluation.function(model)
        wrapped.train()
        record(done - 1, metrics)

    with stop.defer():  # signals wait for the end of a step
        if start and evaluation.is_due(start):
            evaluate_now(start)
        wrapped.train()
        for step in range(start, schedule.steps):
            batch, flags = next(data), (bool(stop.asked), manager.is_overdue())
            losses, (stopping, overdue) = steps.make(step, batch, flags)
            done, last = step + 1, step + 1 == schedule.steps
            if step % log.every == 0 or last:
                record(step, losses)
            evaluating = evaluation.is_due(done)
            if stopping or overdue or manager.is_due(done, pause=evaluating or last):
                scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
                if scaler is None:  # with one, a step of unfit gradients is left out
                    check_gradients(model, losses, step)
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                state = {"stage": stage, "step": done, "log": history.text, "scaler": scaler}
                manager.save(state | states, model)
            if stopping:
                raise stop.error(f"step {done} of stage {stage + 1} is done and saved")
            if evaluating:
                evaluate_now(done)
            progress.update(done, f"loss {losses['loss']:.3f}")
    broadcast(list(model.buffers()))
    accelerator.free_memory()
    return history


@dataclass(frozen=True)
class _Steps:
    """What the steps of one stage share."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    seed: int
    stage: int
    weights: dict[str, float]
    clip: float | None
    accumulate: int
    folder: Path | None

    def make(
        self, step: int, batch: Batch, flags: Sequence[bool]
    ) -> tuple[dict[str, float], list[bool]]:
        """The losses of a step, after it is made, and the flags of all processes."""
        accelerator, rank = self.accelerator, self.accelerator.process_index
        for group in self.optimizer.param_groups:
            rate = self.schedule.lr * self.schedule.factor(step)
            group["lr"] = rate * group.get("share", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        torch.manual_seed(step_seed(self.seed, self.stage, step, rank))
        counters = {"rank": rank, "seed": self.seed, "stage": self.stage, "step": step}
        share = self.schedule.method_share(step)
        weights = {name: share * weight for name, weight in self.weights.items()}
        options = {"weights": weights, "accumulate": self.accumulate, "flags": flags}
        with save_batch_on_error(self.folder, batch, **counters):
            losses, flags = backward(accelerator, self.model, batch, step, **options)
        if self.clip is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return losses, flags


def _resume(
    manager: CheckpointManager, model: nn.Module, optimizer: Optimizer, stage: int
) -> tuple[int, str | None]:
    """Step and log of the newest checkpoint, after loading it; (0, None) without one here."""
    state, scaler = manager.load(), manager.accelerator.scaler
    if state is None or state["stage"] != stage:
        return 0, None
    if state["step"] > 0:  # else its student is loaded
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"{manager.path}: belongs to another model ({first})") from error
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
    return int(state["step"]), state.get("log")
