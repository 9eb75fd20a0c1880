"""What a first import, the command line's help and a notebook's first figure cost.

    python benchmarks/imports.py

Each side is a new Python process, its CPU time counted whole; see `first_figure.py` for the figure.
"""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator

from ratio import ROOT, Measure, cpu_seconds, main, measure, ratios

NOTEBOOK = ROOT / "notebooks" / "02_attention_to_masks.ipynb"


def process(*arguments: str) -> Callable[[], None]:
    """An action: a new Python process with these arguments, in the notebooks' folder."""
    command = [sys.executable, *arguments]
    how = {"env": os.environ | {"DFMSD_SCALE": "smoke", "DFMSD_STATIC": "1"}}
    how |= {"cwd": NOTEBOOK.parent, "stdout": subprocess.DEVNULL}
    return lambda: subprocess.run(command, check=True, **how)


def measures(options: Namespace) -> Iterator[Measure]:
    several, warm = (1, False) if options.quick else (5, True)
    sides = (process("-c", f"import {name}") for name in ("dfmsd.loss", "torch"))
    values = ratios(*sides, several, warm=warm)
    yield measure("import dfmsd.loss / import torch", values, 1.05)
    command = process("-m", "dfmsd", "--help")
    values = [cpu_seconds(command) for _ in range(several + warm)][warm:]
    yield measure("python -m dfmsd --help", values, None, "CPU s")
    figure = process(str(ROOT / "benchmarks" / "first_figure.py"), str(NOTEBOOK))
    peer = process("-c", "import torch, torchvision, matplotlib.pyplot")
    values = ratios(figure, peer, 1 if options.quick else 3, warm=warm)
    name = "first figure of notebook 02 / import torch, torchvision, matplotlib.pyplot"
    yield measure(name, values, 2.0)


if __name__ == "__main__":
    main(measures, __doc__)
