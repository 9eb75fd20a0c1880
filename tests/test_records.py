"""Records: atomic, readable by anyone; and the Markdown that tables are written in."""

from __future__ import annotations

import json
import multiprocessing

import pytest

from dfmsd.experiments.records import (
    RecordError,
    append_record,
    environment,
    markdown_table,
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
    assert [p.name for p in path.parent.iterdir()] == ["records.jsonl"]


def test_a_broken_file_is_named_and_left_alone(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"seed": 0}\n{"seed": 1')
    for call in (lambda: read_records(path), lambda: append_record(path, {})):
        with pytest.raises(RecordError, match=r"records\.jsonl, line 2: not JSON"):
            call()
    assert path.read_text() == '{"seed": 0}\n{"seed": 1'
    path.write_text("[1]\n")
    with pytest.raises(RecordError, match="line 1: expected an object"):
        read_records(path)


def test_a_folder_of_records_is_read_newest_last(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"n": 2, "finished": "2026-01-02"}\n{"n": 0}\n')
    (tmp_path / "c.jsonl").write_text('{"n": 1, "finished": "2026-01-01"}\n')
    (tmp_path / "c.txt").write_text("no record")
    assert [record["n"] for record in read_folder(tmp_path)] == [0, 1, 2]
    assert read_folder(tmp_path / "none") == []


def _append_many(path, first):
    for number in range(first, first + 20):
        append_record(path, {"number": number})


def test_processes_lose_no_record(tmp_path):
    path = tmp_path / "records.jsonl"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.starmap(_append_many, [(path, 0), (path, 20)])
    assert sorted(record["number"] for record in read_records(path)) == list(range(40))


def test_environment_names_no_host_or_user():
    import getpass
    import platform

    text = json.dumps(environment())
    assert platform.node() not in text or len(platform.node()) < 4
    assert f'"{getpass.getuser()}"' not in text
    assert set(environment()["versions"]) >= {"torch", "torchvision", "python"}


def test_markdown_table():
    table = markdown_table(["a", "b"], [[1, 2]])
    assert table == "| a | b |\n|---|--:|\n| 1 | 2 |"


def test_markdown_table_aligns_numbers_and_text():
    rows = [["x", "1.0 ± 2", "no box", ""], ["y", "–", "3 px", "not run"], ["z", "-1", "–", "+2"]]
    assert markdown_table("abcd", rows).splitlines()[1] == "|---|--:|---|--:|"
