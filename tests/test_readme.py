"""What the README and the pages of docs show must work as it stands there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_images

from dfmsd.__main__ import commands
from dfmsd.context import Context
from dfmsd.data.commands import COMMANDS as DATA_COMMANDS
from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.records import read_folder
from dfmsd.loss import DFMSDLoss

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {page.stem: page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))}
TEXT = "\n".join([README, *PAGES.values()])
TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))
LINKED = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md", "benchmarks/README.md"]
LINKED += [f"docs/{name}.md" for name in PAGES]


def test_the_ten_lines_run_as_printed_but_for_the_downloads():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    code = block.replace('weights="DEFAULT"', "weights=None, weights_backbone=None")
    code = code.replace('weights_backbone="DEFAULT"', "weights=None, weights_backbone=None")
    assert len([line for line in block.splitlines() if line]) <= 10
    images, targets = tiny_images(1, size=64)
    names = {"images": images, "targets": targets}
    small = "student.transform.min_size, student.transform.max_size = (96,), 96\n"
    exec(code.replace("losses =", small + "losses ="), names)
    assert {"reconstruction", "alignment"} < set(names["losses"])
    assert sorted(names["method"].pairs) == [(s, s) for s in (8, 16, 32, 64)]
    assert names["student"].backbone.body.layer4[0].conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in names["teacher"].parameters())
    torch.manual_seed(0)


def test_commands_and_settings_of_the_readme_exist():
    called = r"(?:^|`|-m )dfmsd "
    named = set(re.findall(called + r"(?!data)(\w[\w-]*)", TEXT, re.M))
    named |= set(re.findall(called + r"data (\w+)", TEXT, re.M))
    assert named <= {*commands(), *DATA_COMMANDS, "COMMAND"}
    for line in re.findall(r"dfmsd distill scenes ([^`\n]*)", TEXT):
        resolve("scenes", line.split())


def test_every_command_has_a_line():
    for name in [*commands(), *DATA_COMMANDS]:
        assert re.search(rf"^\| `dfmsd (data )?{name}\b", PAGES["command_line"], re.M), name


def test_every_room_is_named():
    rooms = {p.stem for p in (ROOT / "dfmsd").iterdir()} - {"__init__", "__main__", "__pycache__"}
    places = README.partition("## Where things are")[2]
    missing = {room for room in rooms if not re.search(rf"\b{room}\b", places)}
    assert not missing


def test_the_readme_is_short_and_has_pictures():
    assert len(README.encode()) <= 12 * 1024
    assert len(re.findall(r"!\[[^\]]{20,}\]\(docs/images/", README)) >= 2


@pytest.mark.parametrize("name", ["README", *PAGES])
def test_tables_are_those_of_the_records(name):
    """After new records: `python docs/tables.py`."""
    text = PAGES.get(name, README)
    assert TABLES["render"](text, read_folder(ROOT / "data" / "results")) == text


def test_the_tables_that_should_be_shown_are():
    shown = re.findall(r"<!-- table: (\S+) -->", TEXT)
    assert len(shown) == len(set(shown))
    later = {"scenes-weights", "few-readings"}  # in notebook 11
    assert set(shown) == {*EXPERIMENTS, "claims", "summary", "settings", "repeats"} - later


@pytest.mark.parametrize("name", LINKED)
def test_relative_links_lead_somewhere(name):
    text, folder = (ROOT / name).read_text(), (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("../../actions/"):  # GitHub's own pages
            continue
        path, _, anchor = target.partition("#")
        goal = folder / path if path else ROOT / name
        assert goal.exists(), target
        if anchor and goal.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", goal.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
            assert anchor in anchors, target


def test_notation_names_what_is_there():
    for names, path in re.findall(r"\[`([\w.]+)`\]\(\.\./(dfmsd/\S+?)\)", PAGES["notation"]):
        for name in names.split("."):
            assert re.search(rf"(def|class) {name}\b", (ROOT / path).read_text()), names


def test_notation_has_the_shapes_of_the_code():
    images = torch.rand(2, 3, 32, 48)
    method = DFMSDLoss({8: 6}, {8: 10})
    features = torch.rand(2, 6, 4, 6), torch.rand(2, 10, 4, 6)
    context = Context(images, [(32, 48)] * 2)
    level = method.levels({8: features[0]}, {8: features[1]}, context)[8]
    sizes = {"N": 2, "1": 1, "$C_t$": 10, "H": 4, "W": 6}
    rows = re.findall(r"^\| [^|]* \| `(\w+)` \| \((.*?)\)", PAGES["notation"], re.M)
    checked = 0
    for name, shape in rows:
        value = getattr(level, name, None)
        if name not in ("student", "teacher") and torch.is_tensor(value):
            assert value.shape == tuple(sizes[side] for side in shape.split(", ")), name
            checked += 1
    assert checked == 7


def test_the_citation_agrees_with_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z]+@", TEXT)
