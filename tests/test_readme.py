"""What the README shows must work as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import tiny_images

from dfmsd.__main__ import commands
from dfmsd.data.commands import COMMANDS as DATA_COMMANDS
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.records import read_folder
from dfmsd.experiments.results import relative_to, results_frame
from dfmsd.experiments.tables import gains_table, results_table

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_ten_lines_run_as_printed_but_for_the_downloads():
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
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
    named = set(re.findall(r"dfmsd (?!data)(\w[\w-]*)", TEXT)) | set(
        re.findall(r"dfmsd data (\w+)", TEXT)
    )
    assert named <= {*commands(), *DATA_COMMANDS, "COMMAND"} | {"distill"}
    for line in re.findall(r"dfmsd distill scenes ([^`\n]*)", TEXT):
        resolve("scenes", line.split())


def test_every_room_and_library_is_named():
    rooms = {p.stem for p in (ROOT / "dfmsd").glob("*.py")} - {"__init__", "__main__"}
    missing = {room for room in rooms if not re.search(rf"\b{room}\b", TEXT)}
    assert not missing


@pytest.mark.parametrize("name", ["scenes-methods", "scenes-ablation", "photos-methods"])
def test_tables_are_those_of_the_records(name):
    frame = results_frame(name, read_folder(ROOT / "data" / "results"))
    parts = name == "scenes-ablation"
    table = gains_table(relative_to(frame, "dfmsd")) if parts else results_table(frame)
    assert table.replace("\N{NO-BREAK SPACE}", " ").strip() in TEXT


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z]+@", TEXT)
