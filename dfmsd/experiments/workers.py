"""Worker processes that end with the process that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process

import torch

from dfmsd.experiments.records import commit
from dfmsd.training.signals import PreemptedError, stop_signals


def _prepare_worker() -> None:
    """One thread, and an end of the worker when the process that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    torch.set_num_threads(1)
    commit()  # of the code that was just loaded

    def follow_parent() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes; the death of one is told in one line.

    Ctrl-C, SIGTERM and SIGUSR1 end them with a SIGTERM, at which a training saves.
    """
    others = active_children()
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=get_context("spawn"),
        initializer=_prepare_worker,
        max_tasks_per_child=1,  # the peak memory of a process is then the peak of its one run
    )
    try:
        with stop_signals():
            yield pool
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process was killed (out of memory?); the same command continues, "
            "with jobs=1 in the least memory"
        ) from error
    except (KeyboardInterrupt, SystemExit, PreemptedError):
        for worker in set(active_children()) - set(others):
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
