"""Processes for the tests: one that may kill itself, or several that train one model."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import traceback

# a server that has imported torch but never used it: each process starts in a fraction of a second
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "timm", "dfmsd.experiments.build"])


def _work(function, arguments, environment, pipe):
    import torch

    from dfmsd.training.signals import PreemptedError

    torch.set_num_threads(1)
    os.environ.update(environment)
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = error
        traceback.print_exc()
    except (SystemExit, PreemptedError) as error:
        answer = error
    with contextlib.suppress(Exception):
        pipe.send_bytes(pickle.dumps(answer))  # not `send`: it would share tensors, not send them
    pipe.close()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start(function, *arguments, **environment):
    """A process that calls a function, and the pipe on which its answer or its error comes."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_work, args=(function, arguments, environment, sender))
    process.start()
    sender.close()
    return process, receiver


def alone(function, *arguments):
    """Exit status of a process that calls a function (-9 when it was killed), and its answer."""
    process, pipe = start(function, *arguments, ACCELERATE_USE_CPU="true")
    answer = None
    with contextlib.suppress(EOFError):
        answer = pickle.loads(pipe.recv_bytes())
    process.join()
    return process.exitcode, answer


def launch(function, world, *arguments):
    """`world` processes that call a function as torchrun would start them, with their pipes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    return [
        start(function, *arguments, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(world)
    ]


def in_parallel(function, world, *arguments):
    """What each of `world` processes answers, or the error that ended it."""
    started = launch(function, world, *arguments)
    answers = [pickle.loads(pipe.recv_bytes()) for _, pipe in started]
    for process, _ in started:
        process.join()
    return answers
