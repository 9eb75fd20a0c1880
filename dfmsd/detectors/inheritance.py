"""A student that starts with the neck and the head of its teacher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

Part = Literal["trunk", "neck", "head"]


def part_of(name: str) -> Part:
    """The part of a detector that its tensor `name` belongs to; the pyramid is the neck."""
    if not name.startswith("backbone."):
        return "head"
    return "neck" if name.startswith("backbone.fpn.") else "trunk"


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module, parts: Iterable[Part]) -> list[str]:
    """Names of the tensors of `student` that now hold the values of `teacher`'s.

    A tensor is copied when both detectors have it under one name and in one shape, so the head of a
    two-stage teacher does not fit a one-stage student.

    Args:
        student: a detector; changed in place.
        teacher: another.
        parts: of the detector that are inherited, "neck" and "head".

    Raises:
        ValueError: a part of which no tensor fits.

    Source: the "inheriting strategy" of Kang et al. 2021 (arXiv 2110.12724); FGD and MGD copy all
    but the trunk when both heads are alike.
    """
    ours, theirs = student.state_dict(), teacher.state_dict()
    copied: list[str] = []
    for part in parts:
        names = [
            name
            for name in ours
            if part_of(name) == part and name in theirs and ours[name].shape == theirs[name].shape
        ]
        if not names:
            kinds = f"a {type(teacher).__name__} to a {type(student).__name__}"
            raise ValueError(f"no tensor of the {part} fits from {kinds}; try another `inherit`")
        copied += names
    for name in copied:
        ours[name].copy_(theirs[name])
    return copied


def listing(copied: Iterable[str]) -> str:
    """The layers of the tensors, one after another: `backbone.fpn.layer_blocks.0.0, …`."""
    return ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in copied))
