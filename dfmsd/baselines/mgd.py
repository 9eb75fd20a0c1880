"""MGD: hide random cells of the student's feature, rebuild the teacher's whole feature."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dfmsd.baselines.base import Level, Masked
from dfmsd.masking import keep_mask
from dfmsd.ranges import Share, check_value


class MGD(Masked):
    """Masked generative distillation: {"reconstruction"}, the mean squared error of the rebuilt.

    Source: Yang et al., ECCV 2022. Published: `α · Σ (G(A(F_s) · keep) − F_t)² / N`, the sum over
    all elements of all levels, one generator per level, α = 2e-5 and ratio 0.65 for one-stage
    detectors on P3–P7, α = 5e-7 and ratio 0.45 for two-stage ones on P2–P5. Here it is the mean
    over all elements; at 800 x 1216 pixels with 256 channels these α are weights of 103.8 and 10.3.
    Published: adapter="auto". Masks are drawn anew at each call, from torch's global generator.

    With `mask="count"` and `over="levels"` it is `AMD` with select="random" and no gate; the state
    dicts of MGD, `AMD` without gate, `DMKD` without channel branch and `DFMSDLoss` have the same
    names, so that one loads into the next.

    Args:
        mask: "bernoulli", each cell on its own, as published; "count", exactly
            `round(ratio · valid cells)` of each image, from the same draws.
        over: mean over all "elements" of the pyramid, as published, or over "levels" of each
            level's mean.
    """

    ratio: Share = 0.65
    mask: Literal["bernoulli", "count"] = "bernoulli"
    over: Literal["elements", "levels"] = "elements"

    def level_share(self, term: str, level: Level) -> Tensor | None:
        """See `Baseline.level_share`."""
        return level.elements if self.over == "elements" else None

    def keep(self, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """A new random keep mask, (N, 1, H, W) of 0 (hidden) and 1, for a (N, C, H, W)."""
        cells = teacher[:, :1]
        if self.mask == "count":
            return keep_mask(cells, ratio=self.ratio, select="random", valid=valid)
        return bernoulli_keep(cells, ratio=self.ratio, valid=valid)


def bernoulli_keep(
    cells: Tensor,
    *,
    ratio: Share,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Keep mask in the shape and dtype of `cells`: each is 0 (hidden) with probability `ratio`.

    Source: MGD, hidden where a draw from [0, 1) exceeds `1 − ratio`. Choice: padding stays 1.
    `cells` is (N, 1, H, W), its values are not read; the other arguments are `keep_mask`'s.
    """
    check_value("ratio", ratio, Share)
    source = cells.device if generator is None else generator.device
    draw = torch.rand(cells.shape, generator=generator, device=source).to(cells.device)
    hidden = draw > 1 - ratio
    return (~(hidden if valid is None else hidden & valid)).to(cells.dtype)
