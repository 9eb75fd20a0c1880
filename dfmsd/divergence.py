"""How far the student's channels are from the teacher's, as distributions over the cells."""

from __future__ import annotations

import torch
from torch import Tensor


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
