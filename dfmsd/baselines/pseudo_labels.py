"""Pseudo-labels: the teacher's confident detections as further targets of the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfmsd.ranges import Share, check_fields


@dataclass(eq=False, repr=False, kw_only=True)
class PseudoLabels(nn.Module):
    """Distillation by boxes instead of features: `Distiller` asks it for the student's targets.

    Source: data distillation (Radosavovic et al., CVPR 2018): a teacher's detections count as true
    boxes; threshold of Unbiased Teacher (Liu et al., ICLR 2021). Choice: what overlaps a true box,
    of any class, is dropped, so that a labelled object is not learned twice.

    Args:
        threshold: least score of a detection, 0..1.
        overlap: IoU with a true box, 0..1, above which a detection is dropped.
    """

    threshold: Share = 0.7
    overlap: Share = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__init__()
        check_fields(self)
        self.weights: dict[str, float] = {}

    @torch.no_grad()
    def targets(
        self, teacher: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The targets with the detections of `teacher`, a detector in eval mode, behind them.

        Images without boxes get the detections alone. `images` and `targets` are those of one
        batch, augmented already. ValueError when the teacher gives no detections.
        """
        with torch.autocast(images[0].device.type, enabled=False):  # in bf16 boxes are pixels off
            detected = teacher(images)
        if not isinstance(detected, list):
            raise ValueError("teacher: gives features and no boxes, so there are no labels")
        return [self.merge(*pair) for pair in zip(targets, detected, strict=True)]

    def merge(self, target: dict[str, Any], detected: dict[str, Tensor]) -> dict[str, Any]:
        """One image's target with its detections (`boxes`, `labels`, `scores`) behind it."""
        from torchvision.ops import box_iou  # the methods are imported without torchvision

        if others := target.keys() & {"masks", "keypoints"}:
            raise ValueError(f"pseudo-labels are boxes only, a target also has {min(others)}")
        true, boxes = target["boxes"], detected["boxes"]
        sides = boxes[:, 2:] - boxes[:, :2]
        # less than a pixel is left of no true box either, see `dfmsd.data.batches.augmentation`
        chosen = (detected["scores"] >= self.threshold) & (sides >= 1).all(1)
        chosen &= ~(box_iou(boxes, true) > self.overlap).any(1)
        labels = torch.cat([target["labels"], detected["labels"][chosen]])
        return target | {"boxes": torch.cat([true, boxes[chosen]]), "labels": labels}
