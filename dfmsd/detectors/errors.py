"""One boundary for every file: whatever goes wrong in it is one line with the file's name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

PathLike = str | os.PathLike[str]
_LONGEST = 500  # characters of a reason


class CheckpointError(ValueError):
    """A file that cannot be read, or whose tensors do not fit the model."""


def printable(text: object, *, longest: int = _LONGEST) -> str:
    """`text` on one line of at most `longest` characters; what cannot be printed is escaped."""
    line = " ".join(str(text)[: 2 * longest].split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


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
        kind = (
            "" if isinstance(error, ValueError | RuntimeError | OSError) else type(error).__name__
        )
        reason = ": ".join(filter(None, (kind, printable((str(error).splitlines() or [""])[0]))))
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it asks for {printable(code[1])}; only tensors, numbers and text are taken"
        raise CheckpointError(f"{path}: {failure} ({reason or type(error).__name__})") from error
