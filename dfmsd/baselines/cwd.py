"""CWD: each channel as a distribution over the cells, compared by KL divergence."""

from __future__ import annotations

from torch import Tensor

from dfmsd.align import Fit, Match, check
from dfmsd.baselines.base import Baseline, Level
from dfmsd.divergence import channel_divergence


class CWD(Baseline):
    """Channel-wise distillation: {"divergence"}, see `channel_divergence`.

    Source: Shu et al., ICCV 2021; for detection tau = 1 and 10 times the sum over five levels. Here
    it is the mean over the levels, so the weight is that of the sum times the number of levels.
    Published: no adapter.

    Args:
        tau: temperature, > 0; high softens.
        weight: on the mean divergence of a channel, > 0.
    """

    def __init__(
        self,
        student_channels: dict[int, int],
        teacher_channels: dict[int, int],
        *,
        tau: float = 1.0,
        adapter: Fit = "conv",
        match: Match = "stride",
        weight: float = 10.0 * 5,
    ) -> None:
        super().__init__(student_channels, teacher_channels, adapter, match, {"divergence": weight})
        check("tau", tau, tau > 0, "more than 0")
        self.tau = tau

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"divergence": unweighted scalar} of one level."""
        student, teacher = level.student, level.teacher
        return {"divergence": channel_divergence(student, teacher, tau=self.tau, valid=level.valid)}
