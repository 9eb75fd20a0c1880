"""Reports: right for any state of the records, and they say how they were made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.outcomes import Outcome, experiment_outcomes
from dfmsd.experiments.published import abstracts_table, pairs_table, published_sizes_table
from dfmsd.experiments.records import read_folder, read_records
from dfmsd.experiments.reports import (
    cost_table,
    experiment_report,
    provenance,
    teachers_table,
    weights_grid,
    weights_table,
)

ROOT = Path(__file__).parent.parent
RECORDS = read_folder(ROOT / "data/results")
PUBLISHED = read_records(ROOT / "data/published.jsonl")


def cells(table):
    table = table.replace("\N{NO-BREAK SPACE}", " ")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_reports_what_its_records_hold(name):
    plan = EXPERIMENTS[name]
    report = experiment_report(name, RECORDS)
    assert plan.question in report
    outcomes = experiment_outcomes(name, RECORDS)
    count = sum(len(outcome.records) for outcome in outcomes.values())
    if count:
        assert f"Made from {count} run" in report
        for line in report.splitlines():
            assert line.count(" | ") <= 9, line  # ten columns at most can be read on the web
    else:
        assert "**not run**" in report
    if not name.endswith("-weights") and count:
        for outcome in outcomes.values():
            (line,) = [x for x in report.splitlines() if x.startswith(f"| {outcome.title} |")][:1]
            assert ("not run" in line) == (not outcome.records)
    empty = experiment_report(name, [])
    assert f"`dfmsd experiment {name}`" in empty
    assert not re.search(r"\d\.\d", empty)


def test_deleting_a_committed_record_makes_its_place_say_not_run():
    name = "scenes-weights"
    rows = [r for r in RECORDS if r.get("row") in EXPERIMENTS[name].rows and r["seed"] == 100]
    gone = rows[len(rows) // 2]
    method, multiple = gone["row"].rsplit("-", 1)
    title = EXPERIMENTS[name].rows[gone["row"]].title.rsplit(" × ", 1)[0]
    before = weights_grid(experiment_outcomes(name, RECORDS))
    after = weights_grid(experiment_outcomes(name, [r for r in RECORDS if r is not gone]))
    assert before[title][float(multiple)] == pytest.approx(100 * gone["metrics"]["AP"]), method
    assert after[title].pop(float(multiple)) is None
    before[title].pop(float(multiple))
    assert after == before


def weighing(title, ap):
    records = () if ap is None else ({"seed": 100, "metrics": {"AP": ap}},)
    return Outcome(title, records, (), "", 1)


def test_weights_by_hand():
    outcomes = {
        "a-0.1": weighing("A × 0.1", 0.25),
        "b-two-0.1": weighing("B × 2 × 0.1", 0.5),
        "a-1": weighing("A × 1", 0.5),
        "b-two-1": weighing("B × 2 × 1", None),
        "a-10": weighing("A × 10", 0.125),
        "b-two-10": weighing("B × 2 × 10", 0.25),
        "c-1": weighing("C × 1", None),
    }
    grid = weights_grid(outcomes)
    assert grid["A"] == {0.1: 25.0, 1.0: 50.0, 10.0: 12.5}
    table = weights_table(grid)
    assert table.splitlines()[0] == "| AP at | × 0.1 | × 1 | × 10 | best |"
    assert cells(table) == [
        ["A", "25.0", "50.0", "12.5", "× 1"],
        ["B × 2", "50.0", "not run", "25.0", "× 0.1, an end of the grid"],
        ["C", "not run", "not run", "not run", "not run"],
    ]


def measured(name, number, ms, mb):
    return {"cost_of": name, "round": number, "step_ms": ms, "memory_mb": mb, "parameters": 1200}


def test_cost_by_hand():
    found = [measured("none", 0, 100.0, 500), measured("none", 1, 200.0, 510)]
    found += [measured("pkd", 0, 110.0, 520), measured("pkd", 1, 240.0, 540), {"arm": "one"}]
    titles = {"none": "no distillation", "pkd": "PKD", "mgd": "MGD"}
    none, pkd, mgd = cells(cost_table(found, titles))
    assert none == ["no distillation", "2", "150 ± 71", "", "505 ± 7", "", "1,200"]
    # extra 10 and 20 %: 15 ± 12.706 · 7.07 / √2 = 63.5; memory 20 and 30: 25 ± 63.5
    assert pkd[2:] == ["175 ± 92", "+15 (-49 to +79)", "530 ± 14", "+25 (-39 to +89)", "1,200"]
    assert mgd == ["MGD", "not run", *[""] * 5]


def test_teachers_by_hand():
    metrics = {"AP": 0.5, "AP50": 0.75, "AP75": 0.5, "AP_S": None, "AP_M": 0.25, "AP_L": 1.0}
    one = {
        "preset": "scenes",
        "arm": "train weak",
        "steps": [800],
        "metrics": metrics,
        "cpu_s": 219.6,
        "settings": {"student": {"kind": "fcos", "trunk": "timm:resnet18"}},
    }
    (row,) = cells(teachers_table([one, {"arm": "none"}, {"cost_of": "pkd"}]))
    values = ["50.0", "75.0", "50.0", "–", "25.0", "100.0"]
    assert row == ["scenes: weak", "fcos, resnet18", "800", *values, "220"]
    assert cells(teachers_table([]))[0][0] == "not run"


def made(**changes):
    data = {"kind": "scenes", "root": "", "train_images": 9, "val_images": 4, "size": 96}
    place = {"processor": "A", "cores": 2, "threads": 1, "accelerators": [], "commit": "abc"}
    return {
        "scale": "quick",
        "seed": 0,
        "finished": "2026-01-02T03:04:05Z",
        "settings": {"data": data | {"small": 14.0, "medium": 28.0}, "train": {"batch_size": 8}},
        "environment": place | {"versions": {"python": "3", "torch": "2"}},
    } | changes


def test_provenance_says_how_and_lists_what_differs():
    text = provenance([made()])
    for part in (
        "Made from 1 run at scale quick, seed 0, 2026-01-02.",
        "9 training and 4 validation scenes, 96 pixels (small below 14, medium below 28)",
        "batches of 8",
        "A, 2 cores, 1 thread, no accelerator",
        "Python 3, torch 2",
        "abc",
    ):
        assert part in text
    gpu = made()["environment"] | {"accelerators": ["B"], "threads": 4, "commit": "def+"}
    two = [made(), made(seed=3, finished="2026-02-01T00:00:00Z", environment=gpu), made(seed=3)]
    text = provenance(two)
    assert "Made from 3 runs at scale quick, seeds 0, 3, 2026-01-02 to 2026-02-01." in text
    assert "no accelerator / A, 2 cores, 4 threads, B." in text
    assert "abc / def+" in text
    old = made()
    del old["environment"], old["finished"]
    assert "unknown" in provenance([old])
    assert provenance([]) == "*Made from no record.*"


def test_provenance_names_a_folder_without_its_place():
    one = made()
    one["settings"]["data"] |= {"kind": "coco", "root": "somewhere/else/aquarium/"}
    assert "photographs of the folder aquarium, 96 pixels" in provenance([one])
    assert "somewhere" not in provenance([one])


def test_a_folder_of_records_is_read_newest_last(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"n": 2, "finished": "2026-01-02"}\n{"n": 0}\n')
    (tmp_path / "c.jsonl").write_text('{"n": 1, "finished": "2026-01-01"}\n')
    (tmp_path / "c.txt").write_text("no record")
    assert [record["n"] for record in read_folder(tmp_path)] == [0, 1, 2]
    assert read_folder(tmp_path / "none") == []


def test_published_pairs_have_gains_sources_and_numbered_notes():
    pairs = [line for line in PUBLISHED if line["kind"] in ("same", "other")]
    assert len(pairs) == 21
    for kind in ("same", "other"):
        table, *notes = pairs_table(PUBLISHED, kind).split("\n\n")
        rows = cells(table)
        assert len(rows) == sum(pair["kind"] == kind for pair in pairs)
        marks = [m for row in rows for m in re.findall(r"\((\d)\)$", row[0])]
        assert marks == [str(n + 1) for n in range(len(notes))]
        assert [note[:3] for note in notes] == [f"({n + 1})" for n in range(len(notes))]
        for row in rows:
            assert row[6], row
            for ap, gain in re.findall(r" ([\d.]+) \(([-+][\d.]+)\)", row[5]):
                assert float(row[1]) + float(gain) == pytest.approx(float(ap), abs=1e-9)
    # the abstract of PKD: FCOS gains 4.8, reaching 43.9
    assert "PKD 43.9 (+4.8)" in pairs_table(PUBLISHED, "other")


def test_the_other_published_tables():
    assert len(cells(abstracts_table(PUBLISHED))) == 6
    sizes = cells(published_sizes_table(PUBLISHED))
    assert [row[1] for row in sizes] == [
        "40.1",
        *["40.7"] * 2,
        *["41.1"] * 2,
        "40.8",
        "41.5",
        "42.1",
    ]
    for _, ap, small, _, large in sizes:
        assert float(small) < float(ap) < float(large)
