"""The tables in the committed notebooks are those that the records give today."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from IPython.display import Markdown

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
FROM_RECORDS = {
    "07_staged_distillation": (20,),
    "09_baselines": (1, 3, 18, 19, 21, 23, 25, 27, 29, 31, 33, 34, 37, 39),
    "11_tables": (1, 3, 5, *range(8, 49, 2)),
}
"""Notebook → the cells that need nothing but records. Of the cells between, the imports run."""


def shown_by(source, names):
    """The Markdown texts that a cell shows: by `display`, and as its last expression."""
    texts = []
    names["display"] = lambda item: texts.append(getattr(item, "data", None))
    source = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
    *body, last = ast.parse(source.replace("Markdown, display", "Markdown")).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        names["display"](eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    else:
        exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return [text for text in texts if isinstance(text, str)]


@pytest.mark.parametrize("name", FROM_RECORDS)
def test_tables_in_notebooks_are_those_of_the_records(name, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS.parent)
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    names, count = {"Markdown": Markdown}, 0
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if number not in FROM_RECORDS[name]:
            found = [node for node in ast.parse(source.replace("%", "#")).body]
            found = [node for node in found if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(found, []), "cell", "exec"), names)
            continue
        outputs = [output.get("data", {}).get("text/markdown") for output in cell["outputs"]]
        committed = ["".join(text) for text in outputs if text is not None]
        assert shown_by(source, names) == committed, f"{name}, cell {number}"
        count += len(committed)
    plt.close("all")
    assert count >= len(FROM_RECORDS[name]) / 4  # the others draw
