"""Settings: every preset resolves, overrides are typed, mistakes name the nearest valid word."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import subprocess
import sys
import typing
from dataclasses import replace
from pathlib import Path

import pytest

from dfmsd.experiments import settings as config
from dfmsd.experiments.overrides import change as override
from dfmsd.experiments.overrides import fingerprint
from dfmsd.experiments.presets import PRESETS, resolve
from dfmsd.experiments.records import read_records
from dfmsd.experiments.settings import ARMS, SCALES, Method, Settings, as_text, flat

RESULTS = Path(__file__).parent.parent / "data/results"


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
        ("method.strength=3", "method.strength", 3.0),
        ("arms=none,two", "arms", ("none", "two")),
        ("train.steps=7", "train.steps", 7),
        ("method.strides=", "method.strides", ()),
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
        ("student.trunk_arguments={", r"trunk_arguments='\{': not a JSON object"),
        ("data.kind=coco", r"data\.root: give the COCO-format folder"),
        ("engine.accumulate=0", r"engine\.accumulate must be a number from 1 to 65536, got 0"),
        ("engine.save_minutes=nan", r"engine\.save_minutes must be .* from 0 to 1e\+06, got nan"),
        ("train.lr=0", r"train\.lr must be a number above 0 to 10, got 0\.0"),
        ("data.zoom=0.5,1e9", r"data\.zoom must be .*, each a number from 0\.1 to 10, got"),
        ("data.zoom=2,1", r"data\.zoom=2\.0,1\.0: expected from, to"),
        ("data.small=50", r"data\.small=50: expected below data\.medium=28"),
        ("data.short=20", r"data\.short=20: expected 0, or 32 to data\.size=96"),
        ("method.fusion=2", r"method\.fusion must be 'learned' or .* 0 to 1, got 2\.0"),
        ("method.strides=8,0", r"method\.strides must be .* from 1 to 256, got \(8, 0\)"),
        ("seeds=-1", r"seeds must be .* from 0 to 1e\+09, got \(-1,\)"),
        ("weak.kind=fcos", r"weak\.fpn_channels must be a multiple of 32 .*, got 48"),
        ("train.learning_rate=1", r"no such setting; did you mean 'train\.lr'"),
        ("student.backbone=x", r"no such setting; did you mean 'student\.trunk'"),
        ("data.epochs=1", r"no such setting; did you mean 'train\.steps'"),
        ("engine.qqq=1", r"engine\.qqq: no such setting; one of engine\.[^;]*engine\.tensorboard$"),
    ],
)
def test_mistakes_are_named(text, message):
    more = ["weak.fpn_channels=48"] if text == "weak.kind=fcos" else []
    with pytest.raises(ValueError, match=message):
        resolve("scenes", [text, *more])


def numbers(section=Settings, prefix=""):
    """Dotted name and type of every setting that holds a number."""
    for name, kind in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            yield from numbers(kind, f"{name}.")
        elif re.search("int|float", str(kind)):
            yield f"{prefix}{name}", kind


@pytest.mark.parametrize(("key", "kind"), list(numbers()))
def test_every_number_has_bounds(key, kind):
    pair = str(kind).startswith("tuple[float, float")
    for wrong in ("-1", "1e300", "nan", "inf", "-inf", "9" * 400):
        text = f"{wrong},{wrong}" if pair else wrong
        with pytest.raises(ValueError, match=re.escape(key)):
            resolve("scenes", [f"{key}={text}"])


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.name)
def test_the_settings_of_every_record_are_still_valid(file):
    """Those that it has in common with the settings of today."""
    defaults, seen = flat(Settings()), set()
    for record in read_records(file):
        if {"arm", "settings"} <= record.keys():
            texts = {
                key: as_text(tuple(value) if isinstance(value, list) else value)
                for key, value in flat(record["settings"]).items()
                if key in defaults and key not in {"seeds", "records"}
            }
            if seen >= texts.items():
                continue
            seen |= texts.items()
            changed = override(Settings(), texts)
            assert flat(changed)["train.lr"] == record["settings"]["train"]["lr"]


def test_unknown_preset_and_scale_variable(monkeypatch):
    with pytest.raises(ValueError, match="scnes: no such preset; did you mean 'scenes'"):
        resolve("scnes")
    monkeypatch.setenv("DFMSD_SCALE", "quick")
    assert resolve("scenes").scale == "quick"
    monkeypatch.setenv("DFMSD_SCALE", "fast")
    with pytest.raises(ValueError, match="DFMSD_SCALE=fast"):
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
    for change in ("accumulate=2", "channels_last=true", "compile=true"):
        assert fingerprint(resolve("scenes", [f"engine.{change}"])) != fingerprint(base), change
    prints = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        prints.append(fingerprint(resolve("scenes", [f"weak_file={tmp_path / name}"])))
    assert prints[0] == prints[1] != prints[2]


def test_a_fingerprint_leaves_out_what_is_at_its_default():
    """A setting that is added with a default changes no fingerprint of a finished run."""
    by_hand = hashlib.sha256(json.dumps({"train.lr": 1.0}).encode()).hexdigest()[:12]
    settings = replace(Settings(), train=replace(Settings().train, lr=1.0))
    assert fingerprint(settings) == by_hand
    assert fingerprint(settings, "train") == by_hand != fingerprint(settings, "data")


def test_the_two_budgets_compare_what_they_say():
    sums = {name: sum(arm.lengths) for name, arm in ARMS.items()}
    short = {"none", "one", "two", "two-early", "strong-strong", "weak"}
    assert {name for name, total in sums.items() if total == ARMS["two-long"].lengths[0]} == short
    assert all(sums[name] == (1 if name in short else 2) for name in ARMS)
    for name, arm in ARMS.items():
        assert len(arm.lengths) == max(1, len(arm.teachers)), name


def test_every_setting_says_what_it_is():
    """A comment behind each field or above it: what the code's readers rely on."""
    lines = inspect.getsource(config).split("\ndef ")[0].splitlines()
    fields = 0
    for number, line in enumerate(lines):
        if re.match(r"    \w+: .* = ", line):
            fields += 1
            assert "  # " in line or lines[number - 1].startswith("    # "), line
    assert fields > 70


def test_the_settings_of_dfmsd_are_its_arguments_with_the_same_defaults():
    from dfmsd.loss import DFMSDLoss

    parameters = inspect.signature(DFMSDLoss).parameters.values()
    arguments = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    settings = {f.name: f.default for f in dataclasses.fields(Method)}
    for name in ("name", "factor", "strides", "threshold", "fade", "anchor"):  # of every method
        del settings[name]
    assert settings == arguments


def test_settings_need_no_torch():
    code = "import sys, dfmsd.experiments.presets, dfmsd.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seeds = (1,)
