"""mmdetection's Swin, ResNet and ResNeXt checkpoints as teachers, without mmdetection."""

from __future__ import annotations

from dfmsd.detectors.mmdet.load import load_mmdet
from dfmsd.detectors.mmdet.teacher import FeatureTeacher, build_teacher

__all__ = ["FeatureTeacher", "build_teacher", "load_mmdet"]
