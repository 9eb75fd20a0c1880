"""A number that a notebook's text quotes as a result is one that the notebook prints.

Quoted are all decimal numbers, and whole ones with a unit of results (UNIT), in text cells, picture
titles and alternative texts. They must stand in an output of the same section, to the digits that
are quoted, or be a literal of its code (a setting). The first cell, "What to keep" and the
exercises may quote the whole notebook. Code, formulas and examples "by hand" are not results.

Everything else names its source in the cell's metadata, `"quotes": {"SOURCE: WORDS": "NUMBERS"}`:
the numbers stand in SOURCE (a text file, or a notebook's outputs), in the one line with the words.
A title that is computed (an f-string) quotes nothing.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
UNIT = r"%|AP\b|points\b|ms\b|[MG]i?B\b"
QUOTED = re.compile(
    r"(?<![\w.,])[-−+]?(?:\d+\.\d+(?!\.?\d)"
    rf"|\d+(?=(?: (?:to|or|and) [-−+]?\d+)? ?(?:{UNIT})))"
)
PRINTED = re.compile(r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]\d+)?")
LITERAL = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?")
NO_RESULT = re.compile(r"`[^`]*`|\$\$[^$]*\$\$|\$[^$]*\$|\]\([^)]*\)|95 % interval")
ANYWHERE = ("## What to keep", "## Exercises")
PROCESSORS = 0.1
"""How far a number may be off, relative, where another processor executed the notebook."""


def number(text):
    return float(text.replace("−", "-").replace(",", ""))


def said(cell):
    """What a cell tells its reader, without code, formulas, examples and targets of links."""
    if cell.cell_type == "markdown":
        parts = [part for part in cell.source.split("\n\n") if "y hand" not in part]
        return NO_RESULT.sub(" ", "\n\n".join(parts))
    alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
    return " ".join([alt, *re.findall(r'title="([^"]*)"', cell.source)])


def lines(cells):
    """The lines of all outputs, without tags."""
    texts = []
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        kinds = output.get("data", {})
        texts.append(output.get("text", ""))
        texts += [kinds.get(f"text/{kind}", "") for kind in ("plain", "markdown", "html")]
    return re.sub(r"<[^>]*>|\xa0", " ", "\n".join(texts)).splitlines()


def numbers(lines):
    return [number(found) for line in lines for found in PRINTED.findall(line)]


def sections(book):
    """Of each section the heading, the (cell, text) of its text, and its cells of code."""
    parts = [("", [], [])]
    for cell in book.cells:
        text, *others = re.split(r"^(?=## )", said(cell), flags=re.M)
        parts[-1][1].append((cell, text))
        if cell.cell_type == "code":
            parts[-1][2].append(cell)
        parts += [(other.split("\n")[0], [(cell, other)], []) for other in others]
    return parts


def stands(quote, values, tolerance=0.0):
    """Whether a quoted number is one of those, rounded; a sign counts where it is quoted."""
    wanted, digits = number(quote), len(quote.partition(".")[2])
    room = 0.5 * 10**-digits + tolerance * abs(wanted) + 1e-9
    if quote[0] not in "+-−":
        values = map(abs, values)
    return any(abs(value - wanted) <= room for value in values)


@cache
def source(name):
    """The lines of a text file, or of a notebook's outputs."""
    path = ROOT / name
    if path.suffix == ".ipynb":
        return lines(nbformat.read(path, 4).cells)
    return path.read_text().splitlines()


def sourced(cell):
    """The numbers of a cell's metadata, each looked up in its source."""
    found = []
    for place, quotes in cell.metadata.get("quotes", {}).items():
        name, words = place.split(": ", 1)
        here = [line for line in source(name) if words in line]
        assert len(here) == 1, f"{len(here)} lines of {name} have the words {words}"
        values = numbers(here)
        values += [100 * v for v in values if name.endswith(".jsonl")]  # records hold shares
        for quote in quotes.split():
            assert stands(quote, values), f"{quote} is not in {place}"
            found.append(quote)
    return found


def unfounded(path, tolerance=0.0):
    """The quotes of a notebook that stand nowhere, with the words around them."""
    book = nbformat.read(path, 4)
    solved = nbformat.read(ROOT / f"notebooks/solutions/{path.stem[:2]}.ipynb", 4)
    missing = []
    for heading, texts, own in sections(book):
        if heading.startswith(ANYWHERE) or not heading:
            own = [cell for cell in [*book.cells, *solved.cells] if cell.cell_type == "code"]
        values = numbers(lines(own))
        settings = [float(one) for cell in own for one in LITERAL.findall(cell.source)]
        settings += [100 * one for one in settings if one <= 1]
        for cell, text in texts:
            elsewhere = sourced(cell)
            for found in QUOTED.finditer(text):
                quote = found[0]
                share = [v * 100 for v in values] if text[found.end() :].startswith(" %") else []
                known = abs(number(quote)) in settings or quote in elsewhere
                if not known and not stands(quote, values + share, tolerance):
                    around = text[max(0, found.start() - 40) : found.end() + 20]
                    missing.append(f"{quote} in “{' '.join(around.split())}”")
    return missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_quoted_numbers_are_printed(path):
    assert not unfounded(path)


def test_a_result_that_changed_is_noticed(tmp_path):
    """The strong teacher's share of fine energy, which the text of notebook 12 quotes."""
    (path,) = (path for path in FILES if path.stem.startswith("12"))
    changed = tmp_path / path.name
    changed.write_text(path.read_text().replace("strong teacher 0.43", "strong teacher 0.44"))
    (missing,) = unfounded(changed)
    assert missing.startswith("0.43 in “")


@pytest.mark.notebook
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_quoted_numbers_are_those_of_this_machine(path):
    """In what `make notebooks` executed here; another processor rounds and trains otherwise."""
    executed = ROOT / "build" / path.name
    if not executed.exists():
        pytest.skip("run `make notebooks` first")
    assert not unfounded(executed, PROCESSORS)
