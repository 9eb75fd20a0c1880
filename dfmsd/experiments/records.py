"""Run records as JSON lines: what a run leaves behind, and where it took place."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import platform
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock

from dfmsd.detectors.files import CheckpointError, atomic_file

_NUMBER = re.compile(r"[-+−–±]?[\d.]|[-–]?$|nan$|not run")  # how a number's cell begins
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "faster-coco-eval", "numpy")


@functools.cache  # asked when the code is loaded: the tree may move on under a long run
def commit() -> str:
    """The commit of the source tree (with `+` when files differ from it), or "unknown"."""
    options = {"cwd": Path(__file__).parent.parent, "capture_output": True, "timeout": 10}
    head, changes = ["rev-parse", "--short=12", "HEAD"], ["diff", "--quiet", "HEAD", "--", "."]
    try:  # an installed copy may lie inside another project's tree
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], check=True, **options)
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
    """The records of a JSON-lines file, oldest first; none without it. Raises CheckpointError."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", type(error).__name__)
            raise CheckpointError(f"{path}, line {number}: not JSON ({reason})") from error
        if not isinstance(record, dict):
            found = f"got {str(record)[:40]!r}"
            raise CheckpointError(f"{path}, line {number}: expected an object, {found}")
        records.append(record)
    return records


def read_folder(folder: str | Path) -> list[dict[str, Any]]:
    """The records of every JSON-lines file of a folder, the newest last: experiments share runs."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, seen from {Path.cwd()}")
    records = [r for file in sorted(Path(folder).glob("*.jsonl")) for r in read_records(file)]
    return sorted(records, key=finished)


def finished(record: dict[str, Any]) -> str:
    """When a run was finished, to sort by; empty when its record does not say."""
    return str(record.get("finished", ""))


def append_record(path: str | Path, record: dict[str, Any]) -> None:
    """Add one record; readers see the old file or the new one, never a part of a line.

    NaN becomes null, so that every JSON reader takes the file. Processes that append at the same
    time wait for each other, by a lock file beside it. All that the file holds is kept, as are its
    mode and a link to it.
    """
    path = Path(os.path.realpath(path))
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")), atomic_file(path) as file:
        if path.exists():
            os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            before = path.read_bytes()
            file.write(before + b"\n" * (not before.endswith(b"\n")))
        file.write(f"{json.dumps(finite)}\n".encode())


def check_writable(path: str | Path) -> None:
    """Leave nothing; OSError that names a file, or its folder, which cannot be written."""
    path = place = Path(os.path.realpath(path))
    while not place.exists():
        place = place.parent
    try:
        if place == path:
            path.open("ab").close()
            place = path.parent
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(place)) from None


def data_of(record: dict[str, Any]) -> str:
    """What tells the data of a record: their `content_hash`; empty for scenes and old records."""
    return str(record.get("fingerprint", "")).partition("-")[2]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns of numbers are right-aligned, but for the first."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(*cells, strict=True)) or [()] * len(header)
    numbers = [all(_NUMBER.match(cell) for cell in column) for column in columns]
    rule = "|".join(["---", *("--:" if number else "---" for number in numbers[1:])])
    lines = [" | ".join(line) for line in (header, *cells)]
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def mean_losses(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The logged losses of a run averaged over about 40 stretches, each inside one stage."""
    length, means = max(1, -(-len(rows) // 40)), []
    for _, stage in itertools.groupby(rows, itemgetter("stage")):
        part = list(stage)
        for first in range(0, len(part), length):
            some = part[first : first + length]
            means.append({key: round(fmean(row[key] for row in some), 5) for key in some[0]})
    return means
