"""Detector → detections → COCO AP, as a flat dict."""

from __future__ import annotations

import contextlib
import gc
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor, nn
from torchvision.ops import box_convert

from dfmsd.detectors.features import frozen_modes

KEYS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
KEYS += ("AR1", "AR10", "AR100", "AR_S", "AR_M", "AR_L")
FOUND = ("boxes", "labels", "scores")
Load = Callable[[Any, list[Sequence[int]]], Iterable[tuple[Sequence[Tensor], Any]]]


def detections(
    predictions: Sequence[dict[str, Tensor]], image_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections in COCO's results format: boxes as x, y, width, height in pixels.

    `predictions` has one dict per image: `boxes` (n, 4) xyxy, `labels` (n,), `scores` (n,).
    """
    results = []
    for found, image_id in zip(predictions, image_ids, strict=True):
        boxes = box_convert(found["boxes"].float().cpu(), "xyxy", "xywh")
        parts = (boxes.tolist(), found["labels"].tolist(), found["scores"].float().tolist())
        results += [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for box, label, score in zip(*parts, strict=True)
        ]
    return results


def coco_metrics(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    small: float = 32**2,
    medium: float = 96**2,
) -> dict[str, float]:
    """COCO's twelve numbers (see `KEYS`) in 0..1; NaN where nothing is to be found.

    AP and AR are means over IoU 0.50:0.95, AP50 and AP75 at one IoU; S, M, L are small, medium and
    large objects; AR1, AR10, AR100 allow so many detections per image, all others 100.
    Source: COCO's evaluation, through faster-coco-eval.

    `truth` is a COCO-format dict with images, annotations and categories, `results` are detections
    in COCO's format (see `detections`); ValueError for one of an image that `truth` does not have.
    `small` and `medium` are the area limits of such objects, square pixels.
    """
    # numbered from 1, in the same order: COCO rounds large ids, and takes 0 for "no match"; copies,
    # for it writes into them
    images, classes = (
        {id_: number for number, id_ in enumerate(sorted({one["id"] for one in truth[key]}), 1)}
        for key in ("images", "categories")
    )
    for entry in results:
        if entry["image_id"] not in images:
            raise ValueError(f"results: image_id {entry['image_id']!r} is not in truth")

    def numbered(entry: dict[str, Any], **more: Any) -> dict[str, Any]:
        image, label = images[entry["image_id"]], classes[entry["category_id"]]
        return entry | {"image_id": image, "category_id": label} | more

    annotations = [numbered(entry, id=n) for n, entry in enumerate(truth["annotations"], start=1)]
    # "segmentation": else it makes a polygon of every box, which nothing reads
    found = [numbered(e, segmentation=None) for e in results if e["category_id"] in classes]
    lists = {
        "annotations": annotations,
        "images": [image | {"id": images[image["id"]]} for image in truth["images"]],
        "categories": [kind | {"id": classes[kind["id"]]} for kind in truth["categories"]],
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as end:
        if gc.isenabled():  # it would visit half a million dicts again and again
            gc.disable()
            end.callback(gc.enable)
        reference = COCO(truth | lists)
        loaded = reference.loadRes(found)
        run = COCOeval_faster(reference, loaded, "bbox", print_function=lambda *_text: None)
        run.params.areaRng = [[0, 1e10], [0, small], [small, medium], [medium, 1e10]]
        run.evaluate()
        run.accumulate()
        run.summarize()
    # COCO writes -1 where there is nothing to find
    return {k: float(v) if v >= 0 else math.nan for k, v in zip(KEYS, run.stats, strict=True)}


def _load(dataset: Any, batches: list[Sequence[int]]) -> Iterator[tuple[Sequence[Tensor], Any]]:
    """Images and targets of each list of indices, loaded by this process."""
    for indices in batches:
        yield tuple(zip(*(dataset[index] for index in indices), strict=True))


def predict(
    model: nn.Module,
    dataset: Sequence,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 8,
    load: Load = _load,
) -> list[dict[str, Tensor]]:
    """Boxes, labels and scores per image of `dataset` (or of `indices`), on the CPU, in order.

    Args:
        model: a torchvision detector; the mode of every part is put back, whatever happens.
        dataset: `dataset[i]` gives (image (3, H, W) in 0..1, target).
        indices: which images.
        batch_size: images at a time.
        load: `load(dataset, lists of indices)` gives the images and targets of each list;
            `dfmsd.data.batches.load` does it with loader processes.
    """
    device = next(model.parameters()).device
    indices = range(len(dataset)) if indices is None else indices
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    predictions: list[dict[str, Tensor]] = []
    with frozen_modes(model):
        for images, _ in load(dataset, batches):
            found = model([image.to(device, non_blocking=True) for image in images])
            counts = [len(one["scores"]) for one in found]
            # one transfer per batch, not one per image: each waits for the device
            parts = [torch.cat([one[k] for one in found]).cpu().split(counts) for k in FOUND]
            predictions += [dict(zip(FOUND, one, strict=True)) for one in zip(*parts, strict=True)]
    return predictions


def evaluate_detector(
    model: nn.Module,
    dataset: Any,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    load: Load = _load,
    **areas: float,
) -> dict[str, float]:
    """COCO's twelve numbers of `model` on `dataset`, every process taking its share of the images.

    The processes share whole batches of those that one process would make (what a detector finds
    in an image depends, through padding, on its batch), so the metrics are the very same.

    `dataset` has `truth()`, a COCO-format dict; of its images only the first `limit` count, if
    given. The processes are those of `accelerator`, one unless given. Model, batch size and `load`
    are as in `predict`, the `areas` `small` and `medium` as in `coco_metrics`.
    """
    truth = dataset.truth()
    images = truth["images"][:limit]
    rank, count = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    share = [i for i in range(len(images)) if i // batch_size % count == rank]
    predictions = predict(model, dataset, indices=share, batch_size=batch_size, load=load)
    results = detections(predictions, [images[i]["id"] for i in share])
    if count > 1:
        order = {image["id"]: number for number, image in enumerate(images)}
        results = sorted(gather_object(results), key=lambda entry: order[entry["image_id"]])
    ids = {image["id"] for image in images}
    annotations = [entry for entry in truth["annotations"] if entry["image_id"] in ids]
    truth = truth | {"images": images, "annotations": annotations}
    metrics = coco_metrics(truth, results, **areas) if rank == 0 else None
    return broadcast_object_list([metrics])[0] if count > 1 else metrics
