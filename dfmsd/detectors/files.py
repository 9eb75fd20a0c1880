"""Files: written whole or not at all, and whatever goes wrong in one is one line with its name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PathLike = str | os.PathLike[str]
_LONGEST = 500  # characters of a reason


class CheckpointError(ValueError):
    """A file that cannot be read, or whose tensors do not fit the model."""


def printable(text: object) -> str:
    """The first line of `text`, at most 500 characters; what cannot be printed is escaped."""
    line = " ".join(next(iter(str(text).splitlines()), "")[: 2 * _LONGEST].split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


@contextmanager
def one_line_errors(path: PathLike, failure: str) -> Iterator[None]:
    """Context in which any error is a CheckpointError of one line, "`path`: `failure` (reason)".

    Choice: every exception, as no list of them is complete for bytes that anybody may have written.
    """
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except CheckpointError as error:
        named = str(error).startswith(f"{path}: ")
        raise error if named else CheckpointError(f"{path}: {printable(error)}") from None
    except Exception as error:
        reason, kind = printable(error), type(error).__name__
        if not isinstance(error, ValueError | RuntimeError | OSError) or not reason:
            reason = f"{kind}: {reason}" if reason else kind
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it asks for {printable(code[1])}; only tensors, numbers and text are taken"
        raise CheckpointError(f"{path}: {failure} ({reason})") from error


def sample(names: Iterable[str], *, count: int = 5) -> str:
    """The first of `names` with commas, and how many more there are; "nothing" for none."""
    first = [name if len(name) <= 160 else f"{name[:159]}…" for name in names]
    more = [f"and {len(first) - count} more"] if len(first) > count else []
    return ", ".join(first[:count] + more) or "nothing"


@contextmanager
def named(path: PathLike) -> Iterator[None]:
    """Context in which an error of the system that names no file (disk full) names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def atomic_file(path: PathLike) -> Iterator[BinaryIO]:
    """Context with a binary handle whose content replaces file `path` at the end, on the disk.

    An error leaves the old file as it was. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(path), temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: PathLike, content: bytes | memoryview | str) -> None:
    """Write `content` (text as UTF-8) to `path`: the old or the new content, never a part."""
    with atomic_file(path) as handle:
        handle.write(content.encode() if isinstance(content, str) else content)
