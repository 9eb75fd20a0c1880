"""Detector → detections → COCO AP, as a flat dict."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor, nn
from torchvision.ops import box_convert

from dfmsd.detectors.features import frozen_modes

KEYS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")


def detections(
    predictions: Sequence[dict[str, Tensor]], image_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections in COCO's results format: boxes as x, y, width, height in pixels.

    Args:
        predictions: one dict per image: `boxes` (n, 4) xyxy, `labels` (n,), `scores` (n,).
        image_ids: the id of each image.
    """
    results = []
    for prediction, image_id in zip(predictions, image_ids, strict=True):
        boxes = box_convert(prediction["boxes"].float().cpu(), "xyxy", "xywh")
        labels, scores = prediction["labels"].tolist(), prediction["scores"].float().tolist()
        results += [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for box, label, score in zip(boxes.tolist(), labels, scores, strict=True)
        ]
    return results


def coco_metrics(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    small: float = 32**2,
    medium: float = 96**2,
) -> dict[str, float]:
    """AP (IoU 0.50:0.95), AP50, AP75, AP_S, AP_M, AP_L in 0..1; NaN where nothing is to be found.

    Source: COCO's evaluation, 100 detections per image, through faster-coco-eval.

    Args:
        truth: COCO-format dict with images, annotations, categories.
        results: COCO's results format (see `detections`).
        small: area limit of small objects, square pixels.
        medium: area limit of medium objects, square pixels.

    Raises:
        ValueError: a detection of an image that `truth` does not have.
    """
    images = {image["id"] for image in truth["images"]}
    for entry in results:
        if entry["image_id"] not in images:
            raise ValueError(f"results: image_id {entry['image_id']!r} is not in truth")
    # copies, for COCO writes into them; numbered from 1, for it takes an id of 0 for "no match"
    annotations = [entry | {"id": id_} for id_, entry in enumerate(truth["annotations"], start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(truth | {"annotations": annotations})
        loaded = reference.loadRes([dict(entry) for entry in results])
        run = COCOeval_faster(reference, loaded, "bbox", print_function=lambda *_text: None)
        run.params.areaRng = [[0, 1e10], [0, small], [small, medium], [medium, 1e10]]
        run.evaluate()
        run.accumulate()
        run.summarize()
    # COCO writes -1 where there is nothing to find
    return {k: float(v) if v >= 0 else math.nan for k, v in zip(KEYS, run.stats[:6], strict=True)}


def predict(
    model: nn.Module,
    dataset: Sequence,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 8,
) -> list[dict[str, Tensor]]:
    """The detections for each image of `dataset` (or those in `indices`), on the CPU, in order.

    Args:
        model: a torchvision detector; the mode of every part is put back, whatever happens.
        dataset: `dataset[i]` gives (image (3, H, W) in 0..1, target).
        indices: which images.
        batch_size: images at a time.
    """
    device = next(model.parameters()).device
    indices = range(len(dataset)) if indices is None else indices
    predictions: list[dict[str, Tensor]] = []
    with frozen_modes(model):
        for first in range(0, len(indices), batch_size):
            images = [dataset[i][0].to(device) for i in indices[first : first + batch_size]]
            predictions += [{k: v.cpu() for k, v in boxes.items()} for boxes in model(images)]
    return predictions


def evaluate_detector(
    model: nn.Module,
    dataset: Any,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    small: float = 32**2,
    medium: float = 96**2,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """COCO AP of `model` on `dataset`, every process taking its share of the images.

    The processes share whole batches of those that one process would make (what a detector finds
    in an image depends, through padding, on its batch), so the metrics are the very same.

    Args:
        model: a torchvision detector.
        dataset: has `truth()` (a COCO-format dict) and gives (image, target).
        limit: only the first so many images.
        batch_size: images at a time.
        small: area limit of small objects, square pixels.
        medium: area limit of medium objects, square pixels.
        accelerator: the processes that share the work; one unless given.
    """
    truth = dataset.truth()
    images = truth["images"][:limit]
    rank, count = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    share = [i for i in range(len(images)) if i // batch_size % count == rank]
    predictions = predict(model, dataset, indices=share, batch_size=batch_size)
    results = detections(predictions, [images[i]["id"] for i in share])
    if count > 1:
        order = {image["id"]: number for number, image in enumerate(images)}
        results = sorted(gather_object(results), key=lambda entry: order[entry["image_id"]])
    ids = {image["id"] for image in images}
    annotations = [entry for entry in truth["annotations"] if entry["image_id"] in ids]
    truth = truth | {"images": images, "annotations": annotations}
    metrics = coco_metrics(truth, results, small=small, medium=medium) if rank == 0 else None
    return broadcast_object_list([metrics])[0] if count > 1 else metrics
