"""Normalise, then CWD: what RTMDet and DAMO-YOLO distil with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from dfmsd.align import standardise
from dfmsd.baselines.base import Level
from dfmsd.baselines.cwd import CWD
from dfmsd.ranges import NotNegative


@dataclass(eq=False, repr=False, kw_only=True)
class NormCWD(CWD):
    """CWD on features with mean 0 and variance 1 per channel: {"divergence"}.

    Source: RTMDet (mmyolo's `configs/rtmdet/distillation`): a 1x1 convolution on the student, batch
    norm of the batch's own statistics and without scale and shift on both sides, then `CWD` with
    tau 1 and weight 1 on each of three levels, summed, and nothing for the last 20 of 300 epochs
    (`method.fade`). Here it is the mean over the levels, so the weight is that of the sum times the
    number of levels. Choice: statistics over valid cells only; the convolution keeps its bias,
    which the norm takes away.

    Args:
        tau: temperature, > 0; high softens.
        weight: on the mean divergence of a channel, > 0.
    """

    weight: NotNegative = 1.0 * 3

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"divergence": unweighted scalar} of one level."""
        student, teacher = (standardise(x, level.valid) for x in (level.student, level.teacher))
        return super().compare(replace(level, student=student, teacher=teacher))
