"""Experiments: what is declared can be run, what is recorded is not run again, tables say so."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import pytest
from command_line import TINY, call, refused, teachers

from dfmsd.experiments import grids_few, grids_scenes, runs
from dfmsd.experiments.grids import EXPERIMENTS
from dfmsd.experiments.grids_scenes import SCENES
from dfmsd.experiments.overrides import FILES, NOT_HASHED, fingerprint
from dfmsd.experiments.plan import HELD_OUT, Experiment, Row
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.records import read_folder, read_records
from dfmsd.experiments.settings import Settings, flat
from dfmsd.experiments.teachers import teacher_run

ROOT = Path(__file__).parent.parent
FINISHED = [*SCENES, "few-weights", "few-readings", "few-methods", "few-parts", "few-stages"]
AQUARIUM, DETECTORS = Path("../shared/data/aquarium"), ("student", "weak", "strong")
SMALL = Experiment(
    "Does anything run?",
    {
        "none": Row("no distillation", "none"),
        "pkd": Row("PKD", "one", ("method.name=pkd", "method.factor=0.5")),
    },
    (0, 1),
    settings=tuple(text for text in TINY if not text.startswith(("records", "seeds", "arms"))),
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


def test_weights_and_readings_are_never_chosen_on_a_reported_seed():
    for name, plan in EXPERIMENTS.items():
        chooses = name.endswith(("-weights", "-readings"))
        assert set(plan.seeds) & set(HELD_OUT) == (set(plan.seeds) if chooses else set())


@pytest.mark.parametrize("grid", [grids_scenes, grids_few])
def test_the_weights_are_those_that_the_records_chose(grid):
    name = {grids_scenes: "scenes-weights", grids_few: "few-weights"}[grid]
    plan, records = EXPERIMENTS[name], read_records(ROOT / f"data/results/{name}.jsonl")
    if len(records) < len(plan.rows) * len(plan.seeds):
        pytest.skip(f"{name} has {len(records)} records so far")
    for method, chosen in grid.CHOSEN.items():
        rows = [row for row in plan.rows if row.rpartition("-")[0] == method]
        means = {
            row: mean(record["metrics"]["AP"] for record in records if record["row"] == row)
            for row in rows
        }
        assert max(means, key=means.get) == f"{method}-{chosen:g}", method


@pytest.mark.parametrize("name", FINISHED)
def test_finished_experiments_leave_nothing_to_do(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert runs.without_record(runs.experiment_runs(name)) == []


@pytest.mark.parametrize("name", ["photos-plateau"])
def test_finished_experiments_on_the_photographs_leave_nothing_to_do(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    trunk = Path("../shared/weights/mobilenet_v2-tflite-ptq.pth")
    if not (AQUARIUM.is_dir() and trunk.is_file()):
        pytest.skip("needs the photographs and the trunk of the records, beside the project")
    where = [f"data.root={AQUARIUM}", *(f"{k}.weights={trunk}" for k in DETECTORS)]
    assert runs.without_record(runs.experiment_runs(name, where)) == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_records_have_the_settings_and_the_fingerprint_of_their_rows(name, monkeypatch):
    """All that can change a result; a file or folder may lie elsewhere, or be the reader's own."""
    monkeypatch.chdir(ROOT)  # the teachers' files count by their content
    records, defaults = read_folder("data/results"), flat(Settings())
    for run in runs.experiment_runs(name):
        record, settings = run.among(records), flat(run.settings)
        if record is None and name not in FINISHED:
            continue  # not run yet
        recorded = flat(record["settings"])
        assert recorded.keys() <= settings.keys()
        for key, value in settings.items():
            had = recorded.get(key, defaults[key])  # added later: what was done before
            had = tuple(had) if isinstance(had, list) else had
            assert had == value or key in NOT_HASHED or key.endswith(FILES), (run.row, key)
        if EXPERIMENTS[name].preset != "photos":  # photographs and trunk are the reader's own
            assert record["fingerprint"] == fingerprint(run.settings), run.row


def test_teachers_and_distilled_students_that_are_recorded_are_still_known(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = {r["arm"]: r for r in read_records("data/results/teachers.jsonl")}
    settings = resolve("scenes", ["seeds=0,1,2"], scale="quick")
    for name in ("weak", "strong"):
        folder = teacher_run(settings, name)[1].name
        assert folder == f"scenes-quick-{name}-{made[f'train {name}']['fingerprint']}"
    distilled = read_records("data/results/scenes.jsonl")
    assert all(run.among(distilled) for run in runs.runs(settings))


def test_under_other_settings_a_row_is_not_the_experiments():
    same = runs.experiment_runs("scenes-ablation", ["jobs=1", "strong_file=x.safetensors"])
    assert {run.experiment for run in same} == {"scenes-ablation", "scenes-methods"}
    other = runs.experiment_runs("scenes-ablation", ["train.steps=5"])
    assert {(run.experiment, run.row) for run in other} == {("", "")}


def test_another_teacher_is_another_row_and_a_teacher_elsewhere_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    elsewhere = shutil.copy("data/teachers/strong.safetensors", tmp_path / "moved.safetensors")
    for file, place in ((elsewhere, "few-methods"), ("data/teachers/weak.safetensors", "")):
        (run,) = runs.experiment_runs("few-methods", ["seeds=1", f"strong_file={file}"], ["pkd"])
        assert run.experiment == place


def test_an_unknown_experiment_names_the_nearest(capsys):
    assert "scenes-weights" in refused(capsys, "experiment", "scene-weights")
    assert "'mgd'" in refused(capsys, "experiment", "few-methods", "--rows", "none,mdg", "jobs=2")


def test_rows_are_those_of_the_experiment_whoever_recorded_them():
    chosen = runs.experiment_runs("few-parts", ["seeds=3,1"], ["low", "none"])
    assert [(run.experiment, run.row, run.seed) for run in chosen] == [
        ("few-methods", "none", 1),
        ("few-parts", "low", 1),
        ("few-methods", "none", 3),
        ("few-parts", "low", 3),
    ]


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
    assert call(capsys, "experiment", "small")[0] == 130
    assert [(r["row"], r["seed"]) for r in read_records(small)] == began[:2]
    assert call(capsys, "experiment", "small")[0] == 0
    assert began[3:] == [began[2], ("pkd", 1)]
    assert [(r["row"], r["seed"]) for r in read_records(small)] == [
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
