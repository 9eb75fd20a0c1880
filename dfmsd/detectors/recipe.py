"""What a detector is built from: a few numbers that fit into a file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dfmsd.ranges import Range, check_value

BIG = 512
"""Pixels: from this short side on, torchvision's COCO settings fit."""
_GROUPS = {"faster_rcnn": 1, "retinanet": 8, "fcos": 32}  # of the heads' group norms
_WIDTH, _COUNT, _SIDE, _PIXELS = range(1, 4097), range(1, 65), range(1, 129), range(32, 16385)
_MANY, _SHARE, _FACTOR = range(1, 100_001), Range(0, 1), Range(0.01, 100)
_TOP = [f"rpn_{when}_nms_top_n_{phase}" for when in ("pre", "post") for phase in ("train", "test")]
TRUNK = {  # what trunks are built from: no weights, paths or addresses
    "channels": [_WIDTH, 8],
    "dims": [_WIDTH, 8],
    "layers": [_COUNT, 8],
    "depths": [_COUNT, 8],
    "num_heads": [_COUNT, 8],
    **dict.fromkeys(("embed_dim", "stem_width", "base_width", "width_per_group"), _WIDTH),
    **dict.fromkeys(("groups", "cardinality", "head_dim"), _WIDTH),
    **dict.fromkeys(("window_size", "patch_size"), (range(1, 33), [range(1, 33), 2])),
    **dict.fromkeys(("width_mult", "channel_multiplier", "depth_multiplier", "mlp_ratio"), _FACTOR),
    **dict.fromkeys(("drop_rate", "drop_path_rate", "dropout", "attention_dropout"), _SHARE),
    "stochastic_depth_prob": _SHARE,
    "stem": ("patch", "conv"),
    "stem_type": ("", "deep", "deep_tiered"),
}
_THRESHOLDS = ("score_thresh", "nms_thresh", "fg_iou_thresh", "bg_iou_thresh", "positive_fraction")
DETECTOR = {  # what torchvision's detectors are built from; of them the numbers
    **{f"{part}{name}": _SHARE for part in ("", "box_", "rpn_") for name in _THRESHOLDS},
    **dict.fromkeys((*_TOP, "rpn_batch_size_per_image", "box_batch_size_per_image"), _MANY),
    **dict.fromkeys(("topk_candidates", "detections_per_img", "box_detections_per_img"), _MANY),
    **dict.fromkeys(("min_size", "max_size"), _PIXELS),
    "image_mean": [Range(-1000, 1000), 3],
    "image_std": [Range(1e-6, 1000), 3],
    "center_sampling_radius": _FACTOR,
    "num_classes": range(2, 10_001),
    "trainable_backbone_layers": range(7),
}


def default_anchor_scale(kind: str, image_size: int) -> float:
    """The anchor scale for a short side of `image_size` pixels, 1 from 512 on.

    Choice: proportional below 512, not under 5/16 (Faster R-CNN at 96: 10, 20, 40 and 80 pixels,
    for objects of 8 to 44) and for FCOS 1/2 (6 positive cells an object; at 1/4 3, measured).
    """
    lowest = 0.5 if kind == "fcos" else 0.3125
    return 1.0 if image_size >= BIG else max(lowest, image_size / BIG)


def anchor_sizes(kind: str, strides: Sequence[int], *, anchor_scale: float) -> tuple[tuple, ...]:
    """The anchor sizes in pixels of every level, for torchvision's AnchorGenerator.

    Source: torchvision's COCO settings, times `anchor_scale`; integers when that is 1.
    """
    factor, steps = {"faster_rcnn": (8, 1), "retinanet": (4, 3), "fcos": (1, 1)}[kind]
    bases = [factor * anchor_scale * stride for stride in strides]
    cut = int if anchor_scale == 1 else float
    return tuple(tuple(cut(base * 2 ** (k / 3)) for k in range(steps)) for base in bases)


_RULES = {
    "kind": tuple(_GROUPS),
    "trunk": str,
    "num_classes": range(1, 10_001),
    "image_size": _PIXELS,
    "max_size": (None, _PIXELS),
    "strides": (None, [_SIDE, 8]),
    "extra": (None, "auto", "pool", "p6p7"),
    "fpn_channels": (None, _WIDTH),
    "anchor_scale": (None, Range(0, 100)),
    "head_channels": (None, range(1, 16385)),
    "head_convs": (None, range(1, 5)),
    "trunk_arguments": TRUNK,
    "detector_arguments": DETECTOR,
    "frozen_norm": bool,
    "frozen_stride": range(129),
    "resize": bool,
}


@dataclass
class Recipe:
    """What a detector is built from; `None` and "auto" become what fits kind and image size.

    `asdict` gives JSON, from which `Recipe(**values)` is the same again. Raises ValueError for an
    unknown kind or argument, or a value out of range (`_RULES`).
    """

    kind: Literal["faster_rcnn", "retinanet", "fcos"]
    trunk: str  # see `dfmsd.detectors.backbones.build_backbone`
    num_classes: int  # K real classes, labels 1..K; 0 is background, so heads have K + 1 slots
    image_size: int = 96  # short side in pixels of the images to come
    max_size: int | None = None  # largest long side in pixels when resized; 5/3 of the short one
    strides: Sequence[int] | None = None  # of the trunk's levels; 4 to 32, one-stage 8 to 32
    extra: str | None = "auto"  # levels on top: none below 512 pixels, "pool", one-stage "p6p7"
    fpn_channels: int | None = None  # 64 below 512 pixels, else 256; multiple of `_GROUPS`
    anchor_scale: float | None = None  # factor on torchvision's sizes, see `default_anchor_scale`
    head_channels: int | None = None  # of Faster R-CNN's linear layers: 256 below 512, else 1024
    head_convs: int | None = None  # of a one-stage head, 1 to 4: 2 below 512 pixels, else 4
    trunk_arguments: Mapping[str, Any] | None = None  # passed on to the trunk's constructor
    detector_arguments: Mapping[str, Any] | None = None  # passed on to torchvision's class; win
    frozen_norm: bool = False  # of the trunk
    frozen_stride: int = 0  # the trunk's layers up to this stride are not trained; 0 for none
    resize: bool = False  # bring images to `image_size` and `max_size`, and detections back

    def __post_init__(self) -> None:
        """Fill in what is left open, then check."""
        self.trunk_arguments = self.trunk_arguments or {}
        self.detector_arguments = self.detector_arguments or {}
        for name, rule in _RULES.items():
            check_value(name, getattr(self, name), rule)
        two_stage, small = self.kind == "faster_rcnn", self.image_size < BIG
        if self.extra == "auto":
            self.extra = None if small else "pool" if two_stage else "p6p7"
        self.max_size = self.max_size or round(self.image_size * 5 / 3)
        self.strides = self.strides or ([4, 8, 16, 32] if two_stage else [8, 16, 32])
        self.fpn_channels = self.fpn_channels or (64 if small else 256)
        self.anchor_scale = self.anchor_scale or default_anchor_scale(self.kind, self.image_size)
        self.head_channels = self.head_channels or (256 if small else 1024)
        self.head_convs = self.head_convs or (2 if small else 4)
        groups = _GROUPS[self.kind]
        check_value("fpn_channels", self.fpn_channels, range(groups, 4097, groups))
        vars(self).update(json.loads(json.dumps(vars(self))))  # tuples become lists, as in a file
