"""SIGTERM and SIGUSR1, by which a cluster takes a machine back, as an orderly end of a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 75  # of a run that was asked to stop: "temporary failure, try again" in sysexits.h


class PreemptedError(BaseException):
    """The process was asked to stop; the same command continues.

    Like KeyboardInterrupt it is no fault of what was being done, which no handler must make of it.
    """


class Stop:
    """Whether this process was asked to stop: `asked` is the name of the signal, or empty.

    Inside `defer()` a signal is only remembered, so that a step can be finished and saved;
    elsewhere, and inside `defer(False)`, it raises PreemptedError where the program stands.
    """

    def __init__(self) -> None:
        self.asked, self._deferred = "", False

    def error(self, where: str) -> PreemptedError:
        """What to raise; `where` says how far the run is."""
        who = f"{self.asked} came" if self.asked else "another process was asked to stop"
        return PreemptedError(f"{who}: {where}; the same command continues")

    def handle(self, number: int, _frame: object) -> None:
        """What a signal does."""
        self.asked = signal.Signals(number).name
        self._obey()

    @contextmanager
    def defer(self, deferred: bool = True) -> Iterator[None]:
        """Context in which a signal is only remembered and raises at the end; False: at once."""
        before, self._deferred = self._deferred, deferred
        try:
            self._obey()
            yield
        finally:
            self._deferred = before
        self._obey()

    def _obey(self) -> None:
        if self.asked and not self._deferred:
            raise self.error("stopped between two checkpoints")


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Context with a `Stop` that listens to SIGTERM and SIGUSR1; before and after it they kill.

    Only the main thread can listen; in another one the `Stop` stays silent.
    """
    stop, main = Stop(), threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGUSR1) if main else ()
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
