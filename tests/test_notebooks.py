"""Notebooks: what is committed reads well, and every one of them runs at smoke scale."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks/solutions").glob("[0-9]*.ipynb"))
EXERCISE = re.compile(r"\*\*Exercise (\d\d\.\d+)\.\*\*")
TRAINS = re.compile(r"\bfit\(|\.step\(\)|run_stages\(|\blive\b|Popen")
NUMBER = re.compile(r"[-−+]?\d+(?:\.\d+)?(?:e[-+]\d+)?")
MACHINE_PATH = re.compile(r"/(?:home|root|tmp|work|Users|mnt)/\w+")


def cells(path, kind):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == kind]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(params=SOLUTIONS, ids=lambda path: f"solutions {path.stem}")
def solution(request):
    return request.param


@pytest.fixture(params=FILES + SOLUTIONS, ids=lambda path: f"{path.parent.name} {path.stem}")
def either(request):
    return request.param


def exercises_of(path):
    """A notebook's exercises: number → what its cell says, and the source of the cell below it."""
    found, cells = {}, nbformat.read(path, 4).cells
    for cell, below in zip(cells, [*cells[1:], None], strict=True):
        number = EXERCISE.match(cell.source) if cell.cell_type == "markdown" else None
        if number:
            assert below is not None
            assert below.cell_type == "code", cell.source
            found[number[1]] = cell.source, below.source
    return found


def questions(path):
    """Numbers of the exercises that a notebook's text names in bold."""
    return [key for cell in cells(path, "markdown") for key in EXERCISE.findall(cell.source)]


def printed(path):
    outputs = [output for cell in cells(path, "code") for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def says(book):
    """Of every cell the text of its outputs, without numbers from the first on that trains."""
    texts, trained = [], False
    for cell in (cell for cell in book.cells if cell.cell_type == "code"):
        trained = trained or bool(TRAINS.search(cell.source))
        kinds = [output.get("data", {}) for output in cell.outputs]
        shown = [output.get("text", "") for output in cell.outputs]  # a stream, in any pieces
        for kind in ("text/markdown", "text/html", "text/plain"):
            shown += [one.get(kind, "") for one in kinds]
        texts.append(NUMBER.sub("#", "".join(shown)) if trained else "".join(shown))
    return texts


def run(path, folder):
    """Execute a notebook at smoke scale into `folder`."""
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute"]
    options = [f"--output-dir={folder}", "--ExecutePreprocessor.timeout=600"]
    smoke = os.environ | {"DFMSD_SCALE": "smoke", "DFMSD_STATIC": "1"}
    subprocess.run([*command, *options, path], check=True, env=smoke)


def test_there_are_notebooks():
    assert FILES


def test_it_was_executed_from_top_to_bottom(either):
    code = cells(either, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert kinds <= {"display_data", "execute_result", "stream"}
    assert not any(o.get("name") == "stderr" for cell in code for o in cell.outputs)


def test_it_is_light_and_names_no_machine(either):
    assert either.stat().st_size <= (100_000 if either in SOLUTIONS else 500_000)
    text = either.read_text()
    assert "application/vnd.jupyter.widget" not in text
    for cell in cells(either, "code"):
        for output in cell.outputs:
            shown = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert not MACHINE_PATH.search(shown), shown
        assert not MACHINE_PATH.search(cell.source), cell.source


def test_code_cells_are_short_and_define_only_naive_things(either):
    for cell in cells(either, "code"):
        assert cell.source.count("\n") < 18, cell.source  # 15 lines before ruff wraps them
        assert not re.search(r"^\s*class ", cell.source, re.M), cell.source
        assert not re.search(r"%cd|!pip|!wget|sys\.path", cell.source), cell.source


def test_it_opens_with_a_question_and_ends_with_exercises_and_reading(path):
    text = [cell.source for cell in cells(path, "markdown")]
    assert "question" in text[0].lower()
    assert "after this you can" in text[0].lower()
    assert any("## Exercises" in source for source in text)
    assert "## Further reading" in text[-1]
    assert "Next:" in text[-1] or path == FILES[-1]


def test_it_begins_with_setup_and_counts_paths_from_the_projects_folder(path):
    code = [cell.source for cell in cells(path, "code")]
    assert re.search(r"\bsetup\(", code[0]), code[0]
    for source in code:
        assert not re.search(r"root=[\"']\.\.|[\"']\.\./|%config", source), source


def test_exercises_have_a_cell_an_answer_and_a_solution(path):
    number = path.stem[:2]
    exercises = exercises_of(path)
    answers = json.loads((ROOT / "data/answers.json").read_text())
    named = [int(key.removeprefix(f"{number}.")) for key in exercises]
    assert named == list(range(1, len(named) + 1))
    assert named
    assert set(exercises) == {key for key in answers if key.startswith(f"{number}.")}
    for key, (_, code) in exercises.items():
        assert f'check("{key}", ' in code, code
        assert f"{key}: no answer yet" in printed(path)
    (solved,) = (path for path in SOLUTIONS if path.stem == number)
    assert questions(solved) == list(exercises)
    for key in exercises:
        assert re.search(rf"^{re.escape(key)}: right", printed(solved), re.M), key


def test_no_exercise_shows_its_answer_in_brackets(path):
    for text, _ in exercises_of(path).values():
        assert not re.search(
            r"[Yy]ou should find|[Ee]xpect(?:ed)? (?:about )?\d|[Ll]ies between", text
        )


def test_a_solution_begins_with_setup_and_leads_to_its_notebook(solution):
    (notebook,) = (file for file in FILES if file.stem.startswith(f"{solution.stem}_"))
    text = cells(solution, "markdown")[0].source
    assert text.startswith(f"# {solution.stem} · ")
    assert f"](../{notebook.name})" in text
    assert "setup(" in cells(solution, "code")[0].source


def test_pictures_have_an_alternative_text(path):
    seen = set()
    for cell in cells(path, "code"):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        if not any(kind.startswith("image/") for kind in kinds):
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert 20 <= len(alt) <= 200, (alt, cell.source)
        assert alt not in seen, alt
        seen.add(alt)
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert not re.search(r"!\[\s*\]\(", text)


def test_markdown_comes_before_code(path):
    kinds = [cell.cell_type for cell in nbformat.read(path, 4).cells]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= kinds.count("code") / 2


@pytest.mark.notebook
def test_a_solution_runs_at_smoke_scale(solution, tmp_path):
    run(solution, tmp_path)
    for key in questions(solution):
        assert f"{key}: right" in printed(tmp_path / solution.name)


@pytest.mark.notebook
@pytest.mark.parametrize("place", ["/", str(ROOT), str(ROOT / "notebooks")])
def test_it_says_what_is_committed_wherever_the_kernel_starts(path, place, monkeypatch):
    """Byte for byte; from the first cell that trains (TRAINS) on, all but the numbers."""
    monkeypatch.setenv("DFMSD_SCALE", "smoke")
    monkeypatch.setenv("DFMSD_STATIC", "1")
    book = nbformat.read(path, 4)
    committed = says(book)
    made, _ = ExecutePreprocessor(timeout=1800).preprocess(book, {"metadata": {"path": place}})
    assert says(made) == committed


@pytest.mark.notebook
@pytest.mark.parametrize("number", ["09", "11"])
def test_the_tables_can_be_made_from_no_record_at_all(number, tmp_path):
    (path,) = (file for file in FILES if file.stem.startswith(number))
    for folder in ("notebooks", "data/results"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("teachers", "students", "published.jsonl", "claims.jsonl", "answers.json"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    (tmp_path / "notebooks/00_start_here.ipynb").touch()  # makes it the project's folder
    source = tmp_path / "notebooks" / path.name
    source.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute"]
    subprocess.run(
        [*command, "--inplace", "--ExecutePreprocessor.timeout=600", source],
        check=True,
        env=os.environ | {"DFMSD_SCALE": "smoke", "PYTHONPATH": str(ROOT)},
    )
    text = source.read_text()
    assert text.count("not run") > 20
    assert "Made from 1" not in text
