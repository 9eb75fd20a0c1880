"""One line that says how far a run is: in a terminal, a live notebook and an executed file."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

FORMAT = "{desc} [{bar:20}] {n_fmt}/{total_fmt}  {elapsed} < {remaining}{postfix}"


def _notebook_display() -> Any | None:
    """A display handle of the running notebook, or None outside one."""
    ipython = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    return ipython.display.display({"text/plain": ""}, raw=True, display_id=True)


class Progress:
    """A progress line for `total` steps.

    A notebook shows one text output that is replaced in place and whose last state stays in the
    executed file; a terminal rewrites one line; a log file or a pipe gets about ten lines in all.
    They are written to `stream`, standard error unless told. A resumed run begins at step `start`;
    without `show` nothing is shown (worker processes).
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
        elapsed = time.monotonic() - self.began
        parts = {"prefix": self.title, "ascii": ".#", "bar_format": FORMAT, "postfix": note}
        return tqdm.format_meter(step, self.total, elapsed, initial=self.start, **parts)

    def update(self, step: int, note: str = "") -> None:
        """Show `step` finished steps; at most five times a second, and always at the end."""
        now, last, tenths = time.monotonic(), step >= self.total, 10 * step // self.total
        if not self.show or (now - self.last < 0.2 and not last) or self.ended == note:
            return
        self.last, self.ended = now, note if last else None
        line, terminal = self.line(step, note), self.stream.isatty()
        if self.handle is not None:
            self.handle.update({"text/plain": line}, raw=True)
        elif terminal or last or tenths > self.tenths:
            self.tenths = tenths
            before, after = ("\r\x1b[2K", "\n" * last) if terminal else ("", "\n")
            with contextlib.suppress(OSError):  # a full disk is no reason to end a training
                self.stream.write(before + line + after)
                self.stream.flush()
