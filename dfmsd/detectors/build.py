"""Faster R-CNN, RetinaNet and FCOS over any backbone, and torchvision's stock detectors.

All are torchvision's own classes, scaled: a 96-pixel image needs smaller anchors, fewer proposals
and lighter heads than an 800-pixel one. Ours resize their images only when told to; stock ones do.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import detection

from dfmsd.detectors.backbones import build_backbone, measure_children
from dfmsd.detectors.heads import faster_rcnn, one_stage
from dfmsd.detectors.recipe import Recipe


class KeepSizeTransform(detection.transform.GeneralizedRCNNTransform):
    """torchvision's normalisation and padding without its resizing, in training and evaluation.

    Choice: the data set fixes the size once, so that student and teacher see the same pixels.
    """

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """`image` (3, H, W) and `target` as they are."""
        return image, target


def build_detector(recipe: Recipe, *, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """The torchvision detector of a recipe, which it keeps as a dict in the attribute `recipe`.

    `weights` and the errors are those of `build_backbone`.
    """
    backbone = build_backbone(
        recipe.trunk,
        strides=recipe.strides,
        channels=recipe.fpn_channels,
        extra=recipe.extra,
        trunk_arguments=recipe.trunk_arguments,
        weights=weights,
        frozen_norm=recipe.frozen_norm,
    )
    if recipe.frozen_stride:
        freeze(backbone.body, recipe.frozen_stride)
    model = (faster_rcnn if recipe.kind == "faster_rcnn" else one_stage)(backbone, recipe)
    if not recipe.resize:
        stock = model.transform
        model.transform = KeepSizeTransform(
            stock.min_size, stock.max_size, stock.image_mean, stock.image_std, stock.size_divisible
        )
    model.recipe = asdict(recipe)
    return model


def freeze(body: nn.Module, stride: int) -> None:
    """Switch off the gradients of a trunk's children up to `stride`, 4: stem and first stage.

    Raises ValueError when the trunk has no such stride.
    """
    levels = measure_children(body)
    if stride not in levels:
        raise ValueError(f"frozen_stride={stride}: the trunk has strides {sorted(levels)}")
    for name, child in body.named_children():
        child.requires_grad_(False)
        if name == levels[stride][0]:
            return


def stock_detector(name: str, **arguments: Any) -> nn.Module:
    """`torchvision.models.detection.NAME` without weights, its `recipe` as an attribute.

    `arguments` go to torchvision's function, whose `num_classes` counts the background. Raises
    ValueError with the nearest names when `name` is unknown.
    """
    names = torchvision.models.list_models(detection)
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names
        raise ValueError(f"name={name!r}: no detector of torchvision; nearest are {nearest}")
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **arguments)
    model.recipe = {"stock": name, **arguments}
    return model


def rebuild(recipe: Mapping[str, Any]) -> nn.Module:
    """A fresh detector from the attribute `recipe` of another, of ours or a stock one."""
    if "stock" not in recipe:
        return build_detector(Recipe(**recipe))
    arguments = dict(recipe)
    return stock_detector(arguments.pop("stock"), **arguments)


def parameter_count(module: nn.Module, *, trainable: bool = False) -> int:
    """How many numbers the parameters of `module` hold, or the trainable ones only."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
