"""Experiments: what is declared can be run, what is recorded is not run again, tables say so."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from command_line import TINY, call, refused, teachers

from dfmsd import runs, tables
from dfmsd.experiments import CHOSEN, EXPERIMENTS, HELD_OUT, MULTIPLES, Experiment, Row
from dfmsd.presets import resolve
from dfmsd.results import read_records
from dfmsd.tables import experiment_records, experiment_table, fits, interval

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


def record(row, seed, ap, **changes):
    settings = resolve("scenes", [*SMALL.settings, *SMALL.rows[row].settings])
    return {
        "arm": SMALL.rows[row].arm,
        "seed": seed,
        "steps": [4],
        "metrics": dict.fromkeys(("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L"), ap),
        "cpu_s": 10.0,
        "peak_memory_mb": 500,
        "settings": json.loads(json.dumps(asdict(settings) | changes)),
    }


def test_the_table_pairs_seeds_and_says_what_was_not_run(monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "small", SMALL)
    listed = [record("none", 0, 0.10), record("none", 1, 0.20)]
    lines = experiment_table("small", listed).splitlines()
    assert "| not run |" in lines[3]
    listed += [record("pkd", 0, 0.14), record("pkd", 1, 0.22), record("pkd", 2, 0.9)]
    pkd = experiment_table("small", listed).splitlines()[3].split("|")[1:-1]
    # differences 4 and 2: mean 3, sd √2, half = 12.706 · √2 / √2
    assert [cell.strip() for cell in pkd[:5]] == [
        "PKD",
        "4",
        "2",
        "18.0 ± 5.7",
        "+3.0 (-9.7 to +15.7)",
    ]


def test_records_of_other_settings_do_not_count(monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "small", SMALL)
    other = record("pkd", 0, 0.5)
    other["settings"]["train"]["lr"] = 0.5
    assert experiment_records("small", [other]) == {"none": [], "pkd": []}
    settings = resolve("scenes")
    old = json.loads(json.dumps(asdict(settings)))
    for young in ("name", "factor"):
        del old["method"][young]
    assert fits({"settings": old}, settings)
    assert not fits(
        {"settings": old}, replace(settings, method=replace(settings.method, name="pkd"))
    )


def test_interval():
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert interval([1.0]) is None
    with pytest.raises(ValueError, match=r"differences: got 11, expected at most 10"):
        interval([0.0] * 11)


def test_the_quantiles_of_t():
    """Against the incomplete integral of the density, by a fine sum."""
    import math

    import torch

    for freedom, quantile in enumerate(tables._T, start=1):
        x = torch.linspace(0, quantile, 200_001, dtype=torch.float64)
        log = torch.distributions.StudentT(torch.tensor(float(freedom)).double()).log_prob(x)
        assert 0.5 + torch.trapezoid(log.exp(), x).item() == pytest.approx(0.975, abs=2e-5)
        assert math.isfinite(quantile)
