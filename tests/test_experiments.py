"""Experiments: what is declared can be run, what is recorded is not run again, tables say so."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from command_line import TINY, call, refused, teachers

from dfmsd.experiments import runs
from dfmsd.experiments.grids import CHOSEN, EXPERIMENTS, HELD_OUT, MULTIPLES, Experiment, Row
from dfmsd.experiments.records import read_records

ROOT = Path(__file__).parent.parent
SMALL = Experiment(
    "Does anything run?",
    "scenes",
    {
        "none": Row("no distillation", "none"),
        "pkd": Row("PKD", "one", ("method.name=pkd", "method.factor=0.5")),
    },
    (0, 1),
    tuple(text for text in TINY if not text.startswith(("records", "seeds", "arms"))),
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_resolves_and_no_two_are_the_same(name):
    listed = runs.experiment_runs(name)
    plan = EXPERIMENTS[name]
    assert len(listed) == len(plan.rows) * len(plan.seeds)
    assert [run.seed for run in listed] == sorted(run.seed for run in listed)
    kinds = {(run.arm, run.seed, json.dumps(asdict(run.settings))) for run in listed}
    assert len(kinds) == len(listed)
    assert {str(run.records) for run in listed} == {f"data/results/{name}.jsonl"}


def test_weights_are_never_chosen_on_a_reported_seed():
    for name, plan in EXPERIMENTS.items():
        assert (plan.seeds == (HELD_OUT,)) == name.endswith("-weights")
        assert name.endswith("-weights") or HELD_OUT not in plan.seeds


def test_the_weights_are_those_that_the_records_chose():
    records = read_records(ROOT / "data/results/scenes-weights.jsonl")
    for name, chosen in CHOSEN.items():
        found = {
            record["row"].rsplit("-", 1)[1]: record["metrics"]["AP"]
            for record in records
            if record["row"].rsplit("-", 1)[0] == name
        }
        assert set(found) == {f"{multiple:g}" for multiple in MULTIPLES}, name
        assert max(found, key=found.get) == f"{chosen:g}", name


def test_an_unknown_experiment_names_the_nearest(capsys):
    assert "scenes-weights" in refused(capsys, "experiment", "scene-weights")


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "small", SMALL)
    monkeypatch.chdir(tmp_path)
    teachers(tmp_path)
    return tmp_path / "data/results/small.jsonl"


def test_what_has_a_record_is_not_run_again(small, monkeypatch, capsys):
    began = []
    execute = runs.execute

    def stopping(run, **options):
        began.append((run.row, run.seed))
        if len(began) == 3:
            raise KeyboardInterrupt
        return execute(run, **options)

    monkeypatch.setattr(runs, "execute", stopping)
    with pytest.raises(KeyboardInterrupt):
        runs.execute_experiment("small", show=False)
    assert [(r["row"], r["seed"]) for r in read_records(small)] == began[:2]
    records = runs.execute_experiment("small", show=False)
    assert began[3:] == [began[2], ("pkd", 1)]
    assert [(r["row"], r["seed"]) for r in records] == [
        ("none", 0),
        ("pkd", 0),
        ("none", 1),
        ("pkd", 1),
    ]
    before = small.read_bytes()
    (small.parents[2] / "runs").rename(small.parents[2] / "gone")  # records travel without runs
    _, output, _ = call(capsys, "experiment", "small")
    assert "4 runs recorded" in output
    assert "4 of them before" in output
    assert small.read_bytes() == before
    assert len(began) == 5
