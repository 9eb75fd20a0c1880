"""Records: atomic, readable by anyone; and the Markdown that tables are written in."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dfmsd.detectors.files import CheckpointError
from dfmsd.experiments import records
from dfmsd.experiments.records import (
    append_record,
    check_writable,
    environment,
    markdown_table,
    mean_losses,
    read_folder,
    read_records,
)


def test_append_and_read(tmp_path):
    path = tmp_path / "new" / "records.jsonl"
    assert read_records(path) == []
    for seed in range(3):
        append_record(path, {"seed": seed, "AP": float("nan"), "deep": [{"x": float("inf")}]})
    assert read_records(path) == [
        {"seed": seed, "AP": None, "deep": [{"x": None}]} for seed in range(3)
    ]
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == [".records.jsonl.lock", "records.jsonl"]


def test_a_broken_file_is_named_and_left_alone(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"seed": 0}\n{"seed": 1')
    with pytest.raises(CheckpointError, match=r"records\.jsonl, line 2: not JSON"):
        read_records(path)
    assert path.read_text() == '{"seed": 0}\n{"seed": 1'
    path.write_text("[1]\n")
    with pytest.raises(CheckpointError, match="line 1: expected an object"):
        read_records(path)


GARBAGE = [b"\x00\xff\x80", b'{"seed": 1', b"[" * 100_000, b"1" * 5000, b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_beside_garbage_a_new_record_is_kept_and_the_line_is_named(tmp_path, garbage):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"seed": 0}\n' + garbage)
    append_record(path, {"seed": 2})
    assert path.read_bytes() == b'{"seed": 0}\n' + garbage + b'\n{"seed": 2}\n'
    with pytest.raises(
        CheckpointError, match=r"records\.jsonl, line 2: (not JSON|expected an obj)"
    ):
        read_records(path)


def test_a_link_a_mode_and_a_line_without_its_end_survive(tmp_path):
    target, path = tmp_path / "elsewhere" / "target.jsonl", tmp_path / "records.jsonl"
    target.parent.mkdir()
    target.write_text('{"seed": 0}')
    target.chmod(0o640)
    path.symlink_to(target)
    append_record(path, {"seed": 1})
    assert path.is_symlink()
    assert target.read_text() == '{"seed": 0}\n{"seed": 1}\n'
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_names_the_file_and_leaves_no_rest(tmp_path, monkeypatch, name):
    path = tmp_path / "records.jsonl"
    append_record(path, {"seed": 0})

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *map(str, arguments[1:]))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(OSError, match="No space left") as caught:
            append_record(path, {"seed": 1})
    assert caught.value.filename == str(path)
    assert {p.name for p in tmp_path.iterdir()} == {".records.jsonl.lock", "records.jsonl"}
    append_record(path, {"seed": 1})
    assert [record["seed"] for record in read_records(path)] == [0, 1]


def test_what_cannot_be_written_is_named_and_nothing_left(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "deep" / "r.jsonl")
    check_writable(tmp_path / "file")
    for path in (tmp_path / "file" / "r.jsonl", tmp_path / "file" / "deep" / "r.jsonl"):
        with pytest.raises(NotADirectoryError) as caught:
            check_writable(path)
        assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_records_is_read_newest_last(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"n": 2, "finished": "2026-01-02"}\n{"n": 0}\n')
    (tmp_path / "c.jsonl").write_text('{"n": 1, "finished": "2026-01-01"}\n')
    (tmp_path / "c.txt").write_text("no record")
    assert [record["n"] for record in read_folder(tmp_path)] == [0, 1, 2]
    with pytest.raises(FileNotFoundError, match="none: no such folder, seen from "):
        read_folder(tmp_path / "none")


def _append_many(path, first):
    os.environ["TMPDIR"] = str(first)  # the lock must not depend on it
    for number in range(first, first + 100):
        append_record(path, {"number": number})


def test_processes_lose_no_record(tmp_path):
    path = tmp_path / "records.jsonl"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.starmap(_append_many, [(path, 0), (path, 100)])
    assert sorted(record["number"] for record in read_records(path)) == list(range(200))


def test_environment_names_no_host_or_user():
    import getpass
    import platform

    text = json.dumps(environment())
    assert platform.node() not in text or len(platform.node()) < 4
    assert f'"{getpass.getuser()}"' not in text
    assert set(environment()["versions"]) >= {"torch", "torchvision", "python"}


def test_the_commit_of_another_project_is_not_ours(tmp_path):
    place = tmp_path / "project/.venv/lib"
    shutil.copytree(Path(records.__file__).parents[1], place / "dfmsd")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for step in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *step], cwd=tmp_path / "project", check=True)
    code = "from dfmsd.experiments.records import commit; print(commit())"
    run = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": str(place)}
    assert subprocess.check_output(run, cwd=tmp_path, env=env, text=True) == "unknown\n"


def test_losses_of_every_stage_are_in_the_means():
    rows = [
        {"stage": s, "step": n, "loss": float(s)} for s, n in ((0, 41), (1, 82)) for n in range(n)
    ]
    means = mean_losses(rows)
    for stage, count in ((0, 41), (1, 82)):
        own = [row for row in means if row["stage"] == stage]
        assert own[0]["step"] < 4
        assert own[-1]["step"] == pytest.approx(count - 1, abs=3)
        assert {row["loss"] for row in own} == {stage}
    assert len(means) <= 42


def test_markdown_table():
    table = markdown_table(["a", "b"], [[1, 2]])
    assert table == "| a | b |\n|---|--:|\n| 1 | 2 |"


def test_markdown_table_aligns_numbers_and_text():
    rows = [["x", "1.0 ± 2", "no box", ""], ["y", "–", "3 px", "not run"], ["z", "-1", "–", "+2"]]
    assert markdown_table("abcd", rows).splitlines()[1] == "|---|--:|---|--:|"
