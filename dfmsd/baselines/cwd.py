"""CWD: each channel as a distribution over the cells, compared by KL divergence; NormCWD."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from dfmsd.align import channel_divergence, standardise
from dfmsd.baselines.base import Baseline, Level
from dfmsd.ranges import NotNegative, Positive


class CWD(Baseline):
    """Channel-wise distillation: {"divergence"}, see `channel_divergence`.

    Source: Shu et al., ICCV 2021; for detection tau = 1 and 10 times the sum over five levels. Here
    it is the mean over the levels, so the weight is that of the sum times the number of levels.
    Published: no adapter. The temperature `tau` is > 0, high softens.
    """

    term = "divergence"
    tau: Positive = 1.0
    weight: NotNegative = 10.0 * 5

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"divergence": unweighted scalar} of one level."""
        student, teacher = level.student, level.teacher
        return {"divergence": channel_divergence(student, teacher, tau=self.tau, valid=level.valid)}


class NormCWD(CWD):
    """CWD on features with mean 0 and variance 1 per channel: {"divergence"}.

    Source: RTMDet (mmyolo's `configs/rtmdet/distillation`): a 1x1 convolution on the student, batch
    norm of the batch's own statistics and without scale and shift on both sides, then `CWD` with
    tau 1 and weight 1 on each of three levels, summed, and nothing for the last 20 of 300 epochs
    (`method.fade`). Here it is the mean over the levels, so the weight is that of the sum times the
    number of levels. Choice: statistics over valid cells only; the convolution keeps its bias,
    which the norm takes away. The arguments are CWD's.
    """

    weight: NotNegative = 1.0 * 3

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"divergence": unweighted scalar} of one level."""
        student, teacher = (standardise(x, level.valid) for x in (level.student, level.teacher))
        return super().compare(replace(level, student=student, teacher=teacher))
