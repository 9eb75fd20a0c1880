"""What every baseline does alike: pair the levels, adapt the student, average over the pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn

from dfmsd.align import Adapter, Context, Match, match_levels, pair_strides

Fit = Literal["conv", "identity", "auto"]

# Published sums are turned into means at this size: 256 channels, 800 x 1216 pixels.
ONE_STAGE_CELLS = 100 * 152 + 50 * 76 + 25 * 38 + 13 * 19 + 7 * 10  # P3–P7
TWO_STAGE_CELLS = 200 * 304 + 100 * 152 + 50 * 76 + 25 * 38  # P2–P5
CHANNELS = 256


@dataclass
class Level:
    """One pair of levels, ready to compare, in float32 or better.

    Attributes:
        key: the student's stride, as submodules are named.
        student: (N, C_t, H, W), adapted.
        teacher: (N, C_t, H, W), detached.
        valid: (N, 1, H, W) bool, True inside the images; None when no image is padded.
    """

    key: str
    student: Tensor
    teacher: Tensor
    valid: Tensor | None

    @property
    def elements(self) -> Tensor:
        """How many elements of the level count, a scalar."""
        if self.valid is None:
            return torch.tensor(float(self.teacher.numel()), device=self.teacher.device)
        return self.valid.sum() * float(self.teacher.shape[1])


class Baseline(nn.Module):
    """The base of all baselines: it stores the weights and makes the levels.

    Args:
        student_channels: stride → C_s.
        teacher_channels: stride → C_t.
        adapter: "conv", a 1x1 convolution per level; "identity", nothing; "auto", a convolution
            where the counts differ.
        match: "stride" or "index", see `pair_strides`.
        weights: term → weight, ≥ 0; a term of weight 0 is off.

    Raises:
        ValueError: when an argument is out of range, no level is in common, or every term is off.
    """

    def __init__(
        self,
        student_channels: dict[int, int],
        teacher_channels: dict[int, int],
        *,
        adapter: Fit,
        match: Match,
        weights: dict[str, float],
    ) -> None:
        """See the class."""
        super().__init__()
        kinds = ("conv", "identity", "auto")
        check("adapter", adapter, adapter in kinds, f"one of {kinds}")
        for name, value in weights.items():
            # a single weight is the argument `weight`, several are named after their terms
            argument = "weight" if len(weights) == 1 else f"{name}_weight"
            check(argument, value, 0 <= value < inf, "at least 0 and finite")
        self.weights = {name: float(value) for name, value in weights.items() if value > 0}
        check("weights", weights, bool(self.weights), "above 0 for at least one term")
        self.match = match
        self.pairs = pair_strides(student_channels, teacher_channels, match)
        self.adapters = nn.ModuleDict()
        self.channels: dict[str, int] = {}  # key of a level → C_t
        for ours, theirs in self.pairs:
            counts = student_channels[ours], teacher_channels[theirs]
            kind = adapter
            if adapter == "auto":
                kind = "identity" if counts[0] == counts[1] else "conv"
            self.adapters[str(ours)] = Adapter(*counts, kind)
            self.channels[str(ours)] = counts[1]

    def levels(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], context: Context
    ) -> list[Level]:
        """The pairs of levels, finest first.

        Features are stride → (N, C, H, W), `context` is the batch behind them; levels that the
        method was not built for are ignored. ValueError when one it was built for is missing.
        """
        ours, theirs = ([pair[side] for pair in self.pairs] for side in (0, 1))
        for name, strides, given in (("student", ours, student), ("teacher", theirs, teacher)):
            check(name, sorted(given), set(strides) <= set(given), f"features at {strides}")
        matched = match_levels(
            {s: student[s] for s in ours}, {s: teacher[s] for s in theirs}, self.match
        )
        return [
            Level(
                str(stride),
                _wide(self.adapters[str(stride)](feature)),
                _wide(goal.detach()),
                context.valid(goal) if context.padded else None,
            )
            for stride, feature, goal in matched
        ]


def over_levels(losses: list[Tensor]) -> Tensor:
    """The mean of one scalar per level: every level counts alike."""
    return torch.stack(losses).mean()


def over_elements(losses: list[Tensor], counts: list[Tensor]) -> Tensor:
    """The mean over all elements of the pyramid, from the mean of each level.

    It is what a published sum over all elements divides into: fine levels count more.

    Args:
        losses: one scalar per level, a mean over that level's elements.
        counts: how many elements each of those means is over.
    """
    share = torch.stack(counts)
    return (torch.stack(losses) * share).sum() / share.sum().clamp_min(1)


def check(name: str, value: object, fits: bool, expected: str) -> None:
    """None; ValueError naming argument, value and expectation unless it `fits`."""
    if not fits:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _wide(feature: Tensor) -> Tensor:
    return feature.to(torch.promote_types(feature.dtype, torch.float32))
