"""A part of `gpu.py` at work: its time, its records, its clock."""

from __future__ import annotations

import gc
import itertools
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dfmsd.experiments.records import append_record, environment

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Job:
    """One part at work: where its records go, and until when (seconds since the epoch)."""

    part: str
    out: Path
    until: float
    smoke: bool = False
    commit: str = ""

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def left(self) -> float:
        """Seconds that this part still has."""
        return self.until - time.time()

    def record(self, what: str, values: dict[str, Any], **settings: Any) -> None:
        """Add one record to the file, and print it."""
        place = environment()
        place["commit"] = self.commit or place["commit"]
        print(f"{self.part}: {what}: {json.dumps(values)}", flush=True)
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"part": self.part, "what": what, **values, "settings": settings}
        record |= {"smoke": self.smoke, "finished": finished, "environment": place}
        append_record(self.out, record)

    def measure(
        self, what: str, act: Callable[[], dict[str, Any]], **settings: Any
    ) -> dict[str, Any]:
        """What `act` measured, recorded; an error is recorded too, and the part goes on."""
        try:
            if self.left() <= 0:
                raise TimeoutError("no time was left for it")
            values = act()
        except Exception as error:
            words = traceback.format_exc().replace(f"{ROOT}/", "")  # no machine's paths in a record
            last = words.strip().splitlines()[-8:]
            values = {"error": f"{type(error).__name__}: {error}"[:500], "trace": last}
        self.record(what, values, **settings)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return values


class Marks:
    """Named points in time: events in the GPU's queue, or the clock where there is no GPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.points = device.type == "cuda", []

    def __call__(self, name: str) -> None:
        point: Any = time.perf_counter()
        if self.cuda:
            point = torch.cuda.Event(enable_timing=True)
            point.record()
        self.points.append((name, point))

    def after(self, module: nn.Module, name: str) -> RemovableHandle:
        """A hook that marks the end of each forward pass of `module`."""
        return module.register_forward_hook(lambda *_: self(name))

    def spans(self) -> list[tuple[str, float]]:
        """Name of each point but the first → milliseconds since the one before it."""
        if self.cuda:
            torch.cuda.synchronize()
        pairs = itertools.pairwise(self.points)
        return [
            (name, a.elapsed_time(b) if self.cuda else 1000 * (b - a))
            for (_, a), (name, b) in pairs
        ]
