"""Learning rate as a function of the step, and the optimiser over the trainable parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step.

    Linear warm-up over `warmup` steps, then half a cosine to 0, or steps: a tenth at each
    milestone. `offset` and `total` let several stages share one curve: the stage's step s counts as
    `offset + s` of `total`.

    `fade` is the last share of the steps, 0..1, in which the weights of a method's terms fall
    linearly to 0. Source: RTMDet stops them at 280 of 300 epochs, DAMO-YOLO fades them throughout.
    """

    steps: int
    lr: float
    warmup: int = 0
    kind: str = "cosine"
    milestones: tuple[int, ...] = ()
    offset: int = 0
    total: int | None = None
    fade: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.kind not in ("cosine", "step"):
            raise ValueError(f"kind must be 'cosine' or 'step', got {self.kind!r}")
        if not 0 <= self.fade <= 1:
            raise ValueError(f"fade must be in 0..1, got {self.fade}")

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at `step` (0-based) of this stage."""
        step, total = step + self.offset, self.total or self.steps + self.offset
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "step":
            return 0.1 ** sum(step >= milestone for milestone in self.milestones)
        done = (step - self.warmup) / max(total - self.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * done))

    def method_share(self, step: int) -> float:
        """Share of the weights of a method's terms at `step` of this stage, in (0, 1]."""
        left = (self.steps - step) / self.steps
        return min(1.0, left / self.fade) if self.fade else 1.0


def make_optimizer(
    model: nn.Module,
    *,
    name: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    trunk: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW (betas 0.9, 0.99) or SGD (momentum 0.9) over the trainable parameters.

    Weight decay is for parameters of two dimensions or more (matrices, kernels, and the layer norms
    over (C, 1, 1) of FGD), not for vectors (biases, other norms). Each group carries its `share` of
    the learning rate: `trunk`, ≥ 0, for the detector's `backbone.body`, 1 elsewhere. ValueError for
    a `name` but "adamw" and "sgd", or a negative share.
    """
    if trunk < 0:
        raise ValueError(f"trunk must be at least 0, got {trunk}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = trunk if "backbone.body." in path else 1.0
            groups[share, weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    settings = [
        {"params": groups[share, decay], "lr": lr * share, "share": share, "weight_decay": decay}
        for share, decay in sorted(groups, reverse=True)
    ]
    if name == "adamw":
        return torch.optim.AdamW(settings, lr=lr, betas=(0.9, 0.99), fused=True)
    if name == "sgd":
        return torch.optim.SGD(settings, lr=lr, momentum=0.9, fused=True)
    raise ValueError(f"optimizer must be 'adamw' or 'sgd', got {name!r}")
