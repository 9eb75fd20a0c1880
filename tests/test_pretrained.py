"""Published weights: from a file, from the hub's cache, and one line when there is no way."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from command_line import call, refused
from torchvision.models import get_model_weights

from dfmsd.detectors.backbones import build_backbone, hub_state
from dfmsd.detectors.features import feature_channels
from dfmsd.detectors.saved import load_detector

AP = {"fasterrcnn": 46.7, "maskrcnn": 47.4, "retinanet": 41.5}
COCO = {f"{name}_resnet50_fpn_v2": ap for name, ap in AP.items()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder where torch's hub keeps what it fetched; the network is out of reach."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    urllib.request.install_opener(None)  # it keeps the proxies of the first request
    yield folder
    urllib.request.install_opener(None)


def published(name):
    """File name under which the hub keeps the first weights of a model."""
    return next(iter(get_model_weights(name))).url.rsplit("/", 1)[-1]


def test_a_trunk_takes_the_first_published_weights_of_the_hub(hub):
    torch.manual_seed(0)
    whole = torchvision.models.mobilenet_v2()
    torch.save(whole.state_dict(), hub / published("mobilenet_v2"))
    assert published("mobilenet_v2") == "mobilenet_v2-b0353104.pth"
    backbone = build_backbone("torchvision:mobilenet_v2", weights="hub").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = list(backbone.body(images).values())[-1]
        torch.testing.assert_close(found, whole.eval().features(images))


@pytest.mark.parametrize("trunk", ["torchvision:resnet18", "timm:resnet18"])
def test_a_hub_out_of_reach_is_one_line(hub, monkeypatch, trunk):
    def unreachable(*_arguments, **_options):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    message = rf"^{trunk}: not to be had from the hub \(.*fetch the file elsewhere"
    with pytest.raises(ValueError, match=message) as caught:
        build_backbone(trunk, weights="hub")
    assert "\n" not in str(caught.value)


def test_only_published_trunks_have_a_hub():
    with pytest.raises(ValueError, match="swin: on no hub; expected torchvision:NAME"):
        hub_state("swin")


TIMM = """
import torch, timm
from dfmsd.detectors.backbones import build_backbone
torch.manual_seed(1)
body = build_backbone("timm:resnet10t", weights="hub").body
state = torch.load("whole.pth", weights_only=True)
assert all(torch.equal(value, state[key]) for key, value in body.state_dict().items())
"""


@pytest.mark.slow
def test_a_timm_trunk_comes_from_the_hubs_cache(tmp_path):
    """In a process of its own, as the hub's settings are read when it is imported."""
    torch.manual_seed(0)
    whole = timm.create_model("resnet10t").state_dict()
    torch.save(whole, tmp_path / "whole.pth")
    cache = tmp_path / "home" / "hub" / "models--timm--resnet10t.c3_in1k"
    (cache / "snapshots" / "1").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("1")
    safetensors.torch.save_file(whole, cache / "snapshots" / "1" / "model.safetensors")
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", TIMM]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# --- torchvision's detectors


def stock(name):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if "retinanet" in n else pytest.mark.slow) for n in sorted(COCO)],
)
def test_torchvisions_coco_detectors_become_teachers(capsys, tmp_path, name):
    model = stock(name)
    torch.save(model.state_dict(), tmp_path / "local.pth")
    out = tmp_path / "teacher.safetensors"
    options = ["--weights", tmp_path / "local.pth", "--out", out]
    status, said, err = call(capsys, "import-torchvision", name, *options)
    assert (status, err) == (0, "")
    assert "90 classes, taken for COCO's" in said
    assert f"strong_file={out}" in said
    teacher, metadata = load_detector(out)
    assert (len(metadata["classes"]), metadata["classes"][0]) == (90, "person")
    assert str(tmp_path) not in str(metadata)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for key, level in model.backbone(images).items():
            assert torch.equal(level, teacher.backbone(images)[key])
    strides = [8, 16, 32, 64, 128] if "retinanet" in name else [4, 8, 16, 32, 64]
    assert feature_channels(teacher) == dict.fromkeys(strides, 256)


def test_torchvisions_detector_from_the_hub(capsys, hub, tmp_path):
    name = "retinanet_resnet50_fpn_v2"
    torch.save(stock(name).state_dict(), hub / published(name))
    out = tmp_path / "t.safetensors"
    status, _, err = call(capsys, "import-torchvision", name, "--out", out)
    assert (status, err) == (0, "")
    assert load_detector(out)[1]["source"] == "hub"


def test_mistakes_with_torchvisions_detectors(capsys, hub, tmp_path):
    name, out = "retinanet_resnet50_fpn_v2", tmp_path / "t.safetensors"
    state = stock(name).state_dict()
    del state["backbone.body.conv1.weight"]
    torch.save(state, tmp_path / "local.pth")
    line = refused(capsys, "import-torchvision", name, "--weights", tmp_path / "local.pth")
    expected = "does not fit RetinaNet: 1 missing: backbone.body.conv1.weight"
    assert line == f"dfmsd: {tmp_path / 'local.pth'}: {expected}"
    line = refused(capsys, "import-torchvision", name, "--out", out)
    assert line.startswith(f"dfmsd: torchvision:{name}: not to be had from the hub (")
    assert not out.exists()
    line = refused(capsys, "import-torchvision", "retinanet_r50")
    assert "name must be " in line
    assert line.endswith("got 'retinanet_r50'")
    assert "retinanet_resnet50_fpn" in line
