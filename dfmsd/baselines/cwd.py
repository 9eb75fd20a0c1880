"""CWD: each channel as a distribution over the cells, compared by KL divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from dfmsd.align import Fit, Match, check
from dfmsd.baselines.base import Baseline, Level


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


def channel_divergence(
    student: Tensor, teacher: Tensor, *, tau: float, valid: Tensor | None = None
) -> Tensor:
    """Scalar `τ² · mean_(n, c) KL(softmax_hw(F_t / τ) ‖ softmax_hw(F_s / τ))`, nats, ≥ 0.

    It does not see an offset of a channel. Source: CWD. Choice: padding takes no part in the
    softmax.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W).
        tau: temperature, > 0.
        valid: (N, 1, H, W) bool, True inside the images; None means everywhere.
    """

    def log_share(feature: Tensor) -> Tensor:
        logits = feature if tau == 1 else feature / tau
        if valid is not None:
            # the lowest finite number, not -inf: 0 · (−inf + inf) would be NaN
            logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
        return logits.flatten(2).log_softmax(2)  # (N, C, HW)

    log_t = log_share(teacher)
    # in this order the gradient needs no pass of its own for a minus sign
    total = -(log_t.exp() * (log_share(student) - log_t)).sum()
    return total * tau**2 / (student.shape[0] * student.shape[1])
