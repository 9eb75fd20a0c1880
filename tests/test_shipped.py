"""Shipped students: their records fit the runs of today, and they are taken, not trained."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dfmsd.detectors.saved import load_detector
from dfmsd.experiments.build import datasets, evaluate
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.records import read_records
from dfmsd.experiments.runs import execute_all, runs
from dfmsd.experiments.shipped import adopt

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("students", ROOT / "data/students.py")
students = importlib.util.module_from_spec(spec)
spec.loader.exec_module(students)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the shipped files and no runs."""
    for name in ("students", "teachers"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", students.STUDENTS)
def test_its_record_is_of_the_run_of_today(name, project):
    """A default that changed makes the shipped students those of other settings."""
    run = students.queue()[name]
    assert adopt(run)
    assert run.done()
    record = run.record()
    stages = sorted(run.folder.glob("stage*.safetensors"))
    assert len(stages) == len(record["steps"])
    assert run.weights == stages[-1]
    for file, stage in zip(stages, record["stages"], strict=True):
        metadata = load_detector(file)[1]
        assert metadata["metrics"]["AP"] == stage["AP"]
        assert file.stat().st_size < 4_000_000
    assert all(part.is_file() for part in (project / "data/students" / name).iterdir())


def test_it_is_taken_only_where_nothing_was_begun_and_settings_agree(project):
    (run,) = runs(resolve("scenes", ["arms=one-long"], scale="quick"))
    other = replace(run, seed=1)
    changed = replace(run, settings=resolve("scenes", ["train.lr=0.5"], scale="quick"))
    assert not adopt(other)
    assert not adopt(changed)
    run.folder.mkdir(parents=True)
    (run.folder / "log.jsonl").touch()
    assert not adopt(run)
    assert [path.name for path in run.folder.iterdir()] == ["log.jsonl"]

    shutil.rmtree(run.folder)
    (record,) = execute_all([run], show=False)
    assert record["arm"] == "one-long"
    assert read_records(run.records) == [record]
    assert {path.name for path in run.folder.iterdir()} == {"log.jsonl", "stage1.safetensors"}
    assert execute_all([run], show=False) == [record]
    assert len(read_records(run.records)) == 1


def test_a_run_that_is_to_be_trained_is_trained(project, monkeypatch):
    trained = []
    monkeypatch.setattr(
        "dfmsd.experiments.runs.train_and_record", lambda *a, **k: trained.append(a[1])
    )
    (run,) = runs(resolve("scenes", ["arms=one-long", "jobs=1"], scale="quick"))
    execute_all([run], retrain=True, show=False)
    assert trained == ["one-long"]


@pytest.mark.slow
@pytest.mark.parametrize("name", students.STUDENTS)
def test_half_precision_costs_nothing(name, project):
    run = students.queue()[name]
    adopt(run)
    val_set = datasets(run.settings.data)[1]
    student = load_detector(run.weights)[0]
    found = evaluate(student, val_set, run.settings.data)["AP"]
    assert found == pytest.approx(run.record()["metrics"]["AP"], abs=0.005)
