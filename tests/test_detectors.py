"""Detectors: every kind trains and evaluates, sizes are kept, recipes rebuild, anchors fit."""

from __future__ import annotations

import json

import pytest
import torch
from torchvision.models import detection
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou

from dfmsd.detectors.build import build_detector, parameter_count, stock_detector
from dfmsd.detectors.recipe import Recipe, anchor_sizes, default_anchor_scale
from dfmsd.detectors.saved import rebuild

KINDS = ("faster_rcnn", "retinanet", "fcos")
SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 3}
R10 = {"channels": (8, 16, 32, 64)}
TRUNKS = {"timm:resnet10t": R10, "swin": SWIN | {"stem": "conv"}, "timm:mobilenetv3_small_050": {}}


def build(kind="faster_rcnn", trunk="timm:resnet10t", **arguments):
    torch.manual_seed(0)
    settings = {"num_classes": 3, "fpn_channels": 32, "head_channels": 32}
    settings |= {"trunk_arguments": TRUNKS[trunk], **arguments}
    return build_detector(Recipe(kind, trunk, **settings))


def target(*boxes):
    coordinates = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": coordinates, "labels": torch.arange(1, len(boxes) + 1)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_one_training_step_and_one_evaluation(kind, trunk):
    model = build(kind, trunk)
    images = [torch.rand(3, 61, 83), torch.rand(3, 96, 64)]
    losses = model(images, [target((5, 6, 30, 25), (40, 10, 60, 50), (50, 30, 80, 60)), target()])
    assert losses
    assert all(torch.isfinite(loss) and loss.dim() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    with torch.no_grad():
        (found,) = model.eval()([images[0]])
    assert set(found) == {"boxes", "labels", "scores"}
    assert (found["boxes"] <= torch.tensor([83, 61, 83, 61])).all()
    assert (found["labels"] >= 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_without_boxes_trains(kind):
    losses = build(kind)([torch.rand(3, 33, 97)], [target()])
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("training", [True, False])
def test_transform_keeps_every_size_and_pads_to_32(training):
    model = build().train(training)
    image, boxes = torch.rand(3, 61, 133), target((1, 2, 30, 40))
    batch, targets = model.transform([image, image[:, :40]], [boxes, boxes])
    assert batch.tensors.shape == (2, 3, 64, 160)
    assert batch.image_sizes == [(61, 133), (40, 133)]
    assert torch.equal(targets[0]["boxes"], boxes["boxes"])
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(batch.tensors[0, :, :61, :133], (image - mean) / std)
    assert (batch.tensors[0, :, 61:] == 0).all()


@pytest.mark.parametrize("size", [(96, 96), (96, 128), (96, 160)])
def test_at_the_stated_size_torchvisions_own_transform_does_the_same(size):
    ours = build().eval().transform
    plain = GeneralizedRCNNTransform(96, 160, ours.image_mean, ours.image_std).eval()
    image = torch.rand(3, *size)
    torch.testing.assert_close(ours([image])[0].tensors, plain([image])[0].tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_learns_one_image(kind):
    # the boxes of one image, after 80 steps, among the best detections: labels and
    # coordinates mean the same in training and in evaluation
    model = build(kind)
    boxes = target((8, 8, 32, 30), (50, 40, 82, 80))
    image = torch.rand(3, 96, 96) * 0.2
    image[0, 8:30, 8:32], image[2, 40:80, 50:82] = 1, 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model([image] * 2, [boxes] * 2).values()).backward()
        optimizer.step()
    model.train()  # batch statistics: the running ones lag behind after so few steps
    for part in (model, *(m for n, m in model.named_modules() if not n.startswith("backbone"))):
        part.training = False
    with torch.no_grad():
        found = model([image, image])[0]
    for box, label in zip(boxes["boxes"], boxes["labels"], strict=True):
        best = found["boxes"][found["labels"] == label][:1]
        assert best.numel(), f"label {label} not found"
        assert box_iou(best, box[None]).item() > 0.5


def test_a_stock_detector_remembers_its_recipe():
    model = stock_detector("retinanet_resnet50_fpn", num_classes=4)
    assert model.recipe == {"stock": "retinanet_resnet50_fpn", "num_classes": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_recipe_survives_json_and_rebuilds(kind):
    model = build(kind, detector_arguments={"detections_per_img": 7} if kind != KINDS[0] else {})
    again = rebuild(json.loads(json.dumps(model.recipe)))
    again.load_state_dict(model.state_dict(), strict=True)
    assert again.recipe == model.recipe
    image = torch.rand(3, 96, 96)
    with torch.no_grad():
        first, second = (m.eval()([image])[0] for m in (model, again))
    assert torch.equal(first["boxes"], second["boxes"])


def test_anchor_sizes_by_hand():
    small = anchor_sizes("faster_rcnn", (4, 8, 16, 32), anchor_scale=0.3125)
    assert small == ((10,), (20,), (40,), (80,))
    assert anchor_sizes("fcos", (8, 16), anchor_scale=0.25) == ((2,), (4,))
    # at scale 1: torchvision's own COCO anchors
    stock = _default_anchorgen().sizes
    assert anchor_sizes("retinanet", (8, 16, 32, 64, 128), anchor_scale=1) == stock
    stock = detection.faster_rcnn._default_anchorgen().sizes
    assert anchor_sizes("faster_rcnn", (4, 8, 16, 32, 64), anchor_scale=1) == stock


def test_default_anchor_scale():
    scales = [default_anchor_scale("retinanet", side) for side in (96, 256, 512, 800)]
    assert scales == [0.3125, 0.5, 1, 1]
    assert default_anchor_scale("fcos", 96) == 0.5


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_anchors_cover_objects_of_8_to_44_pixels(kind):
    # any square object has an anchor of at least half its overlap (naive loop over sizes)
    strides = (4, 8, 16, 32) if kind == "faster_rcnn" else (8, 16, 32)
    scale = default_anchor_scale(kind, 96)
    sizes = [s for level in anchor_sizes(kind, strides, anchor_scale=scale) for s in level]
    for side in range(8, 45):
        assert max(min(side, a) ** 2 / max(side, a) ** 2 for a in sizes) >= 0.49


def test_small_and_big_settings():
    small, big = build(), build(image_size=512, fpn_channels=8)
    assert small.roi_heads.box_roi_pool.output_size == (5, 5)
    assert (small.roi_heads.box_roi_pool.canonical_scale, small.rpn.post_nms_top_n()) == (24, 100)
    assert small.roi_heads.box_roi_pool.featmap_names == ["0", "1", "2", "3"]
    stock = stock_detector("fasterrcnn_resnet50_fpn")
    assert big.rpn._pre_nms_top_n == stock.rpn._pre_nms_top_n
    assert big.rpn.anchor_generator.sizes == stock.rpn.anchor_generator.sizes
    pool, expected = big.roi_heads.box_roi_pool, stock.roi_heads.box_roi_pool
    assert pool.output_size == expected.output_size
    assert pool.canonical_scale == expected.canonical_scale
    assert big.recipe["extra"] == "pool"
    retina = build("retinanet", image_size=512, fpn_channels=8)
    assert len(retina.head.classification_head.conv) == 4
    assert len(retina.backbone(torch.zeros(1, 3, 128, 128))) == 5


@pytest.mark.parametrize("convs", [1, 2, 4])
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_head_convolutions(kind, convs):
    head = build(kind, head_convs=convs).head
    for branch in (head.classification_head, head.regression_head):
        assert sum(part.dim() == 4 for part in branch.conv.parameters()) == convs


def test_resize_is_that_of_torchvision_and_detections_come_back():
    model = build(resize=True, image_size=128, max_size=160)
    stock = GeneralizedRCNNTransform(128, 160, [0.5] * 3, [0.2] * 3)
    image, box = torch.rand(3, 60, 100), target((10, 20, 50, 40))
    seen, (moved,) = model.transform([image], [box])
    wide, (expected,) = stock([image], [box])
    # 160 / 100 is less than 128 / 60, so the long side decides: 96 x 160
    assert seen.image_sizes == wide.image_sizes == [(96, 160)]
    torch.testing.assert_close(moved["boxes"], torch.tensor([[16.0, 32, 80, 64]]))
    torch.testing.assert_close(moved["boxes"], expected["boxes"])
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert (found["boxes"] <= torch.tensor([100.0, 60, 100, 60])).all()
    again = rebuild(json.loads(json.dumps(model.recipe)))
    assert again.transform.min_size == (128,)
    assert type(again.transform) is GeneralizedRCNNTransform


@pytest.mark.parametrize(("stride", "frozen"), [(2, 1), (4, 2), (8, 3)])
def test_the_trunk_is_frozen_up_to_a_stride(stride, frozen):
    trunk = {"trunk": "torchvision:resnet18", "frozen_stride": stride, "frozen_norm": True}
    model = build_detector(Recipe("retinanet", num_classes=3, **trunk))
    images = [torch.rand(3, 64, 64)]
    sum(model(images, [target((5, 6, 30, 25))]).values()).backward()
    parameters = model.backbone.body.named_parameters()
    trained = {name.split(".")[0] for name, value in parameters if value.grad is not None}
    stages = [{"conv1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    assert trained == set().union(*stages[frozen:])
    other = [p for n, p in model.named_parameters() if "backbone.body" not in n]
    assert all(p.grad is not None for p in other)


@pytest.mark.parametrize("trunk", ["swin", "timm:mobilenetv3_small_050"])
def test_a_trunk_that_is_no_chain_of_layers_has_no_frozen_stride(trunk):
    small = {"embed_dim": 16, "depths": [1] * 4, "num_heads": [1] * 4} if trunk == "swin" else {}
    with pytest.raises(ValueError, match="frozen_stride=4: only for"):
        build_detector(Recipe("fcos", trunk, 3, frozen_stride=4, trunk_arguments=small))


def test_a_stride_that_the_trunk_does_not_have_cannot_be_frozen():
    expected = r"frozen_stride=3: the trunk has strides \[2, 4, 8, 16, 32\]"
    with pytest.raises(ValueError, match=expected):
        build_detector(Recipe("fcos", "torchvision:resnet18", 3, frozen_stride=3))


def test_parameter_count():
    model = build()
    assert parameter_count(model) == sum(v.numel() for v in model.parameters())
    model.rpn.requires_grad_(False)
    rpn = 32 * 32 * 9 + 32 + 32 * 3 + 3 + 32 * 12 + 12
    assert parameter_count(model) - parameter_count(model, trainable=True) == rpn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "yolo"}, "kind must be .*'fcos', got 'yolo'"),
        ({"num_classes": 0}, "num_classes must be an integer from 1 to 10000, got 0"),
        ({"detector_arguments": {"a": torch}}, "detector_arguments keys must be among .*, got 'a'"),
        ({"image_size": 16}, "image_size must be .* 32 to 16384, got 16"),
        ({"kind": "retinanet", "head_convs": 5}, "head_convs must be None or .* 1 to 4, got 5"),
        ({"kind": "fcos", "fpn_channels": 48}, "fpn_channels must be a multiple of 32 .*, got 48"),
        (
            {"kind": "retinanet", "fpn_channels": 12},
            "fpn_channels must be a multiple of 8 .*, got 12",
        ),
        ({"extra": "p6"}, "extra must be .*, got 'p6'"),
        ({"strides": (4, 6)}, r"strides=\(4, 6\)"),
        ({"anchor_scale": -1.0}, "anchor_scale must be None or .* 0 to 100, got -1.0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_unknown_stock_detector_names_the_nearest():
    with pytest.raises(ValueError, match="retinanet_resnet50_fpn"):
        stock_detector("retinanet_resnet50")
