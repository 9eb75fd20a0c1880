"""What every notebook begins with: the folder is found from anywhere, answers are judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from email.message import Message
from pathlib import Path

import pytest
import torch

from dfmsd import notebook
from dfmsd.experiments.settings import flat

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that is a clone as far as a notebook can tell, and nothing installed from it."""
    for mark in notebook.MARKS:
        path = tmp_path / "clone" / mark
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if not path.suffix else path.touch()
    monkeypatch.setattr(notebook, "__file__", str(tmp_path / "site/dfmsd/notebook.py"))
    return tmp_path / "clone"


@pytest.mark.parametrize("place", [".", "notebooks", "data/teachers", ".."])
def test_the_projects_folder_is_found_from(place, clone, monkeypatch):
    monkeypatch.chdir(clone / place)
    assert notebook.project_folder() == clone


def test_the_clone_at_hand_goes_before_the_installed_one(clone, monkeypatch):
    monkeypatch.setattr(notebook, "__file__", str(ROOT / "dfmsd/notebook.py"))
    monkeypatch.chdir(clone / "notebooks")
    assert notebook.project_folder() == clone
    monkeypatch.chdir("/")
    assert notebook.project_folder() == ROOT


def test_what_is_missing_is_named_in_one_line(clone, monkeypatch):
    shutil.rmtree(clone / "data")
    monkeypatch.chdir(clone / "notebooks")
    with pytest.raises(FileNotFoundError, match=r"data/teachers.*clone of the project") as error:
        notebook.setup()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("urls", "address"),
    [
        ([], "ADDRESS"),
        (["Documentation, https://docs.test"], "ADDRESS"),
        (["Repository, https://git.test/us/dfmsd"], "https://git.test/us/dfmsd"),
    ],
)
def test_the_line_that_clones_has_the_address_of_pyproject(urls, address, clone, monkeypatch):
    shutil.rmtree(clone)
    clone.mkdir()
    monkeypatch.chdir(clone)
    installed = Message()
    for url in urls:
        installed["Project-URL"] = url
    monkeypatch.setattr(notebook, "metadata", {"dfmsd": installed}.get)
    with pytest.raises(FileNotFoundError, match=f"git clone --depth 1 {address} dfmsd"):
        notebook.setup()


def test_setup_goes_there_and_says_what_is_trained(monkeypatch, capsys):
    monkeypatch.chdir("/")
    monkeypatch.setenv("DFMSD_SCALE", "smoke")
    torch.manual_seed(5)
    lesson = notebook.setup("arms=one")
    assert torch.initial_seed() == 0
    assert Path.cwd() == ROOT
    assert (lesson.scale, lesson.settings.scale, lesson.settings.arms) == (
        "smoke",
        "quick",
        ("one",),
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("scale smoke, ")
    assert str(ROOT) not in line
    for key, value in flat(lesson.settings).items():
        if key.endswith("_file") and value:
            assert Path(value).exists(), key
    assert [lesson.pick(1, 2), lesson.pick(1, 2, 3)] == [1, 1]


@pytest.mark.parametrize(("scale", "value"), [("quick", 2), ("full", 3)])
def test_a_larger_scale_has_its_own_settings(scale, value, monkeypatch):
    monkeypatch.setenv("DFMSD_SCALE", scale)
    monkeypatch.chdir(ROOT)
    lesson = notebook.setup()
    assert (lesson.settings.scale, lesson.pick(1, 2, 3), lesson.pick(1, 2)) == (scale, value, 2)


@pytest.mark.parametrize(
    ("answer", "expected", "says"),
    [
        (..., 3, "no answer yet"),
        (3, 3, "right"),
        (torch.tensor(3.04), 3, "right"),
        (3.3, 3, "slightly too large"),
        (2, 3, "wrong: 2 is too small"),
        (300, 3, "far too large"),
        (-3, 3, "far too small"),
        (float("nan"), 3, "no number"),
        ("three", 3, "a number is asked for"),
        (True, 3, "far too small"),
        ([1.0, 2.04], [1, 2], "right"),
        (torch.tensor([1.0, 5.0]), [1, 2], "wrong: value 2"),
        ([1.0], [1, 2], "wrong: 2 values"),
        (7, [1, 2], "wrong: 2 values"),
        (" Weak ", "weak", "right"),
        ("strong", "weak", "wrong: 'strong'"),
        (False, True, "wrong: False"),
        (1, True, "True or False is asked for"),
    ],
)
def test_an_answer_is_judged(answer, expected, says, clone, monkeypatch, capsys):
    entry = {"answer": expected, "tolerance": 0.05}
    (clone / "data/answers.json").write_text(json.dumps({"02.1": entry}))
    monkeypatch.chdir(clone)
    notebook.check("02.1", answer)
    out = capsys.readouterr().out
    assert says in out
    assert ("right" in out.partition("(")[0]) is (says == "right")
    assert ("far" in says, "slightly" in says) == ("far" in out, "slightly" in out)


def test_an_exercise_that_there_is_not(clone, monkeypatch):
    (clone / "data/answers.json").write_text('{"02.1": {"answer": 1}}')
    monkeypatch.chdir(clone)
    with pytest.raises(ValueError, match=r"02\.1"):
        notebook.check("02.7", 1)


def test_a_script_outside_ipython_can_use_it(tmp_path):
    code = "from dfmsd.notebook import setup; print(setup().settings.preset)"
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, cwd=tmp_path, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "scenes"
