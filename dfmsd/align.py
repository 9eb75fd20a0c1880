"""Features made comparable: `Context`, level pairs, adapters, standardising, alignment."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Match = Literal["stride", "index"]
Fit = Literal["conv", "identity", "auto"]


@dataclass(frozen=True, eq=False)
class Context:
    """The batch behind the features.

    Attributes:
        images: (N, 3, H, W), padded and normalised.
        sizes: (height, width) of each image in the batch, pixels; images lie at the top left.
        targets: one dict per image, `boxes` (n, 4) xyxy in pixels of the padded batch; or None.
        candidates: (n, 4) boxes per image, same pixels, for methods that look at regions; or None.
        scores: teacher's stride → its score at each cell, (N, 1, h, w), 0..1; or None.

    Raises:
        ValueError: when `sizes` does not fit `images`.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]] | None = None
    candidates: list[Tensor] | None = None
    scores: Mapping[int, Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that there is one size per image, none larger than the batch."""
        shape, count = tuple(self.images.shape), len(self.sizes)
        per_image = len(shape) == 4 and count == shape[0]
        check("sizes", count, per_image, f"one (height, width) per image of images {shape}")
        for height, width in self.sizes:
            inside = 0 < height <= shape[2] and 0 < width <= shape[3]
            check("sizes", (height, width), inside, f"in 1..{shape[2:]}")

    @property
    def padded(self) -> bool:
        """True when any image is smaller than the batch, so that some cells lie in padding."""
        full = tuple(self.images.shape[-2:])
        return any((size[0], size[1]) != full for size in self.sizes)

    def valid(self, feature: Tensor) -> Tensor:
        """Bool (N, 1, h, w) for a feature (N, C, h, w): True where a cell starts inside its image.

        Cell i of h starts at pixel `i · H / h`, so shapes suffice and no stride is needed.
        """
        inside = []
        for axis in (0, 1):
            pixels, cells = self.images.shape[2 + axis], feature.shape[2 + axis]
            starts = torch.arange(cells, device=feature.device) * pixels  # integers: no rounding
            inside.append(starts < self._limits[:, axis, None] * cells)  # (N, cells)
        return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]

    @cached_property
    def _limits(self) -> Tensor:
        """`sizes` as (N, 2) on the images' device; a GPU takes them without a wait."""
        limits = torch.tensor(self.sizes)
        if self.images.is_cuda:
            limits = limits.pin_memory()
        return limits.to(self.images.device, non_blocking=True)


def mean_over(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """The scalar mean of `value` (N, C, H, W) where `mask` counts; 0 when it counts nothing.

    Args:
        value: (N, C, H, W).
        mask: 0/1 or bool, broadcastable to `value`; None counts everything.
    """
    if mask is None:
        return value.mean()
    count = mask.sum() * (value.numel() // mask.numel())
    if mask.shape[1] == 1:  # a map over cells is multiplied once, not once per channel
        value = value.sum(1, keepdim=True)
    return (value * mask).sum() / count.clamp_min(1)


def mean_squared_error(one: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
    """The scalar mean of `(one − other)²` where `mask` counts; arguments as of `mean_over`."""
    error = F.mse_loss(one, other, reduction="mean" if mask is None else "none")
    return mean_over(error, mask)


def standardise(feature: Tensor, valid: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """The feature with mean 0 and variance 1 per channel over (N, valid H, W); padding is 0.

    In float32 or better. Source: PKD. Choice: population statistics over valid cells only (PKD:
    unbiased, padding included), so that the alignment is one minus Pearson's correlation exactly;
    `eps` is added to the variance, as in batch norm, so that a channel that never fires gives zeros
    and finite gradients.

    Args:
        feature: (N, C, H, W).
        valid: (N, 1, H, W) bool, True inside the images; None means everywhere.
        eps: added to the variance.
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

    It does not see scale or offset of a channel. Source: PKD, but for `standardise`'s choices.

    Args:
        student: (N, C, H, W), channels as the teacher's.
        teacher: (N, C, H, W).
        valid: (N, 1, H, W) bool, True inside the images; None means everywhere.
        eps: added to the variances.

    Raises:
        ValueError: when the shapes differ.
    """
    shape, wanted = tuple(student.shape), tuple(teacher.shape)
    check("student", shape, shape == wanted, f"of teacher's shape {wanted}")
    z_s, z_t = standardise(student, valid, eps), standardise(teacher, valid, eps)
    return mean_squared_error(z_s, z_t, valid) / 2


class Adapter(nn.Module):
    """The student's feature with the teacher's number of channels: (N, C_s, H, W) → (N, C_t, H, W).

    Args:
        student_channels: C_s.
        teacher_channels: C_t.
        kind: "conv", a 1x1 convolution with bias; "identity", nothing (counts must agree); "auto",
            a convolution where the counts differ.

    Raises:
        ValueError: for an unknown kind, or an identity between different counts.
    """

    def __init__(self, student_channels: int, teacher_channels: int, kind: Fit = "conv") -> None:
        """See the class."""
        super().__init__()
        counts, kinds = (student_channels, teacher_channels), ("conv", "identity", "auto")
        check("adapter kind", kind, kind in kinds, f"one of {kinds}")
        equal = student_channels == teacher_channels
        check("channel counts", counts, equal or kind != "identity", "equal for an identity")
        same = kind == "identity" or (kind == "auto" and equal)
        self.map = nn.Identity() if same else nn.Conv2d(*counts, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """The adapted feature, (N, C_t, H, W)."""
        return self.map(feature)


def pair_strides(
    student: Collection[int], teacher: Collection[int], match: Match = "stride"
) -> list[tuple[int, int]]:
    """(student stride, teacher stride) of each pair of levels, finest first.

    Args:
        student: the student's strides.
        teacher: the teacher's strides.
        match: "stride" pairs equal strides and leaves the others out; "index" pairs the k-th finest
            with the k-th finest (mmrazor's way) and leaves the surplus out.

    Raises:
        ValueError: for an unknown `match`, or when no pair results.
    """
    check("match", match, match in ("stride", "index"), "'stride' or 'index'")
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

    Where sizes differ, the student is resized bilinearly. By stride, only rounding can make them
    differ, so more than two cells is an error.

    Args:
        student: stride → (N, C_s, H, W).
        teacher: stride → (N, C_t, H, W).
        match: see `pair_strides`.
        pairs: what `pair_strides` gave a method when it was built; other levels are left out. None
            pairs the levels that are there.

    Raises:
        ValueError: when a level is missing, none is in common, or sizes at one stride differ by
            more than rounding.
    """
    pairs = pair_strides(student, teacher, match) if pairs is None else pairs
    for name, features, side in (("student", student, 0), ("teacher", teacher, 1)):
        strides = [pair[side] for pair in pairs]
        check(name, sorted(features), set(strides) <= set(features), f"features at {strides}")
    levels = []
    for stride, teacher_stride in pairs:
        feature, goal = student[stride], teacher[teacher_stride]
        size, wanted = feature.shape[-2:], goal.shape[-2:]
        if match == "stride" and max(abs(a - b) for a, b in zip(size, wanted, strict=True)) > 2:
            raise ValueError(
                f"features at stride {stride} differ in size: student {tuple(size)}, teacher "
                f"{tuple(wanted)}; were they computed from the same pixels?"
            )
        if size != wanted:
            feature = F.interpolate(feature, size=wanted, mode="bilinear", align_corners=False)
        levels.append((stride, feature, goal))
    return levels


def positive_weights(**weights: float) -> dict[str, float]:
    """The weights above 0, by the name of the term; a term of weight 0 is off.

    Raises:
        ValueError: when a weight is negative or not finite, or all are 0.
    """
    for name, value in weights.items():
        # a single weight is the argument `weight`, several are named after their terms
        argument = "weight" if len(weights) == 1 else f"{name}_weight"
        check(argument, value, 0 <= value < inf, "at least 0 and finite")
    kept = {name: float(value) for name, value in weights.items() if value > 0}
    check("weights", weights, bool(kept), "above 0 for a term that has a branch")
    return kept


def widen(feature: Tensor) -> Tensor:
    """The feature in float32, or as it is if its type is wider."""
    return feature.to(torch.promote_types(feature.dtype, torch.float32))


def check(name: str, value: object, fits: bool, expected: str) -> None:
    """ValueError that names argument, value and expectation, unless the value `fits`."""
    if not fits:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
