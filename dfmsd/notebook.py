"""What every notebook begins with, `setup`; and `check`, which tells whether an answer is right."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import torch
from IPython import get_ipython
from matplotlib_inline.backend_inline import set_matplotlib_formats

from dfmsd.experiments.presets import default_scale, resolve
from dfmsd.experiments.settings import Settings
from dfmsd.experiments.validation import check_name

MARKS = ("notebooks/00_start_here.ipynb", "data/teachers")  # what makes a folder the project's


@dataclass(frozen=True)
class Lesson:
    """What a notebook works with."""

    settings: Settings  # of a preset; at "smoke" those of "quick", whose students are shipped
    scale: str  # as DFMSD_SCALE names it: "smoke" keeps trainings of the notebook's own short

    def pick(self, smoke: Any, quick: Any, full: Any = None) -> Any:
        """The value for the scale at hand; that of `quick` for `full` when it has none."""
        return {"smoke": smoke, "quick": quick, "full": quick if full is None else full}[self.scale]


def project_folder() -> Path:
    """The project's folder: here, above, where dfmsd was installed from, or one below.

    FileNotFoundError when there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).parents[1], *here.glob("*/")):
        if all((folder / mark).exists() for mark in MARKS):
            return folder
    raise FileNotFoundError(
        f"no folder with {' and '.join(MARKS)} at {here}, above or below it: notebooks need "
        f"a clone of the project, not the package alone (git clone --depth 1 {_address()} dfmsd)"
    )


def _address() -> str:
    """Where the project is published: `Repository` in pyproject.toml as installed, or ADDRESS."""
    try:
        urls = metadata("dfmsd").get_all("Project-URL") or []
    except PackageNotFoundError:  # a path to the source, nothing installed
        urls = []
    return dict(url.split(", ", 1) for url in urls).get("Repository", "ADDRESS")


def setup(*overrides: str, preset: str = "scenes", quality: int = 75) -> Lesson:
    """Go to the project's folder, fix the seed and the figures' format, and print one line.

    Afterwards every path is as seen from the project's folder, wherever the kernel was started.
    `overrides` are `key=value` settings; `quality` is that of the JPEG figures, 1 to 95.
    FileNotFoundError without the project's folder, ValueError for a setting that is none.
    """
    os.chdir(project_folder())
    scale = default_scale()
    settings = resolve(preset, overrides, scale="quick" if scale == "smoke" else scale)
    torch.manual_seed(0)
    if get_ipython() is not None:  # a script has no inline figures
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": quality})
    device = "GPU" if torch.cuda.is_available() and settings.device != "cpu" else "CPU"
    trained = {
        "smoke": "teachers and students are shipped; only short live runs train",
        "quick": "what is shipped is loaded, live runs train for minutes",
        "full": "meant for a GPU, everything but the shipped teachers is trained",
    }
    print(f"scale {scale}, {device}: {trained[scale]}")
    return Lesson(settings, scale)


def check(exercise: str, answer: Any = ...) -> None:
    """Say whether the answer to an exercise, such as "02.1", is right, or which way it is wrong.

    Numbers (also in lists and tensors) may be off by the tolerance that `data/answers.json` states
    and the line repeats; words are compared without case. `...` stands for no answer yet.
    ValueError for an exercise that there is not.
    """
    answers = json.loads((project_folder() / "data/answers.json").read_text())
    check_name("exercise", exercise, list(answers))
    if answer is ...:
        print(f"{exercise}: no answer yet")
        return
    expected, tolerance = answers[exercise]["answer"], answers[exercise].get("tolerance", 0)
    allowed = f" (± {tolerance:g} counts as right)" if tolerance else ""
    print(f"{exercise}: {_verdict(_plain(answer), expected, tolerance)}{allowed}")


def _plain(answer: Any) -> Any:
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    if isinstance(answer, (list, tuple)):
        return [_plain(one) for one in answer]
    return answer.strip().lower() if isinstance(answer, str) else answer


def _verdict(answer: Any, expected: Any, tolerance: float) -> str:
    if isinstance(expected, list):
        if not isinstance(answer, list) or len(answer) != len(expected):
            return f"wrong: {len(expected)} values are asked for"
        pairs = zip(answer, expected, strict=True)
        wrong = [n for n, pair in enumerate(pairs, 1) if _verdict(*pair, tolerance) != "right"]
        return f"wrong: value {', '.join(map(str, wrong))}" if wrong else "right"
    if isinstance(expected, (str, bool)) or not isinstance(answer, (int, float)):
        right = type(answer) is type(expected) and answer == _plain(expected)
        kind = {bool: "True or False", str: "a word"}.get(type(expected), "a number")
        return "right" if right else f"wrong: {answer!r}; {kind} is asked for"
    if abs(answer - expected) <= tolerance + 1e-9 * abs(expected):
        return "right"
    if not math.isfinite(answer):
        return f"wrong: {answer} is no number"
    distance = abs(answer - expected) / max(abs(answer), abs(expected))
    far = "slightly " if distance < 0.1 else "" if distance < 0.5 else "far "
    return f"wrong: {answer:g} is {far}too {'large' if answer > expected else 'small'}"
