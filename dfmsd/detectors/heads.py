"""torchvision's detector classes over a given backbone: anchors and heads for its image size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from dfmsd.detectors.recipe import BIG, Recipe


def anchor_sizes(
    kind: str, strides: Sequence[int], *, anchor_scale: float
) -> tuple[tuple[float, ...], ...]:
    """The anchor sizes in pixels of every level, for torchvision's AnchorGenerator.

    Source: torchvision's COCO settings, times `anchor_scale`: Faster R-CNN one size of 8 strides a
    level, RetinaNet three octave steps from 4 strides on, FCOS one reference size of 1 stride; cut
    to integers when `anchor_scale` is 1, as torchvision does.
    """
    factor, steps = {"faster_rcnn": (8, 1), "retinanet": (4, 3), "fcos": (1, 1)}[kind]
    bases = [factor * anchor_scale * stride for stride in strides]
    cut = int if anchor_scale == 1 else float
    return tuple(tuple(cut(base * 2 ** (k / 3)) for k in range(steps)) for base in bases)


def _arguments(recipe: Recipe) -> dict[str, Any]:
    """What torchvision's classes take besides the parts of their heads."""
    extras = {None: 0, "pool": 1, "p6p7": 2}[recipe.extra]
    strides = [*recipe.strides, *(recipe.strides[-1] * 2 ** (n + 1) for n in range(extras))]
    sizes = anchor_sizes(recipe.kind, strides, anchor_scale=recipe.anchor_scale)
    ratios = (1.0,) if recipe.kind == "fcos" else (0.5, 1.0, 2.0)
    generator = "rpn_anchor_generator" if recipe.kind == "faster_rcnn" else "anchor_generator"
    anchors = AnchorGenerator(sizes, (ratios,) * len(sizes))
    limits = {"min_size": recipe.image_size, "max_size": recipe.max_size}
    return {generator: anchors} | limits | recipe.detector_arguments


def faster_rcnn(backbone: nn.Module, recipe: Recipe) -> nn.Module:
    """A Faster R-CNN whose RoIs read the trunk's levels; light below 512 pixels."""
    small, hidden = recipe.image_size < BIG, recipe.head_channels
    names, side = [str(level) for level in range(len(recipe.strides))], 5 if small else 7
    scale, level = (recipe.image_size // 4, 3) if small else (224, 4)
    pool = MultiScaleRoIAlign(names, side, 2, canonical_scale=scale, canonical_level=level)
    counts = {"rpn_batch_size_per_image": 64, "box_batch_size_per_image": 48}
    for phase in ("train", "test"):
        counts |= {f"rpn_pre_nms_top_n_{phase}": 300, f"rpn_post_nms_top_n_{phase}": 100}
    return detection.FasterRCNN(
        backbone,
        box_roi_pool=pool,
        box_head=TwoMLPHead(backbone.out_channels * side**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, recipe.num_classes + 1),
        **(counts if small else {}) | _arguments(recipe),
    )


def one_stage(backbone: nn.Module, recipe: Recipe) -> nn.Module:
    """A RetinaNet (group norm below 512 pixels) or an FCOS.

    Choice: FCOS samples centres within 1.5 strides at every anchor scale and reports scores from
    0.05 on like the others (torchvision: 0.2): AP needs the low ones.
    """
    channels, slots, convs = backbone.out_channels, recipe.num_classes + 1, recipe.head_convs
    arguments = _arguments(recipe)
    if recipe.kind == "fcos":
        head = detection.fcos.FCOSHead(channels, 1, slots, num_convs=convs)
        radius = 1.5 / recipe.anchor_scale
        arguments = {"center_sampling_radius": radius, "score_thresh": 0.05} | arguments
    else:
        norm = partial(nn.GroupNorm, 8) if recipe.image_size < BIG else None
        count = arguments["anchor_generator"].num_anchors_per_location()[0]
        head = detection.retinanet.RetinaNetHead(channels, count, slots, norm_layer=norm)
        for branch in (head.classification_head, head.regression_head):
            branch.conv = branch.conv[:convs]  # torchvision always builds four
    with torch.no_grad():  # sigmoid heads need no slot 0: never give label 0, even untrained
        head.classification_head.cls_logits.bias[::slots] = -20
    kind = detection.FCOS if recipe.kind == "fcos" else detection.RetinaNet
    return kind(backbone, slots, head=head, **arguments)
