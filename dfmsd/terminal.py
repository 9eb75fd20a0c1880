"""Running one of several commands as terminals expect: errors on one line, exit statuses."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from dfmsd.training.signals import STATUS, PreemptedError

Command = Callable[..., None]


def run(
    commands: Mapping[str, Command], arguments: Sequence[str], *, prog: str, description: str
) -> None:
    """Run the command that `arguments` name.

    Raises:
        SystemExit: 0 after `--help`; 2 after a mistake, which is one line on standard error; 75
            after SIGTERM or SIGUSR1 during a training; 130 after Ctrl-C; 141 when nobody reads the
            output any more (`| head`).
    """
    if _process():  # of several, one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        parse(commands, arguments, prog=prog, description=description)()
        sys.stdout.flush()
    except BrokenPipeError:
        # what is left in the buffer would fail once more when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        _say("interrupted; the same command continues a training run or a download")
        raise SystemExit(130) from None
    except PreemptedError as error:
        _say(message(error))
        raise SystemExit(STATUS) from None
    except (ValueError, OSError, FloatingPointError) as error:
        _say(message(error))
        raise SystemExit(2) from None


def parse(
    commands: Mapping[str, Command], arguments: Sequence[str], *, prog: str, description: str
) -> Callable[[], None]:
    """The chosen command with its arguments, to be called without any.

    Raises:
        ValueError: the arguments fit no command.
        SystemExit: after `--help`.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            return tyro.extras.subcommand_cli_from_dict(
                {name: _later(command) for name, command in commands.items()},
                prog=prog,
                description=description,
                args=list(arguments),
            )
        except SystemExit as end:
            if not end.code:
                raise
    raise ValueError(unframed(said.getvalue()))


def _later(command: Command) -> Callable[..., Callable[[], None]]:
    """`command`, to be called after its arguments are parsed rather than while."""

    @functools.wraps(command)
    def bind(*arguments: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *arguments, **options)

    return bind


def unframed(text: str) -> str:
    """The words of tyro's framed message on one line, its parts divided by semicolons."""
    titles = [t.strip("─╭╮ ") for t in text.splitlines() if t.startswith("╭")]
    body = "\n".join(t.strip("│ ") for t in text.splitlines() if t[:1] not in ("╭", "╰"))
    parts = [" ".join(part.split()) for part in re.split(r"^─+$", body, flags=re.MULTILINE)]
    line = "; ".join(part.rstrip(".") for part in parts if part)
    known = not titles or line.lower().startswith(titles[0].lower())
    return line if known else f"{titles[0]}: {line}"


def message(error: Exception) -> str:
    """One line for a mistake; the system's own errors as `file: what is wrong`."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split())


def _say(line: str) -> None:
    """Write one line to standard error."""
    which = f" (process {_process()})" if _process() else ""
    sys.stderr.write(f"dfmsd{which}: {line}\n")


def _process() -> int:
    """The number of this process among those that torchrun started; 0 alone."""
    return int(os.environ.get("RANK", 0))


def drawings(images: Sequence[Path], out: Path) -> list[Path]:
    """The file of each image's drawing: NAME.png in `out`, NAME-2.png for the next of that name.

    Raises:
        ValueError: a drawing would replace one of the images.
    """
    targets: list[Path] = []
    for path in images:
        names = (path.stem if n == 1 else f"{path.stem}-{n}" for n in itertools.count(1))
        targets.append(next(t for t in (out / f"{name}.png" for name in names) if t not in targets))
    for target in targets:
        if target.resolve() in {path.resolve() for path in images}:
            raise ValueError(f"{target}: is one of the images; choose another folder with --out")
    return targets


def metrics_line(metrics: dict[str, float | None]) -> str:
    """The metrics on one line; a size class without objects shows as –."""
    shown = (f"{k} {v:.3f}" if v is not None and v == v else f"{k} –" for k, v in metrics.items())
    return "  ".join(shown)
