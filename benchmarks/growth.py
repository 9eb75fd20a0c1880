"""How time and memory grow with image area, batch and boxes: exponents.

    python benchmarks/growth.py

Two things grow: the loss with its backward pass, 256 channels on strides 8 to 64; and a step's
method part, which is the teacher's features (Faster R-CNN R50 v2, random weights) and that loss.
Areas are those of the padded batches of one image up to 800×1333 pixels; batches of 1 to 8 images
and up to 512 boxes an image at 256×416. The boxes are read by the loss with regions="boxes" and, as
FGD does, by masks. Memory is the peak above what was there before, by torch's own accounting.
"""

from __future__ import annotations

import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from loss import Batch, whole
from ratio import Measure, cpu_seconds, main, measure, peak_bytes
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2, retinanet_resnet50_fpn

from dfmsd.baselines import FGD
from dfmsd.context import Context
from dfmsd.distill import Distiller
from dfmsd.loss import DFMSDLoss

STRIDES = (8, 16, 32, 64)
SIZES = ((200, 333), (400, 667), (600, 1000), (800, 1333))
Cost = Callable[[Callable[[], None]], float]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares: 1 means proportional."""
    x, y = [[math.log(value) for value in values] for values in (sizes, costs)]
    return statistics.linear_regression(x, y).slope


def passes(method: nn.Module, batch: Batch, distiller: Distiller | None = None) -> None:
    """The method forward and backward, after the teacher's features if a distiller is given."""
    if distiller is not None:
        batch.teacher = distiller.teacher_features(batch.context.images)
    whole(method, batch).backward()
    # the parameters' gradients stay: they take the same memory at every size
    method.zero_grad(set_to_none=False)
    for feature in batch.student.values():
        feature.grad = None
    if distiller is not None:
        batch.teacher = {}


def slopes(
    batches: dict[float, Batch], act: Callable[[Batch], None], cost: Cost, rounds: int
) -> list[float]:
    """The exponent per round; every other round goes from the largest to the smallest."""
    act(min(batches.items())[1])  # warm-up
    values = []
    for number in range(rounds):
        order = sorted(batches, reverse=number % 2 == 1)
        costs = [cost(partial(act, batches[size])) for size in order]
        values.append(exponent(order, costs))
    return values


def with_boxes(count: int, size: tuple[int, int], channels: int) -> Batch:
    """Two images with `count` boxes each."""
    batch = Batch(channels, size, STRIDES, 2)
    batch.context = Context(batch.context.images, batch.context.sizes, batch.targets(count))
    return batch


def measures(options: Namespace) -> Iterator[Measure]:
    quick, channels = options.quick, 256
    torch.manual_seed(0)
    sizes = ((32, 64), (64, 96), (96, 128)) if quick else SIZES
    size = (64, 96) if quick else (256, 416)
    areas = [Batch(channels, each, STRIDES, 1) for each in sizes]
    counts = (1, 2, 4) if quick else (1, 2, 4, 8)
    numbers = (1, 8, 64) if quick else (1, 8, 64, 512)
    grown = {
        "image area": {float(batch.pixels[0] * batch.pixels[1]): batch for batch in areas},
        "batch": {float(count): Batch(channels, size, STRIDES, count) for count in counts},
    }
    boxes = {float(number): with_boxes(number, size, channels) for number in numbers}
    each = dict.fromkeys(STRIDES, channels)
    how = {"weights": None, "weights_backbone": None}
    method = DFMSDLoss(each, each)
    student = retinanet_resnet50_fpn(**how)
    distiller = Distiller(student, fasterrcnn_resnet50_fpn_v2(**how), method)
    regions, fgd = DFMSDLoss(each, each, regions="boxes"), FGD(each, each)
    rows = [(f"loss, {what}", batches, partial(passes, method)) for what, batches in grown.items()]
    rows += [("loss, boxes", boxes, partial(passes, regions))]
    rows += [("FGD, boxes", boxes, partial(passes, fgd))]
    rows += [
        (f"step's method part, {what}", batches, partial(passes, method, distiller=distiller))
        for what, batches in grown.items()
    ]
    rounds = 1 if quick else 2
    for name, batches, act in rows:
        values = slopes(batches, act, cpu_seconds, rounds)
        yield measure(f"exponent of time: {name}", values, 1.05)
        yield measure(f"exponent of memory: {name}", slopes(batches, act, peak_bytes, 1), 1.05)


if __name__ == "__main__":
    main(measures, __doc__)
