"""Run records as JSON lines: what a run leaves behind, and where it took place."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"[-+−–±]?[\d.]|[-–]?$|nan$|not run")  # how a number's cell begins
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "faster-coco-eval", "numpy")


class RecordError(ValueError):
    """A record file that cannot be read; the message names file, line and cause."""


@functools.cache  # asked when the code is loaded: the tree may move on under a long run
def commit() -> str:
    """The commit of the source tree (with `+` when files differ from it), or "unknown"."""
    options = {"cwd": Path(__file__).parent.parent, "capture_output": True, "timeout": 10}
    head, changes = ["rev-parse", "--short=12", "HEAD"], ["diff", "--quiet", "HEAD", "--", "."]
    try:
        name = subprocess.run(["git", *head], text=True, check=True, **options).stdout.strip()
        changed = subprocess.run(["git", *changes], **options).returncode
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name + "+" * bool(changed)


def _processor() -> str:
    with contextlib.suppress(OSError):
        if name := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M):
            return name[1].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Where a run took place: versions, hardware, commit; no host or user names."""
    import torch

    packages = {name: metadata.version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **packages},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [*map(torch.cuda.get_device_name, range(torch.cuda.device_count()))],
        "commit": commit(),
    }


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, oldest first; none without it. Raises RecordError."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise RecordError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(record, dict):
            raise RecordError(f"{path}, line {number}: expected an object, got {line[:40]!r}")
        records.append(record)
    return records


def read_folder(folder: str | Path) -> list[dict[str, Any]]:
    """The records of every JSON-lines file of a folder, the newest last: experiments share runs."""
    records = [r for file in sorted(Path(folder).glob("*.jsonl")) for r in read_records(file)]
    return sorted(records, key=lambda record: record.get("finished", ""))


def append_record(path: str | Path, record: dict[str, Any]) -> None:
    """Add one record; readers see the old file or the new one, never a part of a line.

    NaN becomes null, so that every JSON reader takes the file. Processes that append at the same
    time wait for each other. A file that cannot be read is left as it was (RecordError).
    """
    from dfmsd.detectors.checkpoints import write_atomic

    path = Path(path)
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
    with open(Path(tempfile.gettempdir()) / f"dfmsd-records-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        read_records(path)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        write_atomic(path, f"{text}{json.dumps(finite)}\n")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns of numbers are right-aligned, but for the first."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(*cells, strict=True)) or [()] * len(header)
    numbers = [all(_NUMBER.match(cell) for cell in column) for column in columns]
    rule = "|".join(["---", *("--:" if number else "---" for number in numbers[1:])])
    lines = [" | ".join(line) for line in (header, *cells)]
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def mean_losses(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The logged losses of a run averaged over at most 40 stretches, for learning curves."""
    length = max(1, -(-len(rows) // 40))
    means = []
    for first in range(0, len(rows), length):
        part = [row for row in rows[first : first + length] if row["stage"] == rows[first]["stage"]]
        means.append({k: round(sum(row[k] for row in part) / len(part), 5) for k in part[0]})
    return means
