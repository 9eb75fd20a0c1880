"""Detectors, data and methods small enough for tests that take milliseconds."""

from __future__ import annotations

import torch
from torch import nn

from dfmsd.detectors.build import build_detector
from dfmsd.detectors.recipe import Recipe

CNN = {"channels": [8, 16, 24, 32]}


def tiny_detector(kind="retinanet", *, classes=6, seed=0, channels=16, strides=(8, 16, 32)):
    """A CNN detector of about 100 k parameters."""
    torch.manual_seed(seed)
    recipe = Recipe(
        kind,
        "timm:resnet10t",
        num_classes=classes,
        image_size=64,
        strides=strides,
        fpn_channels=channels,
        head_channels=32,
        trunk_arguments=CNN,
    )
    return build_detector(recipe)


def tiny_images(count=2, size=64, seed=0):
    """Random images and targets with one box each."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, size, size, generator=generator) for _ in range(count)]
    targets = [
        {
            "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
            "labels": torch.tensor([1 + i % 6]),
            "image_id": i,
        }
        for i in range(count)
    ]
    return images, targets


class TinyBatches:
    """Batches that are a function of the step, like `dfmsd.data.batches.Batches`."""

    def __init__(self, count=2):
        self.count = count

    def iterate(self, start=0, rank=0, world=1):
        step, size = start, self.count // world
        while True:
            images, targets = tiny_images(self.count, seed=step)
            yield images[rank * size :][:size], targets[rank * size :][:size]
            step += 1


class Line(nn.Module):
    """The smallest model that `fit` can train: one weight, loss (w - mean of the image)²."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images, targets):
        noise = torch.rand(())  # random per step, as mask and sampling are
        loss = sum((self.weight - image.mean() - noise).square() for image in images)
        return {"fit": loss / len(images), "size": 0.1 * self.weight.square()}


class LineDetector(Line):
    """A `Line` that passes for a detector, so that stages can train it in milliseconds."""

    def __init__(self):
        super().__init__()
        self.transform, self.backbone = nn.Identity(), nn.Identity()
        self.register_buffer("seen", torch.zeros(()))  # as a batch norm counts

    def forward(self, images, targets=None):
        if self.training:
            self.seen += sum(image.mean() for image in images)
        noise = torch.rand(len(images))  # random per image, as mask and sampling are
        losses = [(self.weight - i.mean() - n).square() for i, n in zip(images, noise, strict=True)]
        return {"fit": sum(losses) / len(images), "size": 0.1 * self.weight.square()}
