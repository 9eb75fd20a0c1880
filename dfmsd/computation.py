"""How a detector is computed: memory layout, compilation, batch norm over several processes."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn


def lay_out(
    detector: nn.Module, *, channels_last: bool = False, compiled: bool = False, **options: Any
) -> nn.Module:
    """The same detector, whose weights keep their names and values.

    Args:
        detector: a torchvision detector.
        channels_last: store the convolutions' weights channels-last.
        compiled: compile trunk and pyramid, which are most of the work. The heads stay as they are:
            their shapes change with every batch. Choice: the children of the backbone, so that the
            hooks on the backbone itself stay outside.
        options: passed on to torch.compile.
    """
    if channels_last:
        detector.to(memory_format=torch.channels_last)
    if compiled:
        for part in detector.backbone.children():
            part.compile(**options)
    return detector


def share_norms(detector: nn.Module, device: torch.device) -> nn.Module:
    """The same detector, its batch norms over all processes; their weights keep their names.

    Raises:
        ValueError: on a CPU, where torch has no such norm.
    """
    if device.type == "cpu":
        raise ValueError("engine.sync_norm=True: needs GPUs; set student.frozen_norm=True instead")
    return convert_sync_batchnorm(detector)  # in place: a detector is no norm itself
