"""SIGTERM and SIGUSR1, by which a cluster takes a machine back, as an orderly end of a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STATUS = 75
"""Exit status of a run that was asked to stop: "temporary failure, try again" in sysexits.h."""


class PreemptedError(Exception):
    """The process was asked to stop; the same command continues."""


class Stop:
    """Whether this process was asked to stop.

    Inside `waiting()` a signal is only remembered, so that a step can be finished and saved;
    outside, and inside `at_once()`, it raises PreemptedError where the program stands.
    """

    def __init__(self) -> None:
        """See the class."""
        self.asked = ""  # name of the signal
        self._waits = False

    def error(self, where: str) -> PreemptedError:
        """What to raise; `where` says how far the run is."""
        who = f"{self.asked} came" if self.asked else "another process was asked to stop"
        return PreemptedError(f"{who}: {where}; the same command continues")

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """What a signal does."""
        self.asked = signal.Signals(number).name
        self._obey()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which a signal is only remembered; it raises at the end."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self._obey()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Context inside `waiting()` in which a signal raises all the same."""
        self._waits = False
        try:
            self._obey()
            yield
        finally:
            self._waits = True

    def _obey(self) -> None:
        if self.asked and not self._waits:
            raise self.error("stopped between two checkpoints")


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Context with a `Stop` that listens to SIGTERM and SIGUSR1; before and after it they kill.

    Only the main thread can listen; in another one the `Stop` stays silent.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
