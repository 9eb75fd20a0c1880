"""One training loop for every recipe: precision, clipping, finite guard, exact resume.

Everything random is a function of counters (seed, stage, step, process), never of generator state:
a run that was killed and resumed computes the very same losses as one that was never stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dfmsd.checkpoints import CheckpointError, load_state, save_state, write_atomic
from dfmsd.optimise import Schedule
from dfmsd.progress import Progress

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Batches(Protocol):
    """What `fit` needs of the data: the batches from any step on, for one process of several."""

    def iterate(self, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """An endless iterator over (images, targets) that begins at global step `start`."""


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite; names the term, the step and every term's value."""


def step_seed(seed: int, stage: int, step: int, rank: int = 0) -> int:
    """The seed of everything random in one step: RPN and RoI sampling, drop-out, random masks."""
    return ((seed * 1_000_003 + stage * 7_919) * 1_000_003 + step * 1_009 + rank) % 2**63


def total_loss(losses: dict[str, Tensor], weights: dict[str, float], step: int) -> Tensor:
    """The weighted sum of the named losses.

    Raises:
        NonFiniteLossError: when it is not finite; the message names the term.
    """
    total = sum(weights.get(name, 1.0) * value for name, value in losses.items())
    if not torch.isfinite(total):
        values = {name: float(value.detach()) for name, value in losses.items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        shown = ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
        raise NonFiniteLossError(
            f"step {step}: {', '.join(bad) or 'the weighted sum'} is not finite ({shown}); "
            "lower the learning rate or the weight of that term"
        )
    return total


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on `device`."""
    images, targets = batch
    moved = [
        {k: v.to(device) if isinstance(v, Tensor) else v for k, v in t.items()} for t in targets
    ]
    return [image.to(device, non_blocking=True) for image in images], moved


@dataclass
class History:
    """What a run leaves to look at: losses per logged step, and evaluations in between."""

    rows: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path, *, before: tuple[int, int]) -> History:
        """The rows of a log that lie before (stage, step); later ones are cut off the file."""
        history = cls()
        if path.exists():
            for line in path.read_text().splitlines():
                if not line.endswith("}"):  # a kill may leave half a line
                    continue
                row = json.loads(line)
                if (row["stage"], row["step"]) < before:
                    (history.evaluations if "AP" in row else history.rows).append(row)
            kept = sorted(history.rows + history.evaluations, key=lambda r: (r["stage"], r["step"]))
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
        return history

    def add(self, row: dict[str, float], path: Path | None) -> None:
        """Keep one row and append it to the log."""
        (self.evaluations if "AP" in row else self.rows).append(row)
        if path is not None:
            with open(path, "a") as file:
                file.write(json.dumps(row) + "\n")


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
    folder: Path | None = None,
    save_every: int = 0,
    log_every: int = 1,
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
        folder: where `checkpoint.pt` and `log.jsonl` live; None keeps everything in memory.
        save_every: steps between checkpoints; 0 saves none.
        log_every: steps between rows of the history.
        evaluate: called on the model without wrappers every `evaluate_every` steps; gives a flat
            dict with "AP".
        evaluate_every: steps between evaluations; 0 for none.
        title: shown before the progress line.
        show: draw the progress line.
        accelerator: device, precision and processes; a plain one unless given.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; checkpoints stay as they were.
        CheckpointError: the checkpoint in `folder` belongs to another model.
    """
    accelerator = accelerator or Accelerator()
    weights, main = weights or {}, accelerator.is_main_process
    log = folder / "log.jsonl" if folder is not None and main else None
    checkpoint = folder / "checkpoint.pt" if folder is not None else None
    model, optimizer = accelerator.prepare(model, optimizer)
    start = _resume(accelerator, model, optimizer, checkpoint, stage)
    history = History.load(log, before=(stage, start)) if log else History()
    progress = Progress(title, schedule.steps, start=start, show=show and main)
    data = batches.iterate(start, accelerator.process_index, accelerator.num_processes)
    model.train()
    for step in range(start, schedule.steps):
        torch.manual_seed(step_seed(seed, stage, step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * schedule.factor(step) * group.get("share", 1.0)
        images, targets = to_device(next(data), accelerator.device)
        losses = model(images, targets)
        loss = total_loss(losses, weights, step)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        if clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        done = step + 1
        if main and (step % log_every == 0 or done == schedule.steps):
            values = {name: float(value.detach()) for name, value in losses.items()}
            row = {"stage": stage, "step": step, "loss": float(loss.detach()), **values}
            history.add(row, log)
        if evaluate is not None and evaluate_every and done % evaluate_every == 0:
            metrics = evaluate(accelerator.unwrap_model(model))
            model.train()
            if main:
                history.add({"stage": stage, "step": step, **metrics}, log)
        if checkpoint is not None and save_every and done % save_every == 0:
            _save(accelerator, model, optimizer, checkpoint, stage, done)
        progress.update(done, f"loss {float(loss.detach()):.3f}")
    accelerator.free_memory()
    return history


def _save(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    stage: int,
    step: int,
) -> None:
    """Write the checkpoint of `step` finished steps (main process only)."""
    if accelerator.is_main_process:
        state = {
            "stage": stage,
            "step": step,
            "model": accelerator.unwrap_model(model).state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }
        save_state(state, path)
    accelerator.wait_for_everyone()


def _resume(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path | None,
    stage: int,
) -> int:
    """The step that the checkpoint stands at, after loading it; 0 without one of this stage."""
    if path is None or not path.exists():
        return 0
    state = load_state(path)
    if state["stage"] != stage or state["step"] == 0:
        return 0
    try:
        accelerator.unwrap_model(model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: belongs to another model ({first})") from error
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    return int(state["step"])
