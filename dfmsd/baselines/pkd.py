"""PKD: compare features after standardising each channel, which is Pearson's correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from dfmsd.align import Fit
from dfmsd.baselines.base import Baseline, Level
from dfmsd.context import mean_squared_error
from dfmsd.ranges import NotNegative


class PKD(Baseline):
    """Pearson distillation: {"alignment"}, half the mean squared difference of standard scores.

    Source: Cao et al., NeurIPS 2022: per level `mean (z_s − z_t)² / 2`, each channel standardised
    over the whole batch, the levels summed, times 6 (two-stage) or 10 (RetinaNet), on the four
    finest levels. Here it is the mean over the levels, so the weight is that of the sum times the
    number of levels: 40 or 24. Choice: statistics and mean are over valid cells; where the channel
    counts differ a 1x1 convolution adapts the student (PKD has no learned part and needs equal
    counts). The experiments give every method such an adapter (`method.adapter`), PKD too.

    `alignment_loss` is the same but for population statistics and where its `eps` stands.
    """

    term = "alignment"
    adapter: Fit = "auto"
    weight: NotNegative = 10.0 * 4

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"alignment": unweighted scalar} of one level."""
        z_s, z_t = (standard_score(x, level.valid) for x in (level.student, level.teacher))
        return {"alignment": mean_squared_error(z_s, z_t, level.valid) / 2}


def standard_score(feature: Tensor, valid: Tensor | None = None) -> Tensor:
    """`(F − mean) / (std + 1e-6)` per channel over (N, valid H, W), std unbiased; padding is 0.

    Source: PKD. `dfmsd.align.standardise`, with the same arguments, is this project's own form.
    """
    inside = torch.ones_like(feature[:, :1]) if valid is None else valid.to(feature.dtype)
    count = inside.sum()
    mean = (feature * inside).sum((0, 2, 3), keepdim=True) / count
    centred = (feature - mean) * inside
    variance = centred.square().sum((0, 2, 3), keepdim=True) / (count - 1).clamp_min(1)
    # the gradient of a square root at 0 is infinite: a channel that never fires gets none
    return centred / (variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt() + 1e-6)
