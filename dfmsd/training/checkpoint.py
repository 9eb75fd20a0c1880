"""The checkpoints of a run: pairs of training state and plain student, the last two kept.

A pair is `checkpoint-STAGE-STEP.pt` (all that is needed to continue) and `….safetensors` (the
student alone). Both are written whole, the state last: where it is, there is its student.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from dfmsd.detectors.checkpoints import CheckpointError, load_state, save_state
from dfmsd.training.signals import Stop

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpointing:
    """Where, when and what of a run is saved."""

    folder: Path | None = None  # takes checkpoints and `log.jsonl`; None: all stays in memory
    export: Callable[..., None] | None = None  # (model, path, stage=…, step=…): writes the student
    every_steps: int = 0  # between checkpoints; 0 for none
    every_minutes: float = 0.0  # between checkpoints, beside `every_steps`; 0 for none
    run: str = ""  # what is trained, in words; one that was saved with others is refused
    stop: Stop | None = None  # asks for a last checkpoint and the end; None listens to no signal


def list_checkpoints(folder: Path) -> list[Path]:
    """The training states in a folder, oldest first."""
    return sorted(folder.glob("checkpoint-[0-9]*-[0-9]*.pt"))


def load_latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """File and content of the newest readable training state, None when there is none.

    An unreadable one is renamed to `….unreadable`, which a line of the log says, if an older one
    can be read. CheckpointError when none can, or the newest is something else; files then stay.
    """
    problems: dict[Path, CheckpointError] = {}
    for path in reversed(list_checkpoints(folder)):
        try:
            state = load_state(path)
        except CheckpointError as error:
            problems[path] = error
            continue
        if not {"stage", "step"} <= state.keys():
            raise CheckpointError(f"{path}: holds no training run; remove it to begin anew")
        for broken, error in problems.items():
            broken.rename(f"{broken}.unreadable")
            _log.warning("%s; kept as %s.unreadable, going on from %s", error, broken.name, path)
        return path, state
    if problems:
        raise next(iter(problems.values()))
    return None


class CheckpointManager:
    """Writes and reads the checkpoints of one run; every process must make the same calls."""

    def __init__(self, options: Checkpointing, accelerator: Accelerator) -> None:
        self.options, self.folder, self.accelerator = options, options.folder, accelerator
        self.path: Path | None = None  # of the state that `load` gave
        self.saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The newest readable state, the same on every process; see `load_latest`.

        CheckpointError, too, when it was saved for another `run`.
        """
        if self.folder is not None:
            self.path = self._on_main(lambda: (load_latest(self.folder) or [None])[0])
        if self.path is None:
            return None
        state, run = load_state(self.path), self.options.run
        if (saved := state.get("run", run)) != run:
            hint = "give this one another folder"
            raise CheckpointError(f"{self.path}: belongs to another run ({saved}), {hint}: {run}")
        return state

    def is_overdue(self) -> bool:
        """Whether the minutes are over, by the clock of the main process."""
        seconds, main = 60 * self.options.every_minutes, self.accelerator.is_main_process
        return main and 0 < seconds <= time.monotonic() - self.saved

    def is_due(self, done: int, *, pause: bool) -> bool:
        """Whether a checkpoint belongs after `done` steps; `pause`: other work follows now."""
        steps, minutes = self.options.every_steps, self.options.every_minutes
        return (bool(steps) and done % steps == 0) or (pause and bool(steps or minutes))

    def save(self, state: dict[str, Any], model: nn.Module) -> None:
        """Write a pair, and remove what is older than the last two.

        `state`, with "stage" and "step", is what `load` gives back; `export` takes the model.
        CheckpointError when it cannot be written; the earlier pairs are as they were.
        """
        if self.folder is not None:
            state = state | {"run": self.options.run}
            self._on_main(lambda: self._write(state, model))
            self.saved = time.monotonic()

    def _on_main(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on the main process, or its CheckpointError, on every process."""
        result = None
        if self.accelerator.is_main_process:
            try:
                result = work()
            except CheckpointError as error:
                result = error
        [result] = broadcast_object_list([result])
        if isinstance(result, CheckpointError):
            raise result
        return result

    def _write(self, state: dict[str, Any], model: nn.Module) -> None:
        counters = {key: state[key] for key in ("stage", "step")}
        path = self.folder / "checkpoint-{stage:02d}-{step:07d}.pt".format(**counters)
        try:
            if self.options.export is not None:
                self.options.export(model, path.with_suffix(".safetensors"), **counters)
            save_state(state, path)
            self._prune()
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
            states = [other.name for other in list_checkpoints(self.folder) if other != path]
            last = f"the last good one is {states[-1]}" if states else "there is no earlier one"
            again = "make room, and the same command continues from there"
            line = f"{path}: could not be written ({reason}); {last}; {again}"
            raise CheckpointError(line) from error

    def _prune(self) -> None:
        """Remove all but the last two pairs, and what a killed process left half-written."""
        states = list_checkpoints(self.folder)
        students = {path.with_suffix(".safetensors") for path in states[-2:]}
        others = set(self.folder.glob("checkpoint-*.safetensors")) - students
        for path in [*states[:-2], *others, *self.folder.glob(".checkpoint-*.tmp")]:
            path.unlink()
