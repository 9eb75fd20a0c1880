"""FitNet: imitate the teacher's feature, element by element."""

from __future__ import annotations

from torch import Tensor

from dfmsd.baselines.base import Baseline, Level
from dfmsd.context import mean_squared_error
from dfmsd.ranges import NotNegative


class FitNet(Baseline):
    """Feature imitation: {"imitation"}, the mean squared difference to the teacher's feature.

    Source: Romero et al., ICLR 2015, in its form for pyramids beside FreeKD and MasKD: per level
    `mean (A(F_s) − F_t)²`, A a 1x1 convolution even where the counts agree, the levels summed,
    times 5 (RetinaNet), 10 (FCOS) or 1 (Faster R-CNN). Here it is the mean over the levels, so the
    weight is that of the sum times the number of levels: 25 for a RetinaNet with five.
    """

    term = "imitation"
    weight: NotNegative = 5.0 * 5

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"imitation": unweighted scalar} of one level."""
        return {"imitation": mean_squared_error(level.student, level.teacher, level.valid)}
