"""Writes `docs/images/notebooks.jpg`: one small picture per notebook, from its outputs.

Run it with `python docs/thumbnails.py` after notebooks were executed.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
COLUMNS, WIDTH, HEIGHT, LABEL = 5, 220, 130, 14  # pixels of one picture and of its number
# number of the notebook: which of its pictures tells most; others show their first
PICTURE = {"00": 1, "01": 1, "02": 4, "03": 2, "04": 1, "05": 1, "07": 3, "10": 1, "12": 1}


def pictures(notebook: Path) -> list[bytes]:
    """The pictures that a notebook has in its outputs, in order."""
    cells = json.loads(notebook.read_text())["cells"]
    bundles = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    kinds = ("image/jpeg", "image/png")
    return [base64.b64decode(data[kind]) for data in bundles for kind in kinds if kind in data]


def sheet(notebooks: list[Path]) -> Image.Image:
    """All small pictures on white, each with the number of its notebook."""
    rows = -(-len(notebooks) // COLUMNS)
    whole = Image.new("RGB", (COLUMNS * WIDTH, rows * (HEIGHT + LABEL)), "white")
    for position, notebook in enumerate(notebooks):
        x, y = position % COLUMNS * WIDTH, position // COLUMNS * (HEIGHT + LABEL)
        ImageDraw.Draw(whole).text((x + 4, y), notebook.stem.replace("_", " "), fill="black")
        if found := pictures(notebook):
            number = PICTURE.get(notebook.stem[:2], 0)
            picture = Image.open(io.BytesIO(found[min(number, len(found) - 1)])).convert("RGB")
            picture.thumbnail((WIDTH - 8, HEIGHT - 4), Image.Resampling.LANCZOS)
            whole.paste(picture, (x + 4, y + LABEL))
    return whole


if __name__ == "__main__":
    series = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    sheet(series).save(ROOT / "docs" / "images" / "notebooks.jpg", quality=85, optimize=True)
