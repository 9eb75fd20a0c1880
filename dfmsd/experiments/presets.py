"""The presets: jobs at three scales.

`smoke` takes less than a minute, `quick` minutes on two cores, `full` is for GPUs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dfmsd.experiments import presets_coco
from dfmsd.experiments.overrides import PLACES, change, split_override
from dfmsd.experiments.settings import SCALES, Data, Detector, Settings, Train, flat
from dfmsd.experiments.validation import check_name


def scenes(scale: str) -> Settings:
    """Generated scenes: Swin Faster R-CNN teachers, a small CNN Faster R-CNN student."""
    swin = Detector(trunk="swin", trunk_arguments=_swin((2, 2, 2, 2)))
    quick = Settings(
        arms=("none", "one", "two", "none-long", "one-long", "two-long"),
        data=Data(size=96, vertical_flip=0.5, small=14.0, medium=28.0),
        student=Detector(trunk_arguments='{"channels": [32, 64, 128, 256]}'),
        weak=replace(swin, trunk_arguments=_swin((1, 1, 1, 1))),
        strong=swin,
        **{f"{name}_file": f"data/teachers/{name}.safetensors" for name in ("weak", "strong")},
        teach=Train(steps=1500, batch_size=16, lr=1.5e-3),
        jobs=2,
    )
    few = replace(quick.data, train_images=64, val_images=32, curve_images=16)
    many = replace(quick.data, train_images=6000, val_images=2000)
    short = replace(quick.train, steps=20, save_every=10, evaluations=2)
    long = replace(quick.train, steps=8000, batch_size=16, save_every=1000)
    teachers = {"teach": replace(quick.teach, steps=10), "weak_steps": 5, "teacher_images": 64}
    arms = ("none", "one", "two")
    return {
        "smoke": replace(quick, arms=arms, data=few, train=short, jobs=1, **teachers),
        "quick": quick,
        "full": replace(quick, seeds=(0, 1, 2, 3, 4), data=many, train=long, jobs=1),
    }[scale]


def few(scale: str) -> Settings:
    """Few labelled scenes, a narrow student, teachers as shipped, which saw 6000.

    Choice, by pilots on a held-out seed. No distillation gains 2.8 AP from twice the steps, 22 to
    30 in `scenes` (experiments `few-methods` and `scenes-methods`): near the plateau, not on it.
    """
    base = scenes(scale)
    narrow = '{"channels": [16, 32, 64, 128]}'
    student = replace(base.student, trunk_arguments=narrow, strides=(8, 16, 32))
    settings = replace(base, arms=("none", "one", "none-long"), student=student)
    if scale == "smoke":
        return settings
    data = replace(base.data, train_images=50, val_images=1000)
    train = replace(Train(), steps=600, evaluations=6)
    return replace(settings, data=data, train=train)


def photos(scale: str) -> Settings:
    """A COCO-format folder: Faster R-CNN teaches a narrower one, ImageNet trunks.

    Choice: pilots on 448 photographs. A RetinaNet at 3e-4 learns nothing in 800 steps; Faster R-CNN
    has 7.3 AP after 400 steps at 1e-3, 8.0 at 2e-3, both with 1e-4 for the trunk, 6.4 with 3e-4.
    """
    pyramid = {"strides": (8, 16, 32), "fpn_channels": 96, "anchor_scale": 0.4}
    trunk = Detector(trunk="torchvision:mobilenet_v2", frozen_norm=True, **pyramid)
    train = Train(steps=600, batch_size=4, lr=2e-3, trunk=0.05, evaluations=2)
    short = replace(train, steps=6, batch_size=2, evaluations=1)
    long = replace(train, steps=10_000, batch_size=16, save_every=1000)
    data = Data("coco", "data/coco", size=320, colour=0.3, zoom=(0.7, 1.4), val_images=0)
    quick = Settings(
        seeds=(0, 1),
        arms=("none", "one"),
        data=data,
        student=replace(trunk, fpn_channels=48),
        weak=trunk,
        strong=trunk,
        train=train,
        teach=replace(train, steps=3000, lr=1e-3, trunk=0.1),
        weak_steps=1000,
        jobs=2,
    )
    few = replace(data, size=160, val_images=8, curve_images=4)
    large = replace(data, size=640, workers=4)
    return {
        "smoke": replace(
            quick, data=few, train=short, teach=short, weak_steps=3, jobs=1, seeds=(0,)
        ),
        "quick": quick,
        "full": replace(quick, data=large, train=long, teach=long, weak_steps=3000, jobs=1),
    }[scale]


PRESETS = {"scenes": scenes, "few": few, "photos": photos, **presets_coco.PRESETS}
"""Name → scale → settings, but for the names of preset and scale, which `resolve` fills in."""


def _swin(depths: tuple[int, int, int, int]) -> str:
    """Arguments of a narrow Swin: head dimension 16, window 6 (divides 24, 12, 6), conv stem."""
    arguments = {"embed_dim": 32, "depths": depths, "num_heads": [2, 4, 8, 16]}
    return json.dumps(arguments | {"window_size": [6, 6], "stem": "conv"})


def default_scale() -> str:
    """The scale named by DFMSD_SCALE, smoke unless set; ValueError when it is not a scale."""
    scale = os.environ.get("DFMSD_SCALE", "smoke")
    check_name("scale", scale, SCALES, "DFMSD_SCALE")
    return scale


def resolve(
    preset: str, overrides: Sequence[str] = (), *, scale: str | None = None, root: str | Path = "."
) -> Settings:
    """The settings of a preset with `key=value` overrides; `scale=…` among them chooses the scale.

    Without any, it is `default_scale`. `root` is the project's folder as seen from here, for the
    preset's own files. ValueError for an unknown name or a wrong value.
    """
    check_name("preset", preset, list(PRESETS))
    changes = dict(map(split_override, overrides))
    scale = changes.pop("scale", scale) or default_scale()
    check_name("scale", scale, SCALES, "scale")
    if (other := changes.pop("preset", preset)) != preset:
        raise ValueError(f"preset={other}: contradicts the preset {preset} named first")
    settings = replace(PRESETS[preset](scale), preset=preset, scale=scale)
    places = {k: str(root / Path(v)) for k, v in flat(settings).items() if v and k.endswith(PLACES)}
    return change(settings, places | changes)
