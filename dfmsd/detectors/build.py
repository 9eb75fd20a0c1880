"""Faster R-CNN, RetinaNet and FCOS over any backbone, and torchvision's stock detectors.

All are torchvision's own classes, scaled: a 96-pixel image needs smaller anchors, fewer proposals
and lighter heads than an 800-pixel one. Ours resize their images only when told to; stock ones do.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator

from dfmsd.detectors.backbones import build_backbone, measure_children
from dfmsd.detectors.heads import BIG, anchor_sizes, default_anchor_scale, faster_rcnn, one_stage


class KeepSizeTransform(detection.transform.GeneralizedRCNNTransform):
    """torchvision's normalisation and padding without its resizing, in training and evaluation.

    Choice: the data set fixes the size once, so that student and teacher see the same pixels.
    """

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return `image` (3, H, W) and `target` as they are."""
        return image, target


def _assemble(recipe: Mapping[str, Any], weights: str | os.PathLike[str] | None) -> nn.Module:
    """Return the detector of a complete recipe, its trunk loaded from file `weights`."""
    kind, strides = recipe["kind"], recipe["strides"]
    names = ("trunk", "strides", "extra", "trunk_arguments", "frozen_norm")
    same = {name: recipe[name] for name in names}
    backbone = build_backbone(**same, channels=recipe["fpn_channels"], weights=weights)
    freeze(backbone.body, recipe["frozen_stride"])
    extras = {None: 0, "pool": 1, "p6p7": 2}[recipe["extra"]]
    levels = [*strides, *(strides[-1] * 2 ** (step + 1) for step in range(extras))]
    sizes = anchor_sizes(kind, levels, anchor_scale=recipe["anchor_scale"])
    ratios = (1.0,) if kind == "fcos" else (0.5, 1.0, 2.0)
    settings = {"min_size": recipe["image_size"], "max_size": recipe["max_size"]}
    settings |= recipe["detector_arguments"]
    build = faster_rcnn if kind == "faster_rcnn" else one_stage
    model = build(backbone, recipe, AnchorGenerator(sizes, (ratios,) * len(sizes)), settings)
    if not recipe["resize"]:
        plain = model.transform
        model.transform = KeepSizeTransform(
            plain.min_size, plain.max_size, plain.image_mean, plain.image_std, plain.size_divisible
        )
    model.recipe = dict(recipe)
    return model


def _checked(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return `recipe` as JSON gives it back; ValueError naming the first entry out of range."""
    groups = {"faster_rcnn": 1, "retinanet": 8, "fcos": 32}[recipe["kind"]]  # of the group norms
    checks = {
        "num_classes": (recipe["num_classes"] >= 1, "at least 1"),
        "image_size": (recipe["image_size"] >= 32, "at least 32 pixels"),
        "anchor_scale": (recipe["anchor_scale"] > 0, "a positive number"),
        "head_convs": (1 <= recipe["head_convs"] <= 4, "1 to 4"),
        "fpn_channels": (recipe["fpn_channels"] % groups == 0, f"a multiple of {groups}"),
    }
    for name, (fits, expected) in checks.items():
        if not fits:
            raise ValueError(f"{name}={recipe[name]!r}: expected {expected}")
    try:
        return json.loads(json.dumps(recipe))
    except TypeError as error:
        raise ValueError(f"trunk_arguments, detector_arguments: expected JSON, {error}") from error


def build_detector(
    kind: str,
    trunk: str,
    *,
    num_classes: int,
    image_size: int = 96,
    max_size: int | None = None,
    strides: Sequence[int] | None = None,
    extra: str | None = "auto",
    fpn_channels: int | None = None,
    anchor_scale: float | None = None,
    head_channels: int | None = None,
    head_convs: int | None = None,
    trunk_arguments: Mapping[str, Any] | None = None,
    detector_arguments: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    frozen_norm: bool = False,
    frozen_stride: int = 0,
    resize: bool = False,
) -> nn.Module:
    """Return a torchvision detector over `trunk`, with its settings in the attribute `recipe`.

    `build_detector(**detector.recipe)` builds it again, without the trunk's `weights`. Labels are
    1..num_classes; 0 is background, so heads have num_classes + 1 slots.

    Args:
        kind: "faster_rcnn", "retinanet" or "fcos".
        trunk: see `dfmsd.detectors.backbones.build_backbone`.
        num_classes: K real classes.
        image_size: short side in pixels of the images to come; sets the defaults of what follows.
        max_size: largest long side in pixels, where images are resized.
        strides: of the trunk's levels; by default (4, 8, 16, 32), one-stage (8, 16, 32).
        extra: levels on top; "auto": None below 512 pixels, else "pool" (one-stage "p6p7").
        fpn_channels: 64 below 512 pixels, else 256; a multiple of 8 (RetinaNet) or 32 (FCOS).
        anchor_scale: factor on torchvision's anchor sizes, see `default_anchor_scale`.
        head_channels: width of Faster R-CNN's two linear layers: 256, else 1024.
        head_convs: convolutions of a one-stage head, at most 4: 2, else 4.
        detector_arguments: passed on to torchvision's class (thresholds, counts); they win.
        trunk_arguments: passed on to the trunk's constructor.
        weights: file with the trunk's state dict, or "hub" to fetch it.
        frozen_norm: freeze the trunk's batch norms.
        frozen_stride: the trunk's layers up to this stride are not trained; 0 for none.
        resize: let torchvision's transform bring the images to `image_size` and `max_size`, and the
            detections back; by default images stay as the data set gives them.

    Raises:
        ValueError: unknown kind or trunk, or a number out of range.
    """
    if kind not in ("faster_rcnn", "retinanet", "fcos"):
        raise ValueError(f"kind={kind!r}: expected 'faster_rcnn', 'retinanet' or 'fcos'")
    two_stage, small = kind == "faster_rcnn", image_size < BIG
    auto = None if small else "pool" if two_stage else "p6p7"
    recipe = {
        "kind": kind,
        "trunk": trunk,
        "num_classes": num_classes,
        "image_size": image_size,
        "max_size": max_size or round(image_size * 5 / 3),
        "strides": list(strides or ((4, 8, 16, 32) if two_stage else (8, 16, 32))),
        "extra": auto if extra == "auto" else extra,
        "fpn_channels": fpn_channels or (64 if small else 256),
        "anchor_scale": anchor_scale or default_anchor_scale(kind, image_size),
        "head_channels": head_channels or (256 if small else 1024),
        "head_convs": head_convs or (2 if small else 4),
        "trunk_arguments": dict(trunk_arguments or {}),
        "detector_arguments": dict(detector_arguments or {}),
        "frozen_norm": frozen_norm,
        "frozen_stride": frozen_stride,
        "resize": resize,
    }
    return _assemble(_checked(recipe), weights)


def freeze(body: nn.Module, stride: int) -> None:
    """Switch off the gradients of a trunk's children up to `stride`, e.g. 4: stem and first stage.

    Raises:
        ValueError: the trunk has no such stride.
    """
    if not stride:
        return
    levels = measure_children(body)
    if stride not in levels:
        raise ValueError(f"frozen_stride={stride}: the trunk has strides {sorted(levels)}")
    for name, child in body.named_children():
        child.requires_grad_(False)
        if name == levels[stride][0]:
            return


def stock_detector(name: str, **arguments: Any) -> nn.Module:
    """Return `torchvision.models.detection.NAME` without weights, its `recipe` as an attribute.

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
    """Return a fresh detector from the `recipe` of another (custom or stock)."""
    settings = dict(recipe)
    name = settings.pop("stock", None)
    return stock_detector(name, **settings) if name else build_detector(**settings)


def parameter_count(module: nn.Module, *, trainable: bool = False) -> int:
    """Return how many numbers the parameters of `module` hold, or the trainable ones only."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
