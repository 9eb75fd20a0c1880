"""The batches of a DataLoader as they arrive, and what becomes of the processes that send them.

Two names of torch are private, `_workers` and `_shutdown_workers`: no public ones exist.
"""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader

_CUT = (ConnectionError, EOFError, FileNotFoundError)
"""What reading a batch ends with while the process that sends it is dying."""
_SENDERS: WeakSet[BaseProcess] = WeakSet()


class Watch:
    """torch's handler of SIGCHLD, holding its error back until a batch is asked.

    By itself the handler raises wherever the main thread stands: in the midst of a step, or of a
    checkpoint.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        """See the class."""
        self._handler = handler
        self._death: RuntimeError | None = None
        self._asks = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """What a signal does."""
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            self._death = error
            self._tell()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Context in which the death of a loader process raises RuntimeError."""
        self._asks = True
        try:
            self._tell()
            yield
        finally:
            self._asks = False

    def forget(self) -> None:
        """Drop what it holds back: it belongs to another loader."""
        self._death = None

    def _tell(self) -> None:
        if self._asks and self._death:
            death, self._death = self._death, None
            raise death


def arrivals(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader; its processes' errors come here, and nowhere else.

    Raises:
        ChildProcessError: a loader process was killed.
        ValueError: what the data set raised, in its words, also if it was raised in a process.
    """
    if not loader.num_workers:
        yield from loader
        return
    with _in_plain_words():
        batches, watch = _start(loader)
    try:
        while True:
            with _in_plain_words(), watch.asking():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    finally:  # at once: torch's own way, when garbage is collected, can take seconds
        batches._shutdown_workers()


def _start(loader: DataLoader) -> tuple[Any, Watch]:
    """The loader's iterator, and the watch over its processes."""
    handler = signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, Watch):
        handler.forget()
    batches = iter(loader)  # sets torch's handler, the first time
    _SENDERS.update(batches._workers)
    handler = signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, Watch):
        return batches, handler
    watch = Watch(handler)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, watch)
    return batches, watch


@contextmanager
def _in_plain_words() -> Iterator[None]:
    """Context in which the errors of loader processes are told in one line."""
    try:
        yield
    except (RuntimeError, *_CUT) as error:
        if not _lost(error):
            raise
        raise ChildProcessError(
            "a loader process was killed (out of memory?); the same command continues from the "
            "last checkpoint, with data.workers=0 in the least memory"
        ) from error
    except ValueError as error:
        lines = str(error).splitlines()
        if not lines or not lines[0].startswith("Caught "):
            raise
        raise type(error)(lines[-1].partition(": ")[2]) from None


def _lost(error: Exception) -> bool:
    """Whether the error is about a process, not one that the data set raised in it."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(("DataLoader worker (pid", "Pin memory thread"))
    return not str(error).startswith("Caught ")


def stay(_number: int) -> None:
    """Keep a loader process alive when a cluster signals all: the one that trains decides."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_senders() -> None:
    """End the processes that still wait; multiprocessing's SIGTERM, which comes next, would not."""
    for process in _SENDERS:
        process.kill()
