"""Checkpoints: whole or absent, strict, and loadable by torchvision and timm without dfmsd."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dfmsd.detectors.build import build_detector, stock_detector
from dfmsd.detectors.checkpoints import (
    CheckpointError,
    load_state,
    load_weights,
    read_metadata,
    read_tensors,
    save_state,
    save_weights,
)
from dfmsd.detectors.files import atomic_file, write_atomic
from dfmsd.detectors.recipe import Recipe

R10 = {"channels": (8, 16, 32, 64)}


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def randomised(model):
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return model


def test_weights_and_metadata_come_back(tmp_path):
    source, copy = randomised(net()), net()
    metadata = {"classes": ["a", "b"], "recipe": {"x": [1, 2.5, None]}, "é": True}
    path = tmp_path / "sub" / "w.safetensors"
    save_weights(source, path, metadata)
    assert load_weights(copy, path) == metadata
    assert read_metadata(path) == metadata
    for key, value in source.state_dict().items():
        assert torch.equal(value, copy.state_dict()[key])
        assert value.dtype == copy.state_dict()[key].dtype
    # second way: the library alone reads the same tensors
    assert torch.equal(safetensors.torch.load_file(path)["0.weight"], source[0].weight)


def test_tied_and_strided_tensors_are_stored(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.data = torch.rand(3, 3).t()
    save_weights(model, tmp_path / "w.safetensors", {})
    tensors = read_tensors(tmp_path / "w.safetensors")
    assert torch.equal(tensors["0.weight"], model[0].weight)
    assert torch.equal(tensors["1.weight"], model[0].weight)


def test_half_keeps_statistics_and_counters(tmp_path):
    source, copy = randomised(net()), net()
    save_weights(source, tmp_path / "w.safetensors", {}, half=True)
    kinds = {key: value.dtype for key, value in read_tensors(tmp_path / "w.safetensors").items()}
    assert kinds["0.weight"] == kinds["1.weight"] == kinds["2.bias"] == torch.float16
    assert kinds["1.running_mean"] == kinds["1.running_var"] == torch.float32
    assert kinds["1.num_batches_tracked"] == torch.int64
    load_weights(copy, tmp_path / "w.safetensors")
    assert copy[0].weight.dtype == torch.float32
    rounded = source[0].weight.detach().numpy().astype(np.float16).astype(np.float32)
    assert np.array_equal(copy[0].weight.detach().numpy(), rounded)
    source[0].weight.data[0] = 7e4
    with pytest.raises(ValueError, match=r"half=True: 0\.weight"):
        save_weights(source, tmp_path / "w.safetensors", {}, half=True)


def test_pth_files_load_too(tmp_path):
    source, copy = net(), net()
    torch.save({"state_dict": source.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    assert load_weights(copy, tmp_path / "w.pth") == {}
    assert torch.equal(source[0].weight, copy[0].weight)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_that_does_not_fit_is_refused_on_one_line_and_changes_nothing(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    state = net().state_dict()
    del state["2.bias"]
    state |= {"3.extra": torch.zeros(1), "0.weight": torch.zeros(4, 1, 3, 3)}
    safetensors.torch.save_file(state, path) if suffix != "pth" else torch.save(state, path)
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: does not fit Sequential: 1 missing: 2.bias; ")
    assert "1 unexpected: 3.extra" in message
    assert "0.weight (expected (4, 3, 3, 3), found (4, 1, 3, 3))" in message
    assert "\n" not in message
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("should-not-exist",))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "absent"])
def test_damaged_files_are_refused(tmp_path, suffix, damage):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        save_state(net().state_dict(), path)
    else:
        save_weights(net(), path, {})
    content = path.read_bytes()
    parts = {"cut": content[: len(content) // 2], "empty": b"", "text": b"<html>404</html>" * 9}
    path.unlink() if damage == "absent" else path.write_bytes(parts[damage])
    readers = [lambda p: load_weights(net(), p)]
    readers += [load_state] if suffix == "pth" else [read_metadata]
    for read in readers:
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "w.pth")
    assert not (tmp_path / "should-not-exist").exists()


def test_a_file_without_a_dict_of_tensors_is_refused(tmp_path):
    for content, message in (([1], "expected a dict, found list"), (net(), "a whole model")):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=message):
            load_weights(net(), tmp_path / "w.pth")


def test_metadata_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="metadata"):
        save_weights(net(), tmp_path / "w.safetensors", {"a": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_state_of_a_training_run_comes_back(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model[2](torch.rand(2, 4)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}
    state |= {"rng": torch.get_rng_state(), "log": [{"loss": 0.5}]}
    save_state(state, tmp_path / "s.pt")
    again = load_state(tmp_path / "s.pt")
    assert again["step"] == 7
    assert again["log"] == [{"loss": 0.5}]
    assert torch.equal(again["rng"], state["rng"])
    torch.optim.AdamW(model.parameters()).load_state_dict(again["optimizer"])


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "f.txt"
    write_atomic(path, "old é")

    def fail_midway():
        with atomic_file(path) as handle:
            handle.write(b"new")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk"):
        fail_midway()
    assert path.read_text(encoding="utf-8") == "old é"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


FREE = """
import sys
sys.modules["dfmsd"] = None  # any import of it fails
try:
    import dfmsd
    raise SystemExit("dfmsd can be imported")
except ImportError:
    pass
from functools import partial
import safetensors.torch, timm, torch, torchvision
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign

def rebuilt(kind):
    if kind == "stock":
        return torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=80)
    if kind == "faster_rcnn":
        return FasterRCNN(
            backbone((1, 2, 3, 4), (8, 16, 32, 64)), min_size=96, max_size=160,
            rpn_anchor_generator=AnchorGenerator(
                ((10,), (20,), (40,), (80,)), ((0.5, 1.0, 2.0),) * 4),
            rpn_pre_nms_top_n_test=300, rpn_post_nms_top_n_test=100,
            box_roi_pool=MultiScaleRoIAlign(
                ["0", "1", "2", "3"], 5, 2, canonical_scale=24, canonical_level=3),
            box_head=TwoMLPHead(32 * 25, 32), box_predictor=FastRCNNPredictor(32, 4),
            box_score_thresh=0.0)
    sizes = tuple(tuple(1.25 * s * 2 ** (k / 3) for k in range(3)) for s in (8, 16, 32))
    head = RetinaNetHead(32, 9, 4, norm_layer=partial(nn.GroupNorm, 8))
    for branch in (head.classification_head, head.regression_head):
        branch.conv = branch.conv[:2]
    return RetinaNet(
        backbone((2, 3, 4), (16, 32, 64)), 4, min_size=96, max_size=160, head=head,
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3), score_thresh=0.0)

def backbone(layers, channels):
    trunk = timm.create_model("resnet10t", channels=(8, 16, 32, 64))
    layers = {f"layer{i}": str(n) for n, i in enumerate(layers)}
    result = BackboneWithFPN(trunk, layers, channels, 32)
    result.fpn.extra_blocks = None
    return result

for kind in sys.argv[1:]:
    model = rebuilt(kind)
    model.load_state_dict(safetensors.torch.load_file(f"{kind}.safetensors"), strict=True)
    data = torch.load(f"{kind}.pth", weights_only=True)
    with torch.no_grad():
        (found,) = model.eval()([data["image"]])
    assert len(data["boxes"]), "nothing to compare"
    for key in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[key], data[key])
"""


def exported(kind, folder):
    """Write the weights of a random detector of `kind`, an image and what is detected on it."""
    torch.manual_seed(0)
    image = torch.rand(3, 96, 128)
    if kind == "stock":
        name = "fasterrcnn_mobilenet_v3_large_320_fpn"
        model = stock_detector(name, num_classes=4, min_size=64, max_size=80)
    else:
        threshold = {"box_score_thresh" if kind == "faster_rcnn" else "score_thresh": 0.0}
        sizes = {"num_classes": 3, "fpn_channels": 32, "head_channels": 32}
        arguments = {"trunk_arguments": R10, "detector_arguments": threshold}
        model = build_detector(Recipe(kind, "timm:resnet10t", **sizes, **arguments))
    randomised(model).eval()
    with torch.no_grad():
        (found,) = model([image])
    save_weights(model, folder / f"{kind}.safetensors", {"recipe": model.recipe})
    torch.save(found | {"image": image}, folder / f"{kind}.pth")
    assert read_metadata(folder / f"{kind}.safetensors")["recipe"] == model.recipe


def test_exported_weights_give_the_same_detections_without_dfmsd(tmp_path):
    kinds = ["stock", "faster_rcnn", "retinanet"]
    for kind in kinds:
        exported(kind, tmp_path)
    command, env = [sys.executable, "-I", "-c", FREE, *kinds], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
