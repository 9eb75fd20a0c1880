"""Notebooks: what is committed reads well, and every one of them runs at smoke scale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
MACHINE_PATH = re.compile(r"/(?:home|root|tmp|work|Users|mnt)/\w+")


def cells(path, kind):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == kind]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_there_are_notebooks():
    assert FILES


def test_it_was_executed_from_top_to_bottom(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert kinds <= {"display_data", "execute_result", "stream"}
    assert not any(o.get("name") == "stderr" for cell in code for o in cell.outputs)


def test_it_is_light_and_names_no_machine(path):
    assert path.stat().st_size <= 500_000
    text = path.read_text()
    assert "application/vnd.jupyter.widget" not in text
    for cell in cells(path, "code"):
        for output in cell.outputs:
            shown = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert not MACHINE_PATH.search(shown), shown
        assert not MACHINE_PATH.search(cell.source), cell.source


def test_code_cells_are_short_and_define_only_naive_things(path):
    for cell in cells(path, "code"):
        assert cell.source.count("\n") < 18, cell.source  # 15 lines before ruff wraps them
        assert not re.search(r"^\s*class ", cell.source, re.M), cell.source
        assert not re.search(r"%cd|!pip|!wget|sys\.path", cell.source), cell.source


def test_it_opens_with_a_question_and_ends_with_exercises(path):
    text = cells(path, "markdown")
    assert "question" in text[0].source.lower()
    assert "after this you can" in text[0].source.lower()
    assert "## Exercises" in text[-1].source
    assert "Next:" in text[-1].source


def test_markdown_comes_before_code(path):
    kinds = [cell.cell_type for cell in nbformat.read(path, 4).cells]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= kinds.count("code") / 2


@pytest.mark.notebook
def test_it_runs_at_smoke_scale(path, tmp_path):
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute"]
    options = [f"--output-dir={tmp_path}", "--ExecutePreprocessor.timeout=600"]
    subprocess.run(
        [*command, *options, path], check=True, env=os.environ | {"DFMSD_SCALE": "smoke"}
    )


@pytest.mark.notebook
@pytest.mark.parametrize("number", ["09", "11"])
def test_the_tables_can_be_made_from_no_record_at_all(number, tmp_path):
    (path,) = (file for file in FILES if file.stem.startswith(number))
    for folder in ("notebooks", "data/results"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/teachers").symlink_to(ROOT / "data/teachers")
    for file in ("published.jsonl", "claims.jsonl"):
        (tmp_path / "data" / file).symlink_to(ROOT / "data" / file)
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
