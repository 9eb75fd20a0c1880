"""Records and tables: atomic, readable by anyone, and computed as a hand would."""

from __future__ import annotations

import json
import multiprocessing
import statistics

import pytest

from dfmsd.experiments.arms import ARMS
from dfmsd.experiments.records import (
    RecordError,
    append_record,
    environment,
    markdown_table,
    paired_difference,
    read_records,
    select,
    spread,
)
from dfmsd.experiments.tables import ap_by_arm, arms_table, paper_table


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


def _append_many(path, first):
    for number in range(first, first + 20):
        append_record(path, {"number": number})


def test_processes_lose_no_record(tmp_path):
    path = tmp_path / "records.jsonl"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.starmap(_append_many, [(path, 0), (path, 20)])
    assert sorted(record["number"] for record in read_records(path)) == list(range(40))


def test_spread_by_hand():
    assert spread([0.40, 0.42, 0.44]) == "42.0 ± 2.0"
    assert spread([0.5]) == "50.0"
    assert spread([None, 0.5]) == "50.0"
    assert spread([]) == "–"


def test_environment_names_no_host_or_user():
    import getpass
    import platform

    text = json.dumps(environment())
    assert platform.node() not in text or len(platform.node()) < 4
    assert f'"{getpass.getuser()}"' not in text
    assert set(environment()["versions"]) >= {"torch", "torchvision", "python"}


def record(arm, seed, ap, *, finished="2026-01-01", fingerprint="f"):
    metrics = {"AP": ap, "AP50": ap, "AP_S": ap, "AP_M": ap, "AP_L": None}
    steps = [round(100 * length) for length in ARMS[arm].lengths]
    return {
        "preset": "scenes",
        "scale": "quick",
        "arm": arm,
        "seed": seed,
        "fingerprint": fingerprint,
        "finished": finished,
        "steps": steps,
        "metrics": metrics,
        "cpu_s": 10.0,
        "settings": {"arms": list(ARMS)},
    }


def test_select_takes_the_newest_per_seed():
    records = [record("none", 1, 0.1), record("none", 0, 0.2), record("none", 1, 0.3)]
    assert [r["metrics"]["AP"] for r in select(records, arm="none")] == [0.2, 0.3]


def test_paired_difference_uses_seeds_that_both_have():
    base = [record("none", 0, 0.1), record("none", 1, 0.2)]
    other = [record("one", 1, 0.5), record("one", 2, 0.9)]
    assert paired_difference(other, base) == pytest.approx([0.3])


def test_arms_table_values_and_missing_rows():
    base, one = [0.10, 0.14], [0.20, 0.28]
    records = [record("none", s, ap) for s, ap in enumerate(base)]
    records += [record("one", s, ap) for s, ap in enumerate(one)]
    rows = [line.split("|")[1:-1] for line in arms_table(records).splitlines()[2:]]
    rows = [[cell.strip() for cell in row] for row in rows]
    assert len(rows) == len(ARMS)
    gains = [100 * (b - a) for a, b in zip(base, one, strict=True)]
    gain = f"{statistics.mean(gains):.1f} ± {statistics.stdev(gains):.1f}"
    assert rows[0][:5] == ["no distillation", "100", "2", "12.0 ± 2.8", ""]
    assert rows[1][3:5] == ["24.0 ± 5.7", gain]
    assert rows[1][8] == "–"
    assert [row[1] for row in rows[2:]] == ["not run"] * (len(ARMS) - 2)


def test_arms_table_leaves_out_rows_that_nobody_asked_for():
    asked = record("none", 0, 0.1) | {"settings": {"arms": ["none", "one"]}}
    assert [line.split("|")[2].strip() for line in arms_table([asked]).splitlines()[2:]] == [
        "100",
        "not run",
    ]


def test_ap_by_arm():
    rows = ap_by_arm([record("none", 0, 0.1), record("none", 1, 0.2), record("two", 0, 0.3)])
    assert list(rows) == ["no distillation, 100", "DFMSD, two stages (weak → strong), 50 + 50"]
    assert list(rows.values()) == [[10.0, 20.0], [30.0]]


def test_arms_table_never_mixes_settings():
    records = [
        record("none", 0, 0.9, fingerprint="old", finished="2025-01-01"),
        record("none", 1, 0.1, fingerprint="new"),
    ]
    assert "| no distillation | 100 | 1 | 10.0 |" in arms_table(records)


def test_paper_numbers_stand_as_figure_3_states_them():
    for number in ("38.4", "42.2", "42.9", "42.3"):
        assert number in paper_table()


def test_markdown_table():
    table = markdown_table(["a", "b"], [[1, 2]])
    assert table == "| a | b |\n|---|--:|\n| 1 | 2 |"


def test_markdown_table_aligns_numbers_and_text():
    rows = [["x", "1.0 ± 2", "no box", ""], ["y", "–", "3 px", "not run"], ["z", "-1", "–", "+2"]]
    assert markdown_table("abcd", rows).splitlines()[1] == "|---|--:|---|--:|"
