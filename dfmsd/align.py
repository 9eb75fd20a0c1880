"""Features made comparable: level pairs, adapters, standardising, and how far two are apart.

Features are (N, C, H, W), `student` and `teacher` of one shape where they are compared. `valid` is
(N, 1, H, W) bool, True inside the images; None means everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfmsd.context import mean_squared_error, softmax_input, widen
from dfmsd.ranges import Positive, check, check_value

Match = Literal["stride", "index"]
Fit = Literal["conv", "identity", "auto"]


def standardise(feature: Tensor, valid: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """The feature with mean 0 and variance 1 per channel over (N, valid H, W); padding is 0.

    In float32 or better. Source: PKD. Choice: population statistics over valid cells only (PKD:
    unbiased, padding included), so that the alignment is one minus Pearson's correlation, up
    to `eps`: it is added to the variance, as in batch norm, so that a channel that never fires
    gives zeros and finite gradients.
    """
    wide = widen(feature)
    if valid is None:
        # batch norm without scale and shift, in one pass; F.batch_norm would refuse a single cell
        return torch.batch_norm(wide, *[None] * 4, True, 0.0, eps, torch.backends.cudnn.enabled)
    count = valid.sum().to(wide.dtype).clamp_min(1)
    mean = (wide * valid).sum((0, 2, 3), keepdim=True) / count
    centred = (wide - mean) * valid
    variance = centred.square().sum((0, 2, 3), keepdim=True) / count
    return centred * (variance + eps).rsqrt()


def alignment_loss(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Scalar `mean (Z_s − Z_t)² / 2 = 1 − mean_c Pearson(student, teacher)`, in 0..2.

    It does not see the offset of a channel, nor its scale unless the variance is as small as `eps`;
    a channel that never fires costs 1/2. Source: PKD, but for the choices of `standardise`, which
    takes `eps`. ValueError when the shapes differ.
    """
    shape, wanted = tuple(student.shape), tuple(teacher.shape)
    check("student", shape, shape == wanted, f"of teacher's shape {wanted}")
    z_s, z_t = standardise(student, valid, eps), standardise(teacher, valid, eps)
    return mean_squared_error(z_s, z_t, valid) / 2


def channel_divergence(
    student: Tensor, teacher: Tensor, *, tau: Positive, valid: Tensor | None = None
) -> Tensor:
    """Scalar `τ² · mean_(n, c) KL(softmax_hw(F_t / τ) ‖ softmax_hw(F_s / τ))`, nats, ≥ 0.

    It does not see an offset of a channel; the temperature `tau` is above 0. Source: CWD. Choice:
    padding takes no part in the softmax.
    """
    check_value("tau", tau, Positive)

    def log_share(feature: Tensor) -> Tensor:
        logits = softmax_input(feature if tau == 1 else feature / tau, valid)
        return logits.flatten(2).log_softmax(2)  # (N, C, HW)

    log_t = log_share(teacher)
    # in this order the gradient needs no pass of its own for a minus sign
    total = -(log_t.exp() * (log_share(student) - log_t)).sum()
    return total * tau**2 / (student.shape[0] * student.shape[1])


class Adapter(nn.Module):
    """The student's feature with the teacher's number of channels: (N, C_s, H, W) → (N, C_t, H, W).

    By `kind` "conv" a 1x1 convolution with bias; by "identity" nothing (C_s must be C_t);
    by "auto" a convolution where C_s and C_t differ.
    """

    def __init__(self, student_channels: int, teacher_channels: int, kind: Fit = "conv") -> None:
        super().__init__()
        counts, equal = (student_channels, teacher_channels), student_channels == teacher_channels
        check_value("adapter kind", kind, Fit)
        check("channel counts", counts, equal or kind != "identity", "equal for an identity")
        self.map = nn.Conv2d(*counts, 1) if kind == "conv" or not equal else nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        """The adapted feature, (N, C_t, H, W)."""
        return self.map(feature)


def pair_strides(
    student: Collection[int], teacher: Collection[int], match: Match = "stride"
) -> list[tuple[int, int]]:
    """(student stride, teacher stride) of each pair of levels, finest first.

    "stride" pairs equal strides and leaves the others out; "index" pairs the k-th finest with the
    k-th finest (mmrazor's way) and leaves the surplus out. ValueError when no pair results.
    """
    check_value("match", match, Match)
    student, teacher = sorted(student), sorted(teacher)
    pairs = list(zip(student, teacher, strict=False))
    if match == "stride":
        pairs = [(stride, stride) for stride in student if stride in teacher]
    if not pairs:
        raise ValueError(f"no level in common: strides {student} (student), {teacher} (teacher)")
    return pairs


def match_levels(
    student: Mapping[int, Tensor],
    teacher: Mapping[int, Tensor],
    match: Match = "stride",
    *,
    pairs: list[tuple[int, int]] | None = None,
) -> list[tuple[int, Tensor, Tensor]]:
    """(student stride, student feature, teacher feature) per pair of levels, equal in H and W.

    Where sizes differ, the student is resized bilinearly; next to padding, cells then mix with it.
    By stride, only rounding can make sizes differ, so more than two cells is an error; so is a
    level that is missing, or none in common.

    Features are stride → (N, C, H, W). `pairs` are what `pair_strides` gave a method when it was
    built, other levels are left out; None pairs the levels that are there, by `match`.
    """
    pairs = pair_strides(student, teacher, match) if pairs is None else pairs
    for name, features, side in (("student", student, 0), ("teacher", teacher, 1)):
        strides = [pair[side] for pair in pairs]
        check(name, sorted(features), set(strides) <= set(features), f"features at {strides}")
    levels = []
    for stride, teacher_stride in pairs:
        feature, goal = student[stride], teacher[teacher_stride]
        size, wanted = tuple(feature.shape[-2:]), tuple(goal.shape[-2:])
        if match == "stride" and max(abs(a - b) for a, b in zip(size, wanted, strict=True)) > 2:
            raise ValueError(
                f"features at stride {stride} differ in size: student {size}, teacher {wanted}; "
                "were they computed from the same pixels?"
            )
        if size != wanted:
            feature = F.interpolate(feature, size=wanted, mode="bilinear", align_corners=False)
        levels.append((stride, feature, goal))
    return levels
