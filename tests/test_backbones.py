"""Backbones: maps at the right strides, weights that cover the trunk, plain torchvision layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.misc import FrozenBatchNorm2d

from dfmsd.detectors.backbones import build_backbone, load_trunk, measure_children
from dfmsd.detectors.features import frozen_modes

SHARED = Path(__file__).resolve().parents[2] / "shared"
SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 3}
R10 = {"channels": (8, 16, 32, 64)}
TRUNKS = {
    "timm:resnet10t": R10,
    "timm:mobilenetv3_small_050": {},
    "timm:swin_tiny_patch4_window7_224": SWIN,
    "torchvision:resnet18": {"width_per_group": 64},
    "torchvision:mobilenet_v2": {"width_mult": 0.25},
    "swin": SWIN,
    "swin-conv": SWIN | {"stem": "conv"},
}


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("size", [(1, 64, 96), (2, 96, 32)])
def test_maps_have_the_strides_and_channels_asked_for(trunk, size):
    batch, height, width = size
    backbone = build_backbone(
        trunk.removesuffix("-conv"), channels=8, extra=None, trunk_arguments=TRUNKS[trunk]
    ).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(batch, 3, height, width))
    assert list(maps) == ["0", "1", "2", "3"]
    for stride, level in zip((4, 8, 16, 32), maps.values(), strict=True):
        assert level.shape == (batch, 8, height // stride, width // stride)
        assert level.is_contiguous()
        assert torch.isfinite(level).all()


def test_odd_sizes_and_the_whole_swin_t_run():
    backbone = build_backbone("torchvision:swin_t", strides=(8, 16), channels=8, extra=None).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 61, 83))
    assert [tuple(level.shape[-2:]) for level in maps.values()] == [(8, 10), (4, 5)]
    # stages after stride 16 are cut away
    assert len(backbone.body.features) == 6


@pytest.mark.parametrize(
    ("extra", "names", "strides"),
    [(None, [], []), ("pool", ["pool"], [64]), ("p6p7", ["p6", "p7"], [64, 128])],
)
@pytest.mark.parametrize("trunk", ["timm:resnet10t", "swin"])
def test_extra_levels(trunk, extra, names, strides):
    backbone = build_backbone(
        trunk, strides=(8, 32), channels=4, extra=extra, trunk_arguments=TRUNKS[trunk]
    ).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 128, 256))
    assert list(maps) == ["0", "1", *names]
    expected = [(128 // s, 256 // s) for s in (8, 32, *strides)]
    assert [tuple(m.shape[-2:]) for m in maps.values()] == expected
    assert backbone.out_channels == 4


def test_measured_levels_are_the_stages_of_a_resnet():
    levels = measure_children(torchvision.models.resnet18())
    stages = {s: (f"layer{i + 1}", 64 * 2**i) for i, s in enumerate((4, 8, 16, 32))}
    assert levels == {2: ("relu", 64)} | stages


def test_timm_resnet_through_its_children_equals_its_own_forward():
    backbone = build_backbone("timm:resnet10t", strides=(8, 32), trunk_arguments=R10).eval()
    whole = timm.create_model("resnet10t", **R10).eval()
    whole.load_state_dict(whole.state_dict() | backbone.body.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(backbone.body(images)["1"], whole.forward_features(images))
    layers, widths = {"layer2": "0", "layer4": "1"}, [16, 64]
    stock = BackboneWithFPN(timm.create_model("resnet10t", **R10), layers, widths, 64)
    backbone.load_state_dict(stock.state_dict(), strict=True)  # the same names and shapes
    expected = stock.eval()(images)
    for level, other in zip(backbone(images).values(), expected.values(), strict=True):
        assert torch.equal(level, other)


def test_swin_body_equals_torchvisions_classifier_up_to_the_last_norm():
    settings = SWIN | {"window_size": [3, 3], "patch_size": [4, 4]}
    whole = torchvision.models.SwinTransformer(**settings).eval()
    backbone = build_backbone("swin", trunk_arguments=SWIN).eval()
    backbone.body.features.load_state_dict(whole.features.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = whole.norm(whole.features(images)).permute(0, 3, 1, 2)
        torch.testing.assert_close(backbone.body(images)["3"], expected)


def test_timm_swin_maps_are_transposed_not_reshaped():
    backbone = build_backbone("timm:swin_tiny_patch4_window7_224", trunk_arguments=SWIN).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        raw, maps = backbone.body.features(images), backbone.body(images)
    for index, level in enumerate(raw):
        assert torch.equal(maps[str(index)][0, 5, 1, 2], level[0, 1, 2, 5])


def test_frozen_norm_keeps_the_numbers_and_has_no_norm_parameters():
    torch.manual_seed(0)
    plain = build_backbone("timm:resnet10t", trunk_arguments=R10).eval()
    frozen = build_backbone("timm:resnet10t", trunk_arguments=R10, frozen_norm=True)
    frozen.load_state_dict(plain.state_dict())
    assert any(isinstance(part, FrozenBatchNorm2d) for part in frozen.modules())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in frozen.modules())
    assert not any("bn" in name for name, _ in frozen.named_parameters())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():  # in train mode too: there are no batch statistics left
        torch.testing.assert_close(frozen.train()(images)["0"], plain(images)["0"])


def test_batch_norm_trains_by_default():
    backbone = build_backbone("timm:resnet10t", trunk_arguments=R10)
    before = backbone.body["bn1"].running_mean.clone()
    sum(level.sum() for level in backbone(torch.rand(2, 3, 64, 64)).values()).backward()
    assert not torch.equal(backbone.body["bn1"].running_mean, before)
    assert backbone.body["bn1"].weight.grad is not None


def test_building_changes_no_statistics_and_leaves_train_mode():
    backbone = build_backbone("timm:resnet10t", trunk_arguments=R10)
    assert all(part.training for part in backbone.modules())
    assert backbone.body["bn1"].num_batches_tracked == 0
    with frozen_modes(backbone):
        assert not backbone.body["bn1"].training
    assert backbone.body["bn1"].training


@pytest.mark.parametrize(
    ("trunk", "prefix"),
    [("timm:resnet10t", ""), ("torchvision:mobilenet_v2", "features."), ("swin", "features.")],
)
def test_weights_of_a_whole_classifier_reach_the_body(tmp_path, trunk, prefix):
    source = build_backbone(trunk, trunk_arguments=TRUNKS[trunk])
    inner = getattr(source.body, "features", source.body).state_dict()
    state = {prefix + key: value * 2 + 1 for key, value in inner.items()}
    torch.save(state | {"classifier.weight": torch.zeros(3, 3)}, tmp_path / "trunk.pth")
    loaded = build_backbone(trunk, trunk_arguments=TRUNKS[trunk], weights=tmp_path / "trunk.pth")
    for key, value in getattr(loaded.body, "features", loaded.body).state_dict().items():
        assert torch.equal(value, state[prefix + key]), key


def test_timm_classifier_names_are_found_in_a_features_only_body(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    whole = timm.create_model(name, strict_img_size=False, **SWIN)
    torch.save(whole.state_dict(), tmp_path / "swin.pth")
    loaded = build_backbone(f"timm:{name}", trunk_arguments=SWIN, weights=tmp_path / "swin.pth")
    key = "layers.2.blocks.0.attn.qkv.weight"
    flat = loaded.body.features.state_dict()[key.replace("layers.2", "layers_2")]
    assert torch.equal(flat, whole.state_dict()[key])


def test_weights_that_do_not_cover_the_trunk_are_refused(tmp_path):
    body = build_backbone("timm:resnet10t", trunk_arguments=R10).body
    state = body.state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    del state["layer4.0.bn1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(
        ValueError, match=r"1 missing: layer4\.0\.bn1.*layer1\.0\.conv1.*\(1, 2, 3, 3\)"
    ):
        load_trunk(body, tmp_path / "part.pth")


def test_the_shared_mobilenet_loads():
    path = SHARED / "weights" / "mobilenet_v2-tflite-ptq.pth"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    backbone = build_backbone("torchvision:mobilenet_v2", weights=path).eval()
    whole = torchvision.models.mobilenet_v2().eval()
    whole.load_state_dict(torch.load(path, weights_only=True))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.body(images)["3"], whole.features(images))


@pytest.mark.parametrize(
    ("trunk", "arguments", "message"),
    [
        ("torchvision:resnet19", {}, "trunk='torchvision:resnet19'"),
        ("timm:nothing", {}, "trunk='timm:nothing'"),
        ("swin:tiny", {"trunk_arguments": SWIN}, "trunk='swin:tiny'"),
        ("resnet18", {}, "trunk='resnet18'"),
        (
            "swin",
            {"trunk_arguments": SWIN | {"stem": "wide"}},
            "stem must be .*, got 'wide'",
        ),
        ("swin", {"trunk_arguments": SWIN, "strides": (2, 4)}, r"strides=\(2, 4\)"),
        ("swin", {"trunk_arguments": SWIN, "strides": (8, 4)}, r"strides=\(8, 4\)"),
        ("timm:mobilenetv3_small_050", {"strides": (64,)}, r"strides=\(64,\)"),
        ("swin", {"trunk_arguments": SWIN, "extra": "p6"}, "extra='p6'"),
    ],
)
def test_refuses(trunk, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(trunk, **arguments)
