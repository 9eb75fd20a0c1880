"""Weights files are data: wrappers are unwrapped, recipes are checked, bombs take no memory."""

from __future__ import annotations

import argparse
import json
import logging
import random
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
import torchvision
from command_line import call, refused, saved
from torch import nn

from dfmsd.detectors import saved as detectors_saved
from dfmsd.detectors.backbones import build_backbone
from dfmsd.detectors.checkpoints import (
    CheckpointError,
    flatten,
    load_weights,
    read_metadata,
    read_tensors,
    select,
)
from dfmsd.detectors.mmdet.contents import read_config
from dfmsd.detectors.recipe import TRUNK, Recipe
from dfmsd.detectors.saved import load_detector
from dfmsd.ranges import Range, check_value

# --- the wrappers of training scripts


def state(fill=0.5):
    """A small model's state dict."""
    return OrderedDict((key, torch.full_like(v, fill)) for key, v in net().state_dict().items())


def net():
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))


def under(prefix, tensors):
    return OrderedDict((prefix + key, value) for key, value in tensors.items())


ARGS = argparse.Namespace(lr=0.1, out="/data")
WRAPPED = {
    "plain": (state(), ""),
    "reference": (
        {"model": state(), "optimizer": {"state": {0: torch.ones(1)}}, "args": ARGS},
        "taken from model; left out args, optimizer",
    ),
    "parallel": (
        {"epoch": 9, "state_dict": under("module.", state())},
        "taken from state_dict.module; left out epoch",
    ),
    "compiled": (under("_orig_mod.", state()), "taken from _orig_mod"),
    "lightning": ({"state_dict": under("model.", state())}, "taken from state_dict.model"),
    "average first": (
        {"model_ema": {"n": torch.tensor(3), **under("module.", state(9))}, "model": state()},
        "taken from model; left out model_ema; as complete is model_ema.module",
    ),
    "average only": ({"ema": {"updates": 7, "model": state()}}, "taken from ema.model; left out"),
    "beside": ({**state(), "epoch": 3, "loss": [1.0]}, "left out epoch, loss"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_wrappers_of_training_scripts_are_taken_off(tmp_path, name):
    content, line = WRAPPED[name]
    torch.save(content, tmp_path / "w.tar")
    model = net()
    load_weights(model, tmp_path / "w.tar")
    assert all(torch.equal(value, state()[key]) for key, value in model.state_dict().items())
    found = select(flatten(content), model.state_dict().__contains__)[1]
    assert found.startswith(line) if line else found == ""


def test_a_prefix_chooses_and_a_wrong_one_names_what_is_there():
    values = flatten(WRAPPED["average first"][0])
    tensors, line = select(values, net().state_dict().__contains__, "model_ema")
    assert tensors["0.weight"].unique().tolist() == [9]
    assert line.startswith("taken from model_ema.module; left out")
    with pytest.raises(CheckpointError, match=r"prefix student: nothing wanted there, found model"):
        select(values, net().state_dict().__contains__, "student")


def test_a_trunk_comes_out_of_a_wrapper_and_the_log_says_from_where(tmp_path, caplog):
    trunk, arguments = "torchvision:mobilenet_v2", {"width_mult": 0.25}
    whole = torchvision.models.mobilenet_v2(**arguments)
    content = {"state_dict": under("module.", whole.state_dict()), "epoch": 1}
    torch.save(content, tmp_path / "w.ckpt")
    with caplog.at_level(logging.WARNING):
        loaded = build_backbone(
            trunk, trunk_arguments=arguments, weights=tmp_path / "w.ckpt", channels=8
        )
    for key, value in loaded.body.state_dict().items():
        assert torch.equal(value, whole.features.state_dict()[key])
    expected = f"{tmp_path / 'w.ckpt'}: taken from state_dict.module; left out epoch"
    assert caplog.messages == [expected]


def test_ones_own_detector_of_torchvision_becomes_a_teacher(capsys, tmp_path):
    name, file = "ssdlite320_mobilenet_v3_large", tmp_path / "mine.pth"
    options = {"weights": None, "weights_backbone": None}
    model = torchvision.models.get_model(name, num_classes=4, **options)
    torch.save({"model": model.state_dict(), "epoch": 25, "args": ARGS}, file)
    out = tmp_path / "t.safetensors"
    command = ["import-torchvision", name, "--weights", file, "--out", out]
    status, said, err = call(capsys, *command)
    assert (status, err) == (0, "")
    assert "taken from model; left out epoch, args; 3 classes, without names" in said
    teacher, metadata = load_detector(out)
    assert metadata["classes"] == []
    assert teacher.recipe == {"stock": name, "num_classes": 4}
    given = model.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in teacher.state_dict().items())
    with pytest.raises(CheckpointError, match="names no classes; import it again with --classes"):
        load_detector(out, head=True)
    call(capsys, *command, "--classes", "a", "b", "c")
    assert load_detector(out, head=True)[1]["classes"] == ["a", "b", "c"]
    line = refused(capsys, *command, "--classes", "a", "b")
    assert line == "dfmsd: --classes: 2 names for a head of 3 classes"


# --- what cannot be right


def test_weights_that_are_not_finite_or_no_fractions_are_refused(tmp_path):
    for key, value, words in (
        ("0.weight", float("nan"), r"0\.weight: 1 of 6 numbers are not finite"),
        ("1.bias", float("-inf"), r"1\.bias: 1 of 2 numbers are not finite"),
    ):
        tensors = {name: tensor.clone() for name, tensor in state().items()}
        tensors[key].view(-1)[0] = value
        torch.save(tensors, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=rf"w\.pth: {words}"):
            load_weights(net(), tmp_path / "w.pth")
    counts = {name: tensor.to(torch.int8) for name, tensor in state().items()}
    safetensors.torch.save_file(counts, tmp_path / "q.safetensors")
    with pytest.raises(CheckpointError, match=r"4 without a fraction: 0\.weight \(torch\.int8\)"):
        load_weights(net(), tmp_path / "q.safetensors")


class Allocation:
    """What a pickle may ask of torch's own list: a byte array of any length."""

    def __reduce__(self):
        return (bytearray, (10,))


def nested(depth):
    content = torch.zeros(1)
    for _ in range(depth):
        content = {"a": content}
    return content


def shared(levels):
    """2 ** levels tensors, by reference."""
    content = torch.zeros(1)
    for _ in range(levels):
        content = {"a": content, "b": content}
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"0.weight": torch.zeros(1).expand(10**6, 10**6)}, "its tensors overlap"),
        ({"x": Allocation()}, "asks for bytearray"),
        (nested(300), "a name of more than 400 characters"),
        (shared(40), "more than 100000 values"),
        ({"k" * 10**6: torch.zeros(1)}, "a name of more than 400 characters: k"),
        ({"\x1b[2J\u202e": torch.zeros(1)}, r"\\x1b\[2J\\u202e"),
    ],
)
def test_a_file_that_promises_more_than_it_holds_is_one_short_line(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_weights(net(), tmp_path / "w.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'w.pth'}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def test_a_packed_archive_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, value in entries.items():
            packed.writestr(name, value)
    with pytest.raises(CheckpointError, match="unpacks to more than its size"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize("text", ["5", "[]", "null", "[" * 10**5, "9" * 10**5, '"' * 2 * 10**6])
def test_metadata_of_any_kind_is_refused_in_one_line(tmp_path, text):
    file = tmp_path / "d.safetensors"
    safetensors.torch.save_file(state(), file, {"dfmsd": text})
    with pytest.raises(CheckpointError, match=r"d\.safetensors: ") as caught:
        read_metadata(file)
    assert len(str(caught.value)) < 800


LAUGHS = "a0 = dict(x=1)\n" + "".join(f"a{n + 1} = [{f'a{n}, ' * 10}]\n" for n in range(30))


@pytest.mark.parametrize(
    "text",
    [LAUGHS, "a = [a]", "[" * 150 + "]" * 150, "x = " + "-" * 10**5 + "1", "x = " + "9" * 10**5,
     "x = 'a'" + "\n" * 10**6, "a0 = 1\n" + "".join(f"a{n + 1} = [a{n}]\n" for n in range(999)),
     "x = " + "(" * 99 + ")" * 99, "x = f" + "." * 10**5, "x = \0"],
)  # fmt: skip
def test_a_config_of_any_size_or_depth_is_no_config(text):
    read_config(text)
    if text in (LAUGHS, "a = [a]"):
        assert read_config(text) == {}


# --- recipes


RECIPE = json.loads(json.dumps(vars(Recipe("fcos", "timm:resnet10t", 3))))
BAD = [
    {"weights": "hub"},
    {"trunk": 3},
    {"trunk": "timm:hf-hub:someone/model"},
    {"trunk": "timm:local-dir:/tmp"},
    {"trunk": "torchvision:../resnet18"},
    {"num_classes": 10**30},
    {"num_classes": True},
    {"strides": [8] * 10**4},
    {"fpn_channels": 10**9},
    {"anchor_scale": float("nan")},
    {"image_size": "64"},
    {"kind": ["fcos"]},
    {"resize": 1},
    *(
        {"trunk_arguments": {key: "https://example.org/x.pth"}}
        for key in ("checkpoint_path", "pretrained", "pretrained_cfg", "weights", "cache_dir")
    ),
    {"trunk_arguments": {"channels": [10**9] * 4}},
    {"trunk_arguments": {"layers": [10**6] * 4}},
    {"trunk_arguments": {"stem_type": "/etc/passwd"}},
    {"trunk_arguments": 5},
    {"detector_arguments": {"weights_backbone": "DEFAULT"}},
    {"detector_arguments": {"detections_per_img": 10**12}},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_a_recipe_out_of_a_file_is_refused_before_anything_is_built(tmp_path, change, monkeypatch):
    def build(*_arguments, **_options):
        raise AssertionError("a module was built")

    for module in ("timm.create_model", "torchvision.models.get_model", "torch.nn.Module.__init__"):
        monkeypatch.setattr(module, build)
    metadata = json.dumps({"recipe": RECIPE | change, "classes": []})
    safetensors.torch.save_file(
        {"x": torch.zeros(1)}, tmp_path / "d.safetensors", {"dfmsd": metadata}
    )
    with pytest.raises(CheckpointError, match=r"d\.safetensors: its recipe makes no") as caught:
        load_detector(tmp_path / "d.safetensors")
    assert "a module was built" not in str(caught.value)
    assert len(str(caught.value)) < 900


def test_a_recipe_that_the_tensors_do_not_fit_is_built_on_meta_only(tmp_path, monkeypatch):
    devices = []
    rebuild = detectors_saved.rebuild

    def noted(recipe):
        devices.append(torch.empty(0).device.type)
        return rebuild(recipe)

    monkeypatch.setattr(detectors_saved, "rebuild", noted)
    path = saved(tmp_path / "d.safetensors")
    metadata, tensors = read_metadata(path), read_tensors(path)
    load_detector(path)
    assert devices == ["meta", "cpu"]
    metadata["recipe"] |= {"fpn_channels": 4096, "trunk_arguments": {"channels": [4096] * 4}}
    safetensors.torch.save_file(tensors, path, {"dfmsd": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match=r"does not fit RetinaNet: .* of another shape"):
        load_detector(path)
    assert devices[2:] == ["meta"]


ODD = [None, True, -1, 0, 1, 64, 10**20, 0.5, float("inf"), float("nan"), "", "x" * 500, "\ud800"]
ODD += [[], [1, 2], [[]], [0.5] * 99, {}, {"a": 1}, {"channels": [8]}]


def test_any_recipe_is_made_or_refused_with_a_value_error():
    """Random recipes: a ValueError on one short line, or a recipe that JSON gives back."""
    generator = random.Random(0)
    made = longest = 0
    for _ in range(3000):
        recipe = RECIPE | {
            generator.choice(list(RECIPE)): generator.choice(ODD)
            for _ in range(generator.randint(1, 3))
        }
        try:
            values = vars(Recipe(**recipe))
        except ValueError as error:
            longest = max(longest, len(str(error)))
            continue
        made += 1
        assert vars(Recipe(**json.loads(json.dumps(values, allow_nan=False)))) == values
    assert 50 < made < 1500
    assert 50 < longest < 900


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (range(1, 5), [1, 4], [0, 5, True, 1.0, "1", None]),
        (Range(0, 1), [0, 1, 0.5], [-0.1, float("nan"), float("inf"), True, "0"]),
        ([range(3), 2], [[], [0, 2], (1,)], [[0, 1, 2], [3], 1, {0: 1}]),
        (("a", None, range(2)), ["a", None, 0], ["b", 2, False]),
        ({"a": bool}, [{}, {"a": True}], [{"b": True}, {"a": 1}, [], None]),
        (str, ["", "x" * 200], ["x" * 201, 1, None]),
    ],
)
def test_rules(rule, good, bad):
    for value in good:
        check_value("name", value, rule)
    for value in bad:
        with pytest.raises(ValueError, match=r"^name"):
            check_value("name", value, rule)


def test_no_argument_of_a_trunk_takes_free_text():
    assert all(rule is not str for rule in TRUNK.values())
