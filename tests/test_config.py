"""Settings: every preset resolves, overrides are typed, mistakes name the nearest valid word."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from dfmsd.experiments.arms import ARMS
from dfmsd.experiments.fingerprint import fingerprint
from dfmsd.experiments.presets import PRESETS, resolve
from dfmsd.experiments.records import read_records
from dfmsd.experiments.runs import experiment_runs
from dfmsd.experiments.settings import SCALES, Settings, SettingsError, flat

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_preset_resolves_at_every_scale(preset, scale):
    settings = resolve(preset, [f"scale={scale}"])
    assert (settings.preset, settings.scale) == (preset, scale)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_survives_being_printed_and_read_back(preset):
    settings = resolve(preset, ["scale=quick"])
    texts = [
        f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for key, value in flat(settings).items()
    ]
    assert resolve(preset, texts) == settings


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seeds=0,1,2", "seeds", (0, 1, 2)),
        ("train.lr=1e-3", "train.lr", 0.001),
        ("data.zoom=0.5,2", "data.zoom", (0.5, 2.0)),
        ("method.spatial=false", "method.spatial", False),
        ("method.channel=True", "method.channel", True),
        ("method.strength=-1", "method.strength", -1.0),
        ("arms=none,two", "arms", ("none", "two")),
        ("train.steps=7", "train.steps", 7),
        ("method.fusion=0.3", "method.fusion", 0.3),
        ("method.fusion=learned", "method.fusion", "learned"),
        ("method.select=low", "method.select", "low"),
        ("strong_file=a=b.safetensors", "strong_file", "a=b.safetensors"),
    ],
)
def test_overrides_have_the_type_of_their_setting(text, key, value):
    assert flat(resolve("scenes", [text]))[key] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.learningrate=1", r"train\.learningrate: no such setting; did you mean 'train\.lr'"),
        ("lr=1", r"lr: no such setting; did you mean 'train\.lr'"),
        ("train.lr=fast", r"train\.lr=fast: expected float"),
        ("train.steps=1.5", r"train\.steps=1\.5: expected int"),
        ("method.select=hihg", r"method\.select=hihg: no such value; did you mean 'high'"),
        ("arms=tow", r"arms=tow: no such arm; did you mean 'two'"),
        ("scale=quik", r"scale=quik: no such scale; did you mean 'quick'"),
        ("train.steps=0", r"train\.steps"),
        ("train.steps", r"'train\.steps': expected key=value"),
        ("data.zoom=1", r"data\.zoom=1: expected tuple"),
        ("student.trunk_arguments={", r"trunk_arguments='\{': not JSON"),
        ("data.kind=coco", r"data\.root: give the COCO-format folder"),
        ("engine.accumulate=0", r"engine\.accumulate=0: must be at least 1"),
        ("engine.save_minutes=-1", r"engine\.save_minutes=-1\.0: must be at least 0"),
        ("engine.save_minutes=nan", r"engine\.save_minutes=nan: must be at least 0"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(SettingsError, match=message):
        resolve("scenes", [text])


def test_unknown_preset_and_scale_variable(monkeypatch):
    with pytest.raises(SettingsError, match="scnes: no such preset; did you mean 'scenes'"):
        resolve("scnes")
    monkeypatch.setenv("DFMSD_SCALE", "quick")
    assert resolve("scenes").scale == "quick"
    monkeypatch.setenv("DFMSD_SCALE", "fast")
    with pytest.raises(SettingsError, match="DFMSD_SCALE=fast"):
        resolve("scenes")


def test_root_moves_the_presets_own_files_and_nothing_else():
    moved, here = (flat(resolve("scenes", root=root)) for root in ("..", "."))
    changed = {key for key in here if here[key] != moved[key]}
    assert changed == {"out", "weak_file", "strong_file"}
    assert moved["out"] == "../data/runs"


def test_fingerprint_changes_with_results_and_not_with_places(tmp_path):
    base = resolve("scenes")
    for place in ("out=x", "records=y", "jobs=2", "seeds=4", "arms=none", "device=cpu"):
        assert fingerprint(resolve("scenes", [place])) == fingerprint(base), place
    results = ("train.lr=1", "method.strength=0", "data.size=64", "precision=bf16")
    for change in (*results, "train.batch_of_lr=1"):
        assert fingerprint(resolve("scenes", [change])) != fingerprint(base), change
    for place in ("engine.save_minutes=5", "engine.tensorboard=true"):
        assert fingerprint(resolve("scenes", [place])) == fingerprint(base), place
    younger = ("accumulate=2", "channels_last=true", "compile=true")
    for change in (*younger, "sync_norm=true"):
        assert fingerprint(resolve("scenes", [f"engine.{change}"])) != fingerprint(base), change
    prints = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        prints.append(fingerprint(resolve("scenes", [f"weak_file={tmp_path / name}"])))
    assert prints[0] == prints[1] != prints[2]


def test_the_records_of_an_experiment_are_still_those_of_its_settings():
    """Settings that are younger than a record do not change its fingerprint."""
    records = read_records(ROOT / "data" / "results" / "scenes-weights.jsonl")
    recorded = {record["row"]: record["fingerprint"] for record in records}
    with contextlib.chdir(ROOT):  # the teachers' files count by their content
        known = {run.row: fingerprint(run.settings) for run in experiment_runs("scenes-weights")}
    assert len(recorded) > 40
    assert recorded.items() <= known.items()


def test_the_two_budgets_compare_what_they_say():
    sums = {name: sum(arm.lengths) for name, arm in ARMS.items()}
    assert sums["none"] == sums["one"] == sums["two"] == ARMS["two-long"].lengths[0]
    assert sums["none-long"] == sums["one-long"] == sums["two-long"] == 2 * sums["two"]


def test_every_setting_says_what_it_is():
    """A string below each field: what `dfmsd config` users and the code's readers rely on."""
    import ast
    import inspect

    from dfmsd.experiments import config_train
    from dfmsd.experiments import settings as config

    for module in (config, config_train):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(
                module.__dict__[node.name]
            ):
                for field, after in zip(node.body, node.body[1:], strict=False):
                    if isinstance(field, ast.AnnAssign):
                        assert isinstance(after, ast.Expr), f"{node.name}.{field.target.id}"


def test_settings_need_no_torch():
    code = "import sys, dfmsd.experiments.presets, dfmsd.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seeds = (1,)
