"""One line that says how far a run is: in a terminal, a live notebook and an executed file."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, TextIO


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _notebook_display() -> Any | None:
    """A display handle of the running notebook, or None outside one."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    if not hasattr(get_ipython(), "kernel"):
        return None
    return display({"text/plain": ""}, raw=True, display_id=True)


class Progress:
    """A progress line for `total` steps.

    A notebook shows one text output that is replaced in place and whose last state stays in the
    executed file; a terminal rewrites one line; a log file or a pipe gets about ten lines in all.

    Args:
        title: what is running.
        total: number of steps.
        start: step that a resumed run begins at.
        stream: where a terminal or log is written; standard error unless told.
        show: False keeps silent (worker processes).
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        start: int = 0,
        stream: TextIO | None = None,
        show: bool = True,
    ) -> None:
        self.title, self.total, self.start, self.show = title, max(total, 1), start, show
        self.stream = stream or sys.stderr
        self.began = self.last = time.monotonic()
        self.tenths = 10 * start // self.total
        self.ended: str | None = None
        self.handle = _notebook_display() if show else None

    def line(self, step: int, note: str = "") -> str:
        """The text for `step` finished steps."""
        bar = ("#" * round(20 * min(step / self.total, 1))).ljust(20, ".")
        elapsed, done = time.monotonic() - self.began, step - self.start
        left = elapsed / done * (self.total - step) if done > 0 else None
        times = clock(elapsed) + (f" < {clock(left)}" if left else "")
        return f"{self.title} [{bar}] {step}/{self.total}  {times}  {note}".rstrip()

    def update(self, step: int, note: str = "") -> None:
        """Show `step` finished steps; at most five times a second, and always at the end."""
        now, last = time.monotonic(), step >= self.total
        if not self.show or (now - self.last < 0.2 and not last) or self.ended == note:
            return
        self.last, self.ended = now, note if last else None
        if self.handle is not None:
            self.handle.update({"text/plain": self.line(step, note)}, raw=True)
        elif self.stream.isatty():
            self._write(self.line(step, note) + "\n" * last)
        elif last or 10 * step // self.total > self.tenths:
            self.tenths = 10 * step // self.total
            self._write(self.line(step, note) + "\n")

    def say(self, line: str) -> None:
        """Write a line of its own, which the progress line does not replace."""
        if self.show:
            self._write(line + "\n")

    def _write(self, text: str) -> None:
        """Write `text`, over the line that a terminal shows; without room for it, nothing."""
        with contextlib.suppress(OSError):  # no reason to end a training
            self.stream.write(("\r\x1b[2K" if self.stream.isatty() else "") + text)
            self.stream.flush()
