"""The composition root: settings → data, detectors, methods and stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from dfmsd.align import pair_strides
from dfmsd.baselines import BASELINES, PseudoLabels
from dfmsd.data.augmentation import augmentation
from dfmsd.data.batches import Augmented, Batches, load
from dfmsd.data.coco import CocoDataset
from dfmsd.data.scenes import SceneDataset
from dfmsd.detectors.build import build_detector
from dfmsd.detectors.features import feature_channels
from dfmsd.experiments.presets_coco import require
from dfmsd.experiments.settings import ARMS, Data, Detector, Settings, Train
from dfmsd.loss import DFMSDLoss
from dfmsd.stages import Stage
from dfmsd.training.evaluation import evaluate_detector
from dfmsd.training.optim import Schedule

TRAIN_SEED, VAL_SEED = 1, 2  # of the generated scenes
FITTED = 8  # batches that the adapters of `method.adapter=fitted` are fitted on


def require_data(data: Data) -> None:
    """Nothing, when the data are generated or their folder is there; else FileNotFoundError."""
    if data.kind == "coco" and not Path(data.root).is_dir():
        text = "no such folder; it must hold images and annotations in COCO format"
        raise FileNotFoundError(f"data.root={data.root}: {text}")


def accelerator(settings: Settings) -> Accelerator:
    """What computes: a CUDA GPU where there is one, else the CPU; not Apple's MPS, untested."""
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    return Accelerator(cpu=cpu, mixed_precision=settings.precision)


def datasets(data: Data) -> tuple[Any, Any]:
    """Training and validation data; FileNotFoundError without a folder in COCO format."""
    require_data(data)
    if data.kind == "scenes":
        count = max(1, round(data.train_share * data.train_images))
        splits = ((count, TRAIN_SEED), (data.val_images, VAL_SEED))
        return tuple(SceneDataset(count, size=data.size, seed=seed) for count, seed in splits)
    options = {"cache": data.cache, "exif": data.exif}
    options["max_size"] = None if data.short else data.size
    shares = {"train": data.train_share, "val": 1.0}
    return tuple(CocoDataset(data.root, split, share=s, **options) for split, s in shares.items())


def shown_size(data: Data, height: int, width: int) -> tuple[int, int]:
    """(height, width) in which a detector of the settings sees an image of that size."""
    if not data.short:
        return height, width
    factor = min(data.short / min(height, width), data.size / max(height, width))
    return round(height * factor), round(width * factor)


def batches(
    dataset: Any, data: Data, *, batch_size: int, seed: int, device: torch.device | str = "cpu"
) -> Batches:
    """Augmented batches, grouped by shape; what comes at a step depends on seed and step only."""
    flips = {"flip": data.horizontal_flip, "vflip": data.vertical_flip}
    zoom = None if data.zoom == (1.0, 1.0) else data.zoom
    transform = augmentation(**flips, scale=zoom, colour=data.colour)
    options = {"sizes": [shown_size(data, *s) for s in dataset.sizes], "workers": data.workers}
    return Batches(dataset, batch_size, seed=seed, transform=transform, device=device, **options)


def detector(
    settings: Detector, *, num_classes: int, image_size: int, max_size: int | None = None
) -> nn.Module:
    """A fresh detector of the settings; with `max_size` it resizes its images."""
    require("weights", settings.weights)
    sizes = {"image_size": image_size, "max_size": max_size, "resize": max_size is not None}
    recipe = settings.recipe(num_classes=num_classes, **sizes)
    try:
        return build_detector(recipe, weights=settings.weights or None)
    except TypeError as error:  # of the trunk's constructor
        raise ValueError(f"trunk_arguments={settings.trunk_arguments}: {error}") from error


def detector_for(settings: Detector, data: Data, *, num_classes: int) -> nn.Module:
    """A fresh detector of the settings, for the images of these data."""
    size, largest = (data.short, data.size) if data.short else (data.size, None)
    return detector(settings, num_classes=num_classes, image_size=size, max_size=largest)


def evaluate(model: nn.Module, dataset: Any, data: Data, **options: Any) -> dict[str, float]:
    """COCO metrics with the size limits and the loader processes of the settings."""
    device, samples = next(model.parameters()).device, Augmented(dataset, None, seed=0)

    def load_batches(_dataset: Any, batches: list[Sequence[int]]) -> Iterator[Any]:
        keys = [[(0, index) for index in indices] for indices in batches]
        return load(samples, keys, workers=data.workers, device=device)

    limits = {"small": data.small**2, "medium": data.medium**2}
    return evaluate_detector(model, dataset, load=load_batches, **limits, **options)


def schedule(train: Train, *, steps: int, offset: int = 0, total: int | None = None) -> Schedule:
    """The learning-rate schedule of one stage, or of a part of the run when `total` is given."""
    whole = total or steps
    warmup, milestones = round(train.warmup * whole), (whole * 2 // 3, whole * 8 // 9)
    place = {"offset": offset if total else 0, "total": total}
    return Schedule(steps, train.peak, warmup, train.schedule, milestones, **place)


def scaled_rate(train: Train) -> str:
    """One line on how the learning rate follows from the batch; empty when it does not."""
    size, recipe = train.batch_size, train.batch_of_lr
    rate = f"learning rate {train.lr:g} × {size} / {recipe} = {train.peak:g}"
    return "" if train.peak == train.lr else f"{rate}: batch {size}, recipe for {recipe}"


def method(settings: Settings, student: nn.Module, teacher: nn.Module) -> nn.Module:
    """The distillation of the settings for two detectors; ValueError when no level takes part."""
    terms = asdict(settings.method)
    name, factor, strides, threshold = map(terms.pop, ("name", "factor", "strides", "threshold"))
    del terms["fade"], terms["anchor"]  # of the stages
    if name == "pseudo_labels":
        return PseudoLabels(threshold=threshold)
    terms["adapter"] = terms["adapter"].replace("fitted", "conv")
    if name != "dfmsd":
        terms = {key: terms[key] for key in ("adapter", "match")}
    kind = (BASELINES | {"dfmsd": DFMSDLoss})[name]
    channels = [feature_channels(student), feature_channels(teacher)]
    if strides:  # the student's; with whom a level is paired does not depend on the others' part
        found = pair_strides(*channels, terms["match"])
        pairs = [pair for pair in found if pair[0] in strides]
        if not pairs:
            levels = f"no level in common with the student's {[pair[0] for pair in found]}"
            raise ValueError(f"method.strides={','.join(map(str, strides))}: {levels}")
        channels = [{pair[k]: channels[k][pair[k]] for pair in pairs} for k in (0, 1)]
    compares = kind(*channels, **terms)
    compares.weights = {term: factor * weight for term, weight in compares.weights.items()}
    return compares


def records_file(settings: Settings) -> Path:
    """The JSON-lines file that takes the records."""
    return Path(settings.records or Path(settings.out) / "records.jsonl")


def arm_stages(
    settings: Settings, arm: str, student: nn.Module, teachers: dict[str, nn.Module]
) -> list[Stage]:
    """The stages of an arm, for this student and these teachers by name."""
    names, train, chosen = ARMS[arm].teachers, settings.train, settings.method
    extras = {"fitted": FITTED if chosen.adapter == "fitted" else 0, "anchor": chosen.anchor}
    lengths = [max(1, round(length * train.steps)) for length in ARMS[arm].lengths]
    total = sum(lengths) if train.schedule_over == "run" else None
    stages = []
    for number, steps in enumerate(lengths):
        rates = schedule(train, steps=steps, offset=sum(lengths[:number]), total=total)
        if not names:
            stages.append(Stage("task only", rates))
            continue
        teacher, rates = teachers[names[number]], replace(rates, fade=chosen.fade)
        compares = method(settings, student, teacher)
        stages.append(Stage(names[number], rates, teacher, compares, **extras))
    return stages
