"""Costs of two sides that take turns in one run: the ratio, its spread, the table, the record.

CPU time is that of this process and of the processes it waited for, on one thread: it does not
depend on what else the machine computes, but for caches and clock rates, which both sides share.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# before torch is imported, and for the processes that are started from here
os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "KINETO_LOG_LEVEL": "99"}
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from dfmsd.experiments.records import append_record, environment, markdown_table  # noqa: E402

torch.set_num_threads(1)
Action = Callable[[], object]


@dataclass(frozen=True)
class Measure:
    """One row: the median of `rounds` values and their quartiles, beside its limit (or None)."""

    name: str
    value: float
    quartiles: tuple[float, float]
    limit: float | None
    rounds: int
    unit: str = ""


def measure(name: str, values: Sequence[float], limit: float | None, unit: str = "") -> Measure:
    """The row of these values, one per round."""
    few = len(values) < 2
    low, _, high = values * 3 if few else statistics.quantiles(values, n=4, method="inclusive")
    return Measure(name, statistics.median(values), (low, high), limit, len(values), unit)


def cpu_seconds(action: Action) -> float:
    """CPU seconds, user and system, of `action` and of the processes that it waited for."""

    def now() -> float:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    gc.collect()
    began = now()
    action()
    return now() - began


def ratios(ours: Action, peer: Action, rounds: int, *, warm: bool = True) -> list[float]:
    """CPU time of `ours` over that of `peer`, per round; rounds alternate as A B, B A, A B, ..."""
    if warm:
        ours(), peer()
    values = []
    for number in range(rounds):
        order = (ours, peer) if number % 2 == 0 else (peer, ours)
        seconds = {side: cpu_seconds(side) for side in order}
        values.append(seconds[ours] / seconds[peer])
    return values


def peak_bytes(action: Action) -> int:
    """The most memory that torch held during `action`, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        record.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def table(measures: Iterable[Measure]) -> str:
    """Markdown: measure | reached | quartiles | at most | n."""
    rows = []
    for m in measures:
        reached, (low, high) = f"{m.value:.3f} {m.unit}".strip(), m.quartiles
        limit = "" if m.limit is None else f"{m.limit:.2f}"
        rows.append([m.name, reached, f"{low:.3f} to {high:.3f}", limit, m.rounds])
    return markdown_table(["measure", "reached", "quartiles", "at most", "n"], rows)


def main(measures: Callable[[argparse.Namespace], Iterable[Measure]], description: str) -> None:
    """Run `measures`, print their table, and append their records to `--records` if given."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and few: only to see it run")
    parser.add_argument("--records", type=Path, help="append the measures to this JSON-lines file")
    parser.add_argument("--images", type=int, default=5000, help="of the evaluation")
    options = parser.parse_args()
    rows, where = [], environment()
    for row in measures(options):
        rows.append(row)
        print(f"{row.name}: {row.value:.3f} {row.unit}", file=sys.stderr, flush=True)
        if options.records:
            finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            record = {"bench": row.name, **asdict(row), "quick": options.quick}
            append_record(options.records, record | {"finished": finished, "environment": where})
    print(table(rows))
