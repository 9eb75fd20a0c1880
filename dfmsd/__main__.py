"""`dfmsd` = `python -m dfmsd`: check data, train, distil, evaluate, predict, and print tables.

torch is imported inside the commands that need it, so that `dfmsd --help` answers at once, and the
rest inside `main`, which says one line at Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from dfmsd.training.signals import STATUS, PreemptedError

LONGEST = 2000  # characters of a line that is printed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command: its name and its arguments, those of the process unless given.

    Raises:
        SystemExit: 0 after `--help`; 2 after a mistake, which is one line on standard error (or
            tyro's message when the arguments fit no command); 75 after SIGTERM or SIGUSR1 during a
            training; 130 after Ctrl-C; 141 when nobody reads the output any more (`| head`).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if _rank():  # of several processes, one prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        _call(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # what is left in the buffer would fail once more when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        _exit(130, "interrupted; the same command continues a training run or a download")
    except PreemptedError as error:
        _exit(STATUS, _one_line(error))
    except (ValueError, OSError, FloatingPointError) as error:
        _exit(2, _one_line(error))


def commands() -> dict[str, Callable[..., None]]:
    """Name → function of every command but `data`."""
    from dfmsd.detectors.commands import COMMANDS as DETECTORS
    from dfmsd.experiments.commands import COMMANDS as EXPERIMENTS
    from dfmsd.widgets.commands import COMMANDS as WIDGETS

    return EXPERIMENTS | DETECTORS | WIDGETS


def _call(arguments: list[str]) -> None:
    """Parse the arguments and run the command; SystemExit from tyro when they fit none."""
    import tyro

    from dfmsd.data import commands as data

    program, offered, description = "dfmsd", {"data": data.data} | commands(), __doc__
    if arguments[:1] == ["data"]:
        program, offered, description = "dfmsd data", data.COMMANDS, data.__doc__
        arguments = arguments[1:]
    tyro.extras.subcommand_cli_from_dict(
        offered, prog=program, description=description.splitlines()[0], args=arguments
    )


def _one_line(error: Exception) -> str:
    """The words of an error, escaped and cut; the system's errors as `file: what is wrong`."""
    line = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        line = f"{error.filename}: {error.strerror.lower()}"
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 2]} …"


def _exit(status: int, line: str) -> None:
    """End with one line on standard error."""
    process = f" (process {_rank()})" if _rank() else ""
    sys.stderr.write(f"dfmsd{process}: {line}\n")
    raise SystemExit(status) from None


def _rank() -> int:
    """The number of this process among those that torchrun started; 0 alone."""
    return int(os.environ.get("RANK", 0))


if __name__ == "__main__":
    main()
