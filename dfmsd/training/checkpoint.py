"""The checkpoints of a run: pairs of training state and plain student, the last two kept.

A pair is `checkpoint-STAGE-STEP.pt` (everything needed to continue) and, beside it,
`checkpoint-STAGE-STEP.safetensors` (the student alone). Both are written whole, the state last, so
where there is a state there is its student.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from dfmsd.detectors.checkpoints import CheckpointError, load_state, save_state

Export = Callable[..., None]
KEPT = 2
_NAME = re.compile(r"checkpoint-\d+-\d+\.pt")
_log = logging.getLogger(__name__)


def found(folder: Path) -> list[Path]:
    """The training states in a folder, oldest first; `checkpoint.pt` is their old name."""
    named = sorted(path for path in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name))
    return [path for path in [folder / "checkpoint.pt"] if path.exists()] + named


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """File and content of the newest readable training state, None when there is none.

    An unreadable one is renamed to `….unreadable`, which a line of the log says, if an older one
    can be read.

    Raises:
        CheckpointError: none can be read, or the newest is something else; files stay as they are.
    """
    problems: list[tuple[Path, CheckpointError]] = []
    for path in reversed(found(folder)):
        try:
            state = load_state(path)
        except CheckpointError as error:
            problems.append((path, error))
            continue
        if not {"stage", "step"} <= state.keys():
            raise CheckpointError(f"{path}: holds no training run; remove it to begin anew")
        for broken, error in problems:
            broken.rename(broken.with_name(f"{broken.name}.unreadable"))
            _log.warning("%s; kept as %s.unreadable, going on from %s", error, broken.name, path)
        return path, state
    if problems:
        raise problems[0][1]
    return None


class Keeper:
    """Writes and reads the checkpoints of one run; every process must make the same calls.

    Args:
        folder: of the run; None keeps nothing.
        accelerator: the processes; the main one writes.
        export: `export(model, path, **place)` writes the plain student; None writes none.
        steps: between checkpoints; 0 for none.
        minutes: between checkpoints, beside `steps`; 0 for none.
    """

    def __init__(
        self,
        folder: Path | None,
        accelerator: Accelerator,
        export: Export | None = None,
        *,
        steps: int = 0,
        minutes: float = 0.0,
    ) -> None:
        """See the class."""
        self.folder, self.accelerator, self.export = folder, accelerator, export
        self.steps, self.minutes = steps, minutes
        self.path: Path | None = None  # of the state that `load` gave
        self.saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The newest readable state, the same on every process; None when there is none.

        Raises:
            CheckpointError: see `newest`.
        """
        if self.folder is None:
            return None
        state, told = None, [None, None]
        if self.accelerator.is_main_process:
            try:
                path, state = newest(self.folder) or (None, None)
                told = [path, None]
            except CheckpointError as error:
                told = [None, error]
        self.path, error = broadcast_object_list(told)
        if error is not None:
            raise error
        return load_state(self.path) if self.path is not None and state is None else state

    def late(self) -> bool:
        """Whether the minutes are over, by the clock of the main process."""
        over = time.monotonic() - self.saved >= 60 * self.minutes
        return bool(self.minutes) and self.accelerator.is_main_process and over

    def due(self, done: int, *, pause: bool) -> bool:
        """Whether a checkpoint belongs after `done` steps; `pause`: other work follows now."""
        regular = bool(self.steps) and done % self.steps == 0
        return regular or (pause and bool(self.steps or self.minutes))

    def save(self, state: dict[str, Any], model: nn.Module) -> None:
        """Write a pair, and remove what is older than the last two.

        Args:
            state: with "stage" and "step"; what `load` gives back.
            model: what `export` takes.

        Raises:
            CheckpointError: it cannot be written; the earlier ones are as they were.
        """
        if self.folder is None:
            return
        told = [None]
        if self.accelerator.is_main_process:
            place = {"stage": state["stage"], "step": state["step"]}
            path = self.folder / "checkpoint-{stage:02d}-{step:07d}.pt".format(**place)
            try:
                if self.export is not None:
                    self.export(model, path.with_suffix(".safetensors"), **place)
                save_state(state, path)
                self._tidy()
            except (OSError, RuntimeError) as error:
                told = [self._failure(path, error)]
            self.saved = time.monotonic()
        (error,) = broadcast_object_list(told)
        if error is not None:
            raise error

    def _tidy(self) -> None:
        """Remove all but the last pairs, and what a killed process left half-written."""
        states = found(self.folder)
        for path in states[:-KEPT]:
            path.unlink()
        kept = {path.with_suffix(".safetensors") for path in states[-KEPT:]}
        for path in self.folder.glob("checkpoint-*.safetensors"):
            if path not in kept:
                path.unlink()
        for path in self.folder.glob(".checkpoint-*.tmp"):
            path.unlink()

    def _failure(self, path: Path, error: Exception) -> CheckpointError:
        """What to say when a pair could not be written."""
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["?"])[0]
        states = [state.name for state in found(self.folder) if state != path]
        last = f"the last good one is {states[-1]}" if states else "there is no earlier one"
        return CheckpointError(
            f"{path}: could not be written ({reason}); {last}; "
            "make room, and the same command continues from there"
        )
