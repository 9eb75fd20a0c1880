"""Random choices that belong to the images of a batch, not to the batch or the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_UNIFORM = (torch.rand, torch.rand_like)


def step_seed(seed: int, stage: int, step: int, rank: int = 0) -> int:
    """The seed of everything random in one step: RPN and RoI sampling, drop-out, random masks."""
    return ((seed * 1_000_003 + stage * 7_919) * 1_000_003 + step * 1_009 + rank) % 2**63


def image_seed(seed: int, stage: int, step: int, index: int) -> int:
    """The seed of what is random for image `index` of the whole batch of one step."""
    return (step_seed(seed, stage, step, index) + 2**62) % 2**63


class ImageDraws(TorchFunctionMode):
    """Context in which every image of a batch draws from a generator of its own.

    Then the choices are the same however the batch is divided among processes and parts. It covers
    what the detectors and methods here draw: the sampling of anchors and regions
    (`torch.randperm`, twice per image: torchvision permutes the positives, then the negatives),
    random masks and the rows that stochastic depth drops (`rand`, `rand_like`, `bernoulli_` of
    tensors with one row per image). Other draws, and those with a generator, stay as they are.

    Args:
        seeds: one per image, in the order of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        """See the class."""
        super().__init__()
        self.seeds = list(seeds)
        self.permutations = 0
        self.by_device: dict[torch.device, list[torch.Generator]] = {}

    def generators(self, device: torch.device | str | None) -> list[torch.Generator]:
        """The images' generators on a device."""
        device = torch.device(device or "cpu")
        if device not in self.by_device:
            self.by_device[device] = [torch.Generator(device).manual_seed(s) for s in self.seeds]
        return self.by_device[device]

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        """What torch calls for each of its functions while the context is active."""
        options = options or {}
        if options.get("generator") is not None:
            return function(*arguments, **options)
        if function is torch.randperm:
            image = self.permutations // 2 % len(self.seeds)
            self.permutations += 1
            own = self.generators(options.get("device"))[image]
            return function(*arguments, **options | {"generator": own})
        drawn = function(*arguments, **options)
        if function in _UNIFORM and self._by_image(drawn):
            for row, own in zip(drawn, self.generators(drawn.device), strict=True):
                row.uniform_(generator=own)
        if function is Tensor.bernoulli_ and self._by_image(drawn):
            for row, own in zip(drawn, self.generators(drawn.device), strict=True):
                row.bernoulli_(*arguments[1:], **options | {"generator": own})
        return drawn

    def _by_image(self, drawn: Tensor) -> bool:
        """Whether a tensor has one row per image."""
        return drawn.dim() > 0 and len(drawn) == len(self.seeds)
