"""torchvision's detectors: its classes over any backbone, scaled to the images, or as they come."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from dfmsd.detectors.backbones import SwinBody, TimmBody, build_backbone, measure_children
from dfmsd.detectors.features import strided_levels
from dfmsd.detectors.files import PathLike
from dfmsd.detectors.recipe import BIG, DETECTOR, Recipe, anchor_sizes
from dfmsd.ranges import check_value


class KeepSizeTransform(detection.transform.GeneralizedRCNNTransform):
    """torchvision's normalisation and padding without its resizing, in training and evaluation.

    Choice: the data set fixes the size once, so that student and teacher see the same pixels.
    """

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        """`image` (3, H, W) and `target` as they are."""
        return image, target


def _arguments(recipe: Recipe) -> dict[str, Any]:
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
        radius = {"center_sampling_radius": 1.5 / recipe.anchor_scale}
        arguments = radius | {"score_thresh": 0.05} | arguments
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


def build_detector(recipe: Recipe, *, weights: PathLike | None = None) -> nn.Module:
    """The torchvision detector of a recipe, which it keeps as a dict in the attribute `recipe`.

    `weights` and the errors are those of `build_backbone`.
    """
    names = ("strides", "extra", "trunk_arguments", "frozen_norm")
    options = {name: getattr(recipe, name) for name in names} | {"weights": weights}
    backbone = build_backbone(recipe.trunk, channels=recipe.fpn_channels, **options)
    if recipe.frozen_stride:
        freeze(backbone.body, recipe.frozen_stride)
    model = (faster_rcnn if recipe.kind == "faster_rcnn" else one_stage)(backbone, recipe)
    if not recipe.resize:
        names = ("min_size", "max_size", "image_mean", "image_std", "size_divisible")
        model.transform = KeepSizeTransform(*(getattr(model.transform, name) for name in names))
    model.recipe = asdict(recipe)
    return model


def freeze(body: nn.Module, stride: int) -> None:
    """Switch off the gradients of a trunk's children up to `stride`, 4: stem and first stage.

    ValueError for a trunk without such a stride, or one that is no chain of children.
    """
    if isinstance(body, (SwinBody, TimmBody)):
        raise ValueError(f"frozen_stride={stride}: only for torchvision's CNN trunks and `cnn`")
    levels = measure_children(body)
    if stride not in levels:
        raise ValueError(f"frozen_stride={stride}: the trunk has strides {sorted(levels)}")
    for name, child in body.named_children():
        child.requires_grad_(False)
        if name == levels[stride][0]:
            return


def stock_detector(name: str, **arguments: Any) -> nn.Module:
    """`torchvision.models.detection.NAME` without weights, its `recipe` as an attribute.

    `arguments` are torchvision's; its `num_classes` counts the background. Raises ValueError.
    """
    check_value("name", name, tuple(torchvision.models.list_models(detection)))
    check_value(name, arguments, DETECTOR)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **arguments)
    model.recipe = {"stock": name, **arguments}
    return model


def parameter_count(module: nn.Module, *, trainable: bool = False) -> int:
    """How many numbers the parameters of `module` hold, or the trainable ones only."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module, parts: Iterable[str]) -> list[str]:
    """Names of the tensors of `student` that now hold the values of `teacher`'s.

    A tensor of `parts` ("neck", the feature pyramid, and "head") is copied when both have it under
    one name and in one shape; convolutions of the neck pair by the stride of their level. Raises
    ValueError for a part of which no tensor fits.

    Source: the "inheriting strategy" of Kang et al. 2021 (arXiv 2110.12724); FGD and MGD copy all
    but the trunk when both heads are alike.
    """
    tensors, source = student.state_dict(), teacher.state_dict()
    strides, of_teacher = (list(strided_levels(detector)) for detector in (student, teacher))

    def counterpart(name: str) -> str:
        """The teacher's name of a tensor: its neck counts levels from another stride, perhaps."""
        if level := re.match(r"(backbone\.fpn\.(?:inner|layer)_blocks\.)(\d+)(.*)", name):
            stride = strides[int(level[2])]
            index = of_teacher.index(stride) if stride in of_teacher else "none"
            return f"{level[1]}{index}{level[3]}"
        return name

    pairs = {name: counterpart(name) for name in tensors}
    fitting = [
        n for n in pairs if pairs[n] in source and source[pairs[n]].shape == tensors[n].shape
    ]
    of_parts = {
        "neck": [name for name in fitting if name.startswith("backbone.fpn.")],
        "head": [name for name in fitting if not name.startswith("backbone.")],
    }
    copied = []
    for part in parts:
        if not of_parts[part]:
            kinds = f"a {type(teacher).__name__} to a {type(student).__name__}"
            raise ValueError(f"no tensor of the {part} fits from {kinds}; try another `inherit`")
        copied += of_parts[part]
    for name in copied:
        tensors[name].copy_(source[pairs[name]])
    return copied
