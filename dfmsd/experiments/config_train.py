"""Settings of a training: its recipe, and how it is computed, divided and kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Train:
    """One training run."""

    steps: int = 400
    """steps that count as 1 in the arms (see `arms`)"""
    batch_size: int = 8
    """images per step, over all processes"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (0.9, 0.99) or SGD (momentum 0.9)"""
    lr: float = 2e-3
    """peak learning rate"""
    batch_of_lr: int = 0
    """batch that `lr` is meant for, scaled linearly for another `batch_size`; 0 = any"""
    trunk: float = 1.0
    """share of the learning rate for the trunk"""
    weight_decay: float = 0.05
    """not applied to vectors"""
    warmup: float = 0.1
    """share of the steps with linear warm-up"""
    schedule: Literal["cosine", "step"] = "cosine"
    """cosine to 0, or x0.1 at 2/3 and 8/9 of the steps"""
    schedule_over: Literal["stage", "run"] = "stage"
    """the learning rate restarts with each stage, or runs over all of them"""
    clip: float = 5.0
    """largest gradient norm"""
    save_every: int = 100
    """steps between checkpoints"""
    log_every: int = 1
    """steps between rows of the log"""
    evaluations: int = 4
    """evaluations on `curve_images` during one run"""

    @property
    def peak(self) -> float:
        """The peak learning rate at this batch size. Source: Goyal et al., arXiv 1706.02677."""
        same = self.batch_of_lr in (0, self.batch_size)
        return self.lr if same else self.lr * self.batch_size / self.batch_of_lr


@dataclass(frozen=True)
class Engine:
    """How a run is computed, divided and kept."""

    save_minutes: float = 0.0
    """minutes between checkpoints, beside `train.save_every`; 0 = none by the clock"""
    accumulate: int = 1
    """parts in which each process works through its images of a step, to need less memory"""
    channels_last: bool = False
    """memory layout of the convolutions (faster on GPUs in bf16 and fp16)"""
    compile: bool = False
    """compile trunk and pyramid with torch.compile"""
    sync_norm: bool = False
    """batch norm over the images of all processes (GPUs only)"""
    tensorboard: bool = False
    """scalars for TensorBoard too, in `tensorboard` of the run's folder"""
