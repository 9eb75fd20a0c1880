"""A training step over its parts: the student's own step, the teacher's features, the convolutions.

    python benchmarks/step.py

Both sides end with the same optimiser over the student and the method. The parts know nothing of
each other: no hooks, no masks, no alignment. All weights are random; no time depends on them.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from loss import convolutions
from ratio import Measure, main, measure, ratios
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2, retinanet_resnet50_fpn

from dfmsd.data.scenes import SceneDataset
from dfmsd.detectors.features import capture_features, feature_channels
from dfmsd.distill import Distiller
from dfmsd.experiments.build import detector
from dfmsd.experiments.presets import resolve
from dfmsd.loss import DFMSDLoss

Images, Targets = list[Tensor], list[dict[str, Tensor]]


def two_sides(
    student: nn.Module, teacher: nn.Module, batches: list[tuple[Images, Targets]]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """One distillation step, and one of the parts; each takes the next batch."""
    channels = feature_channels(student), feature_channels(teacher)
    method = DFMSDLoss(*channels)
    distiller = Distiller(student, teacher, method).train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-6, momentum=0.9)
    with torch.no_grad(), capture_features(student) as seen:
        student(*batches[0])
    pixels = seen.images.tensors
    levels = dict(zip(channels[0], seen.features.values(), strict=True))
    common = [stride for stride in channels[0] if stride in channels[1]]
    features = {stride: levels[stride].detach().requires_grad_() for stride in common}
    bare = convolutions(method, features)
    ours, peers = cycle(batches), cycle(batches)

    def update(losses: dict[str, Tensor]) -> None:
        sum(distiller.weights.get(name, 1.0) * loss for name, loss in losses.items()).backward()
        optimizer.step()
        optimizer.zero_grad()

    def parts() -> None:
        update(student(*next(peers)))
        with torch.no_grad():
            teacher.backbone(pixels)
        bare()
        for feature in features.values():
            feature.grad = None

    return lambda: update(distiller(*next(ours))), parts


def photographs(size: tuple[int, int], count: int) -> list[tuple[Images, Targets]]:
    """Batches of noise with five boxes an image."""
    batches = []
    for _ in range(4):
        low = torch.rand(count, 5, 2) * torch.tensor(size[::-1]) / 2
        boxes = torch.cat([low, low + 20 + torch.rand(count, 5, 2) * 60], 2)
        targets = [{"boxes": b, "labels": torch.randint(1, 91, (5,))} for b in boxes]
        batches.append((list(torch.rand(count, 3, *size)), targets))
    return batches


def readme_pair(quick: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """RetinaNet R50 learns from Faster R-CNN R50 v2, two images of 192×288 pixels."""
    size = (64, 96) if quick else (192, 288)
    how = {"weights": None, "weights_backbone": None, "min_size": size[0], "max_size": size[1]}
    return two_sides(
        retinanet_resnet50_fpn(**how), fasterrcnn_resnet50_fpn_v2(**how), photographs(size, 2)
    )


def scenes(quick: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """The student and the strong teacher of the preset, on its scenes and batch size."""
    settings = resolve("scenes", scale="smoke" if quick else "quick")
    count, data = settings.train.batch_size, settings.data
    dataset = SceneDataset(4 * count, size=data.size, seed=1)
    samples = [dataset[i] for i in range(len(dataset))]
    batches = [
        tuple(map(list, zip(*samples[first : first + count], strict=True)))
        for first in range(0, len(samples), count)
    ]
    student, teacher = (
        detector(part, num_classes=len(dataset.classes), image_size=data.size)
        for part in (settings.student, settings.strong)
    )
    return two_sides(student, teacher, batches)


def measures(options: Namespace) -> Iterator[Measure]:
    torch.manual_seed(0)
    rounds = 1 if options.quick else 6
    name = "step / (student step + teacher features + convolutions)"
    yield measure(f"{name}, README pair", ratios(*readme_pair(options.quick), rounds), 1.03)
    rounds = 1 if options.quick else 24
    yield measure(f"{name}, scenes", ratios(*scenes(options.quick), rounds), 1.03)


if __name__ == "__main__":
    main(measures, __doc__)
