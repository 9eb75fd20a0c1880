"""CWD: each channel as a distribution over the cells, compared by KL divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dfmsd.align import channel_divergence
from dfmsd.baselines.base import Baseline, Level
from dfmsd.ranges import NotNegative, Positive


@dataclass(eq=False, repr=False, kw_only=True)
class CWD(Baseline):
    """Channel-wise distillation: {"divergence"}, see `channel_divergence`.

    Source: Shu et al., ICCV 2021; for detection tau = 1 and 10 times the sum over five levels. Here
    it is the mean over the levels, so the weight is that of the sum times the number of levels.
    Published: no adapter.

    Args:
        tau: temperature, > 0; high softens.
        weight: on the mean divergence of a channel, > 0.
    """

    term: ClassVar[str] = "divergence"
    tau: Positive = 1.0
    weight: NotNegative = 10.0 * 5

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"divergence": unweighted scalar} of one level."""
        student, teacher = level.student, level.teacher
        return {"divergence": channel_divergence(student, teacher, tau=self.tau, valid=level.valid)}
