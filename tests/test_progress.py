"""The progress line: few lines in a log, one line in a terminal, one output in a notebook."""

from __future__ import annotations

import io

from dfmsd.training.progress import Progress


def test_line_by_hand():
    line = Progress("train", 4, stream=io.StringIO()).line(1, "loss 2.0")
    assert line.startswith("train [#####...............] 1/4")
    assert line.endswith("loss 2.0")


def test_a_log_gets_about_ten_lines(monkeypatch):
    stream = io.StringIO()
    progress = Progress("train", 1000, stream=stream)
    progress.last = -1e9
    monkeypatch.setattr("time.monotonic", iter(range(10**6)).__next__)
    for step in range(1000):
        progress.update(step + 1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert "1000/1000" in lines[-1]


def test_a_terminal_rewrites_one_line(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("time.monotonic", iter(range(10**6)).__next__)
    stream = Terminal()
    progress = Progress("train", 3, stream=stream)
    for step in range(3):
        progress.update(step + 1)
    assert stream.getvalue().count("\r") == 3
    assert stream.getvalue().count("\n") == 1


def test_the_end_is_said_once():
    stream = io.StringIO()
    progress = Progress("train", 2, stream=stream)
    for note in ("a", "a", "b"):
        progress.update(2, note)
    assert [line[-1] for line in stream.getvalue().splitlines()] == ["a", "b"]


def test_silent_when_not_shown():
    stream = io.StringIO()
    Progress("train", 1, stream=stream, show=False).update(1)
    assert stream.getvalue() == ""
