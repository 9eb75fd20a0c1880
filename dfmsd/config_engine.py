"""Settings of how a training is computed and kept; hardly any of them changes what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Engine:
    """How a run is computed, divided and kept."""

    save_minutes: float = 0.0
    """minutes between checkpoints, beside `train.save_every`; 0 = none by the clock"""
    accumulate: int = 1
    """parts in which each process works through its images of a step, to need less memory"""
    draws: Literal["step", "image"] = "step"
    """random choices follow from step and process, or from step and image: the same on any number
    of processes"""
    channels_last: bool = False
    """memory layout of the convolutions (faster on GPUs in bf16 and fp16)"""
    compile: bool = False
    """compile trunk and pyramid with torch.compile"""
    sync_norm: bool = False
    """batch norm over the images of all processes (GPUs only)"""
    tensorboard: bool = False
    """scalars for TensorBoard too, in `tensorboard` of the run's folder"""
