"""Full COCO: presets at 800 × 1333 pixels, the field's schedules, teachers from files.

`train.steps` is the 1x schedule, 90 000 steps of 16 images (12 epochs); the long arms are 2x. Smoke
runs the same job on a few images. What was measured stands in `docs/coco.md`; `dfmsd preflight`
measures it on your machine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dfmsd.experiments.settings import Data, Detector, Settings, Train

RESNET = "data/weights/resnet50-0676ba61.pth"  # torchvision's, from which the field starts
SWIN_T = "data/teachers/mask_rcnn_swin_t.safetensors"  # mmdetection's, 46.0 AP
SWIN_S = "data/teachers/mask_rcnn_swin_s.safetensors"  # mmdetection's, 48.2 AP
FASTER_V2 = "data/teachers/fasterrcnn_resnet50_fpn_v2.safetensors"  # torchvision's, 46.7 AP

SCHEDULE_1X = Train(
    steps=90_000, batch_size=16, optimizer="sgd", weight_decay=1e-4, schedule="step", clip=35.0
)
"""Source: Detectron2's 1x schedule: drops at 60 000 and 80 000 steps, 1000 steps of warm-up, which
are shares of the run here and so twice that for 2x. mmdetection drops at 82 500 instead of 80 000
and warms up for 500. Clipping at 35 as FGD and MGD do."""

_MMDET = "make it with `dfmsd import-mmdet FILE --out {}`, FILE being mmdetection's %s"
_ORIGINS = {
    RESNET: "get https://download.pytorch.org/models/resnet50-0676ba61.pth (torchvision's "
    "IMAGENET1K_V1, 98 MB), or let student.weights=hub fetch it",
    SWIN_T: _MMDET % "mask_rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco_20210906_131725-bacf6f7b.pth",
    SWIN_S: _MMDET % "mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco_20210903_104808-b92c91f1.pth",
    FASTER_V2: "make it with `dfmsd import-torchvision fasterrcnn_resnet50_fpn_v2 --out {}`",
}
"""How to get the files of these presets; {} stands for the file."""


def require(field: str, file: str, otherwise: str = "") -> None:
    """Nothing, when the file of the setting `field` is there or none is named ("", "hub").

    Else FileNotFoundError, which says how to get it: `otherwise` for a file not of these presets.
    """
    if file in ("", "hub") or Path(file).exists():
        return
    for origin, hint in _ORIGINS.items():
        if Path(origin).name == Path(file).name:
            otherwise = f'{hint.format(file)} (README, "Full COCO")'
    raise FileNotFoundError(f"{field}={file}: no such file{otherwise and '; ' + otherwise}")


def faster_rcnn_r50_swin_sal(scale: str) -> Settings:
    """Figure 3: Faster R-CNN R50 from Mask R-CNN Swin-T, then from Swin-S, 1x each.

    Expected, COCO val2017: 38.4 AP without distillation (2x), 42.2 after Swin-T, 42.9 after Swin-S,
    42.3 straight from Swin-S (the paper, figure 3; it does not say how long a stage is). Twins of
    the same budget: arms=one-long and arms=none-long.
    """
    return _coco(scale, "faster_rcnn", SWIN_T, SWIN_S, "two-long")


def retinanet_r50_swin_sal(scale: str) -> Settings:
    """RetinaNet R50 from Mask R-CNN Swin-T, then from Swin-S, 1x each.

    Expected, COCO val2017: 37.4 AP without distillation (2x, mmdetection); PKD reaches 41.5 from
    Swin-S alone (2x, mmrazor). Twins of the same budget: arms=one-long and arms=none-long.
    """
    return _coco(scale, "retinanet", SWIN_T, SWIN_S, "two-long")


def retinanet_r50_from_faster_rcnn_v2(scale: str) -> Settings:
    """RetinaNet R50 from torchvision's Faster R-CNN R50 v2: needs nothing but torchvision. 1x.

    Expected, COCO val2017: 36.5 AP without distillation (1x, mmdetection), the teacher has 46.7; no
    published distillation of this pair is known to us. Its twin without distillation: arms=none.
    On generated scenes, method.match=index was the better pairing of levels for a RetinaNet.
    """
    return _coco(scale, "retinanet", "", FASTER_V2, "one")


def fcos_r50(scale: str) -> Settings:
    """FCOS R50 from Mask R-CNN Swin-S, 2x.

    Expected, COCO val2017: 39.2 AP for torchvision's own FCOS (1x); PKD reaches 43.9 from 39.1 with
    a Mask R-CNN Swin (its abstract). Its twin without distillation: arms=none-long.
    """
    return _coco(scale, "fcos", SWIN_T, SWIN_S, "one-long")


PRESETS = {
    "faster_rcnn_r50_swin_sal": faster_rcnn_r50_swin_sal,
    "retinanet_r50_swin_sal": retinanet_r50_swin_sal,
    "retinanet_r50_from_faster_rcnn_v2": retinanet_r50_from_faster_rcnn_v2,
    "fcos_r50": fcos_r50,
}


def _coco(scale: str, kind: str, weak_file: str, strong_file: str, arm: str) -> Settings:
    """What these presets share: the field's data, optimiser and schedule, see `kd-anchors` 3.5.

    Source: mmdetection: learning rate 0.02 for two stages and 0.01 for one, frozen stem, first
    stage and batch norms.
    """
    two_stage = kind == "faster_rcnn"
    trunk = {"trunk": "torchvision:resnet50", "frozen_norm": True, "frozen_stride": 4}
    strides = (4, 8, 16, 32) if two_stage else (8, 16, 32)
    student = Detector(kind=kind, weights=RESNET, strides=strides, fpn_channels=256, **trunk)
    rate = {"lr": 0.02 if two_stage else 0.01, "batch_of_lr": 16, "warmup": 1000 / 90_000}
    train = replace(SCHEDULE_1X, **rate, save_every=2500, log_every=50, evaluations=6)
    images = {"val_images": 0, "curve_images": 500, "cache": False, "workers": 8}
    data = Data(kind="coco", root="data/coco", short=800, size=1333, **images)
    job = {"arms": (arm,), "weak_file": weak_file, "strong_file": strong_file, "precision": "bf16"}
    full = Settings(data=data, student=student, train=train, **job)
    few = replace(data, val_images=4, curve_images=2, workers=0)
    two = replace(train, steps=2, batch_size=2, save_every=1, evaluations=1, log_every=1)
    short = replace(train, steps=2000, warmup=0.25, save_every=500, evaluations=2)
    return {
        "smoke": replace(full, data=few, train=two, precision="no"),
        "quick": replace(full, data=replace(data, val_images=500), train=short),
        "full": full,
    }[scale]
