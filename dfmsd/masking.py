"""Feature → attention → keep masks, over space and over channels.

Attention averages to one, so that "2" reads as "twice as attended as the mean" on every level. A
keep mask is 1 where the student's feature stays visible and 0 where it is hidden and has to be
rebuilt. In every function `feature` is (N, C, H, W), `valid` (N, 1, H, W) bool, True inside the
images, None means everywhere, and `temperature` is above 0, low sharpens; ValueError otherwise.
"""

from __future__ import annotations

from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from dfmsd.context import mean_of_cells, softmax_input, widen
from dfmsd.ranges import Positive, Share, check, check_value

Select = Literal["high", "low", "random"]


def spatial_attention(
    feature: Tensor, *, temperature: Positive, valid: Tensor | None = None
) -> Tensor:
    """Attention of each cell, (N, 1, H, W), ≥ 0, mean 1 over a sample's valid cells, 0 in padding.

    `HW · softmax_hw(mean_c |F| / temperature)` of a raw or standardised feature, in float32 or
    better; it depends on the scale of `feature / temperature`. Source: FGD. Choice: the softmax
    runs over valid cells only, so padding takes no share of it.
    """
    _check_attention(feature, temperature)
    score = widen(feature).abs().mean(1, keepdim=True) / temperature
    score = softmax_input(score, valid).flatten(1)
    # a sample without a valid cell gives 0
    count = score.shape[1] if valid is None else valid.sum((1, 2, 3))[:, None]
    return (score.softmax(1) * count).view(feature.shape[0], 1, *feature.shape[2:])


def channel_attention(
    feature: Tensor, *, temperature: Positive, valid: Tensor | None = None
) -> Tensor:
    """Attention of each channel, (N, C, 1, 1), ≥ 0, mean 1 over the channels of each sample.

    `C · softmax_c(mean_hw |F| / temperature)`, the mean over valid cells, in float32 or better.
    Give it the raw feature: after standardising, every channel is about equally strong and the
    ranking unsteady. Source: FGD.
    """
    _check_attention(feature, temperature)
    return (mean_of_cells(widen(feature).abs(), valid) / temperature).softmax(1) * feature.shape[1]


def keep_mask(
    attention: Tensor,
    *,
    ratio: Share | None = None,
    threshold: float | None = None,
    select: Select = "high",
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Keep mask over cells or channels, 0 (hidden) and 1 (visible), as `attention` in shape, dtype.

    With `ratio`, exactly `round(ratio · valid entries)` of each sample are hidden; equal attention
    is hidden in reading order. With `threshold`, entries with attention above it ("high") or below
    it ("low"). Padded cells are never hidden: they stay 1. ValueError for other arguments.

    Choice: a ratio, because a threshold on a softmax hides a different share on every level,
    teacher and image size. Polarity is a switch, because the sources disagree on it.

    Args:
        attention: (N, 1, H, W) over cells, or (N, C, 1, 1) over channels.
        ratio: share to hide, 0..1; give this or `threshold`.
        threshold: attention at which hiding starts.
        select: hide the most attended ("high"), the least attended ("low"), or any ("random", ratio
            only).
        valid: see above, for cells.
        generator: source of the random draw; None takes torch's global one.
    """
    if (ratio is None) == (threshold is None):
        given = f"ratio={ratio}, threshold={threshold}"
        raise ValueError(f"give exactly one of ratio and threshold, got {given}")
    check_value("select", select, Select)
    score = attention.detach().flatten(1)  # (N, K)
    inside = None if valid is None else valid.flatten(1)
    if threshold is not None:
        check("threshold", threshold, isfinite(threshold), "finite")
        check("select", select, select != "random", "'high' or 'low' with a threshold")
        hidden = score > threshold if select == "high" else score < threshold
        hidden = hidden if inside is None else hidden & inside
    else:
        check_value("ratio", ratio, Share)
        if select == "random":
            source = score.device if generator is None else generator.device
            score = torch.rand(score.shape, generator=generator, device=source).to(score.device)
        hidden = _top(-score if select == "low" else score, ratio, inside)
    return (~hidden).to(attention.dtype).view(attention.shape)


def _check_attention(feature: Tensor, temperature: Positive) -> None:
    check("feature", tuple(feature.shape), feature.dim() == 4, "of shape (N, C, H, W)")
    check_value("temperature", temperature, Positive)


def _top(score: Tensor, ratio: float, inside: Tensor | None) -> Tensor:
    """True on the `round(ratio · n)` highest valid entries of each row (N, K); ties in order."""
    if inside is None:
        count: int | Tensor = round(ratio * score.shape[1])
    else:
        score = score.masked_fill(~inside, -torch.inf)
        # float64, so that the half-way cases round as Python's round(ratio * n) does
        count = (inside.sum(1, keepdim=True).double() * ratio).round()
    order = score.argsort(dim=1, descending=True, stable=True)
    position = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, position < count)
