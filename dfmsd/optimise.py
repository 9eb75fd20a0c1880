"""Learning rate as a function of the step, and the optimiser over the trainable parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step.

    Linear warm-up over `warmup` steps, then half a cosine to `floor` of the peak, or steps: times
    `gamma` at each milestone. `offset` and `total` let several stages share one curve: the stage's
    step s counts as `offset + s` of `total`.
    """

    steps: int
    lr: float
    warmup: int = 0
    kind: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    floor: float = 0.0
    offset: int = 0
    total: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.kind not in ("cosine", "step"):
            raise ValueError(f"kind must be 'cosine' or 'step', got {self.kind!r}")

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at `step` (0-based) of this stage."""
        step, total = step + self.offset, self.total or self.steps + self.offset
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "step":
            return self.gamma ** sum(step >= milestone for milestone in self.milestones)
        done = (step - self.warmup) / max(total - self.warmup, 1)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(
    model: nn.Module, *, name: str = "adamw", lr: float = 1e-3, weight_decay: float = 0.05
) -> torch.optim.Optimizer:
    """AdamW (betas 0.9, 0.99) or SGD (momentum 0.9) over the trainable parameters.

    Vectors (biases, norms) are not decayed.

    Raises:
        ValueError: when `name` is neither "adamw" nor "sgd".
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    raise ValueError(f"optimizer must be 'adamw' or 'sgd', got {name!r}")
