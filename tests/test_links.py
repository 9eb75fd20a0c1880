"""Notebooks: every mention is a link, no link is dead, and the text cells are short and plain."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
FILES = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
SOLUTIONS = sorted(NOTEBOOKS.glob("solutions/[0-9]*.ipynb"))
# Their text is being revised elsewhere. Take a name out once it is; none should stay.
NOT_YET: set[str] = set()
METHODS = ("DFMSD", "DMKD", "AMD", "MGD", "FGD", "PKD", "CWD", "FitNet", "MTPD")
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
UNPLAIN = (
    r"\bBy head\b",
    r"\bIn the head\b",
    r"\bRead it so\b",
    r"\bshall\b",
    r"\bNames that come by\b",
    r"\bBesides killing there is asking\b",
    r"\bwith its news\b",
    r"\bthird-party summary\b",
    r"\bmachine-written review\b",
    r"\bworked off in parts\b",
    r"\bto a good part\b",
)


@functools.cache
def markdown(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def without_links(text):
    return LINK.sub("", text)


def words(text):
    """How many words a reader sees: no addresses, no table rules, nothing that is folded away."""
    text = re.sub(r"<details>.*?</details>", "", LINK.sub(r"\1", text), flags=re.S)
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def first_mention_is_linked(text, name):
    """True where `name` is absent. Headings, code and formulas are no mentions."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|`[^`]*`|\$[^$\n]*\$|^#.*?$", "", text, flags=re.S | re.M)
    text = LINK.sub("\x01\\1\x02", text)
    found = re.search(rf"\b{name}s?\b", text)
    return found is None or text.rfind("\x01", 0, found.start()) > text.rfind(
        "\x02", 0, found.start()
    )


def places(path):
    """What a link into this file may name after `#`."""
    if path.suffix == ".ipynb":
        text = "\n".join(markdown(path))
    else:
        text = path.read_text(encoding="utf-8")
    headings = {line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")}
    names = {heading.replace(" ", "-") for heading in headings}
    return names | {name.lower() for name in names} | set(re.findall(r'id="([^"]+)"', text))


@pytest.fixture(params=[f for f in FILES if f.stem not in NOT_YET], ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(
    params=[f for f in FILES if f.stem not in NOT_YET] + SOLUTIONS,
    ids=lambda path: f"{path.parent.name} {path.stem}",
)
def either(request):
    return request.param


def test_names_that_wait_are_notebooks():
    assert {file.stem for file in FILES} >= NOT_YET


def test_every_mention_of_a_notebook_is_a_link(either):
    for text in markdown(either):
        bare = without_links(text)
        assert not re.search(r"\b[01]\d_[a-z]\w+|\b[Nn]otebooks? [01]\d\b", bare), text


def test_every_paper_is_a_link(either):
    for text in markdown(either):
        assert not re.search(r"arXiv|\b\d{4}\.\d{5}\b", without_links(text)), text


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_linked_where_it_is_first_named(path, name):
    assert first_mention_is_linked("\n\n".join(markdown(path)), name)


def test_no_link_is_dead(either):
    for _, target in (link for text in markdown(either) for link in LINK.findall(text)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        file, _, place = target.partition("#")
        file = either.parent / file if file else either
        assert file.exists(), target
        assert not place or place in places(file), target


def test_it_leads_to_its_neighbours_and_to_further_reading(path):
    last, number = markdown(path)[-1], FILES.index(path)
    *_, reading = last.partition("## Further reading\n")
    items = re.findall(r"^- .*?(?=^- |^$|\Z)", reading, flags=re.M | re.S)
    assert 3 <= len(items) <= 5, items
    assert all(LINK.search(item) for item in items), items
    targets = {target for _, target in LINK.findall(reading.rsplit("\n- ", 1)[-1])}
    neighbours = FILES[max(0, number - 1) : number] + FILES[number + 1 : number + 2]
    assert targets >= {file.name for file in neighbours}
    assert ("Previous:" in reading) == (number > 0)


def test_a_text_cell_has_at_most_250_words(either):
    for text in markdown(either):
        assert words(text) <= 250, (words(text), text)


@pytest.mark.parametrize("phrase", UNPLAIN)
def test_it_is_plain_english(either, phrase):
    for text in markdown(either):
        assert not re.search(phrase, text, re.I), text


def test_what_the_tests_look_for():
    assert first_mention_is_linked("# MGD\n\n`MGD` and $MGD$: [**MGD**](a), then MGD", "MGD")
    assert not first_mention_is_linked("[code](https://a/MGD) of MGD, [MGD](b)", "MGD")
    assert not first_mention_is_linked("FitNets", "FitNet")
    assert first_mention_is_linked("DFMSDLoss and DFMSD_SCALE", "DFMSD")
    assert words("| [two words](a/b) | 3 |\n|---|---|") == 3
    assert words("one <details>a b\nc</details> two") == 2
