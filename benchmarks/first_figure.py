"""Execute a notebook's code cells in plain Python, up to the first whose value is a figure.

    python benchmarks/first_figure.py notebooks/02_attention_to_masks.ipynb

The figure is drawn as a PNG; lines for IPython alone (`%config`) are left out. `imports.py` times
it.
"""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path


def main(notebook: Path) -> None:
    """Execute the cells of `notebook` until one draws.

    Raises:
        RuntimeError: none does.
    """
    space: dict[str, object] = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = [line for line in cell["source"] if not line.startswith(("%", "!"))]
        *statements, last = ast.parse("".join(lines)).body or [ast.Pass()]
        if not isinstance(last, ast.Expr):
            statements.append(last)
        exec(compile(ast.Module(statements, []), "cell", "exec"), space)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
            if hasattr(value, "savefig"):
                value.savefig(io.BytesIO(), format="png")
                return
    raise RuntimeError(f"{notebook.name}: no cell's value is a figure")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
