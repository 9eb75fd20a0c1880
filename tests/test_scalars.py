"""Scalars for TensorBoard: every row once, steps counted over all stages."""

from __future__ import annotations

import sys
import types

import pytest
from tiny import LineDetector, TinyBatches

from dfmsd.stages import Stage, run_stages
from dfmsd.training.log import Logging, tensorboard
from dfmsd.training.loop import Evaluation
from dfmsd.training.optim import Schedule


class Writer:
    """Stands for torch's SummaryWriter."""

    made: list[Writer] = []  # noqa: RUF012

    def __init__(self, folder, *, purge_step):
        self.folder, self.purge_step, self.rows = folder, purge_step, []
        self.made.append(self)

    def add_scalar(self, name, value, step):
        self.rows.append((name, step, value))


@pytest.fixture
def board(monkeypatch):
    """A TensorBoard that only remembers."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_steps_count_over_all_stages(board, tmp_path):
    lengths, student, histories = [3, 2], LineDetector(), []
    run_stages(
        student,
        [Stage("task only", Schedule(steps=steps, lr=0.1)) for steps in lengths],
        TinyBatches(),
        optimizer={},
        log=Logging(watch=tensorboard(tmp_path, lengths), show=False),
        evaluation=Evaluation(lambda _: {"AP": 0.25}, every=2),
        after_stage=lambda *given: histories.append(given[-1]),
    )
    (writer,) = board
    assert (writer.folder, writer.purge_step) == (str(tmp_path), 0)
    rows = [row for history in histories for row in history.rows]
    assert [row for row in writer.rows if row[0] == "loss"] == [
        ("loss", step, row["loss"]) for step, row in enumerate(rows)
    ]
    assert {name for name, _, _ in writer.rows} == {"loss", "fit", "size", "AP"}
    assert [row[1:] for row in writer.rows if row[0] == "AP"] == [(1, 0.25), (3, 0.25)]


def test_a_resumed_run_takes_back_what_was_beyond(board, tmp_path):
    tensorboard(tmp_path, [10, 10])({"stage": 1, "step": 4, "loss": 1.0})
    assert board[0].purge_step == 14


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"engine\.tensorboard=True: needs .*pip install tensor"):
        tensorboard(tmp_path, [1])
