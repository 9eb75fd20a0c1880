"""FitNet: imitate the teacher's feature, element by element; ScoreL2: where it sees objects."""

from __future__ import annotations

from torch import Tensor, nn

from dfmsd.baselines.base import Baseline, Level
from dfmsd.context import mean_squared_error, widen
from dfmsd.ranges import NotNegative, check


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


class ScoreL2(Baseline):
    """Feature imitation weighted by the teacher's scores: {"imitation"}.

    Source: Ultralytics' `distill_model` (2026): per level `Σ s (P(F_s) − F_t)² / (C Σ s + 1e-9)`
    over the batch, s the teacher's highest class score at a cell, P = conv1x1 – ReLU – conv1x1; the
    sum over three levels times 6, beside a detector's own losses. Here it is the mean over the
    levels, so the weight is that of the sum times the number of levels. The first convolution of P
    is the adapter; with adapter="identity" P is ReLU – conv1x1. Choice: a two-stage teacher's
    scores are its objectness (see `dfmsd.detectors.features.score_maps`); padding scores 0.
    """

    needs_scores = True  # `Distiller` then gives `Context.scores`
    term = "imitation"
    weight: NotNegative = 6.0 * 3

    def __post_init__(self) -> None:
        """Check the settings, build the modules."""
        super().__post_init__()
        self.teacher_strides = {str(stride): other for stride, other in self.pairs}
        layers = {k: nn.Sequential(nn.ReLU(), nn.Conv2d(c, c, 1)) for k, c in self.channels.items()}
        self.projections = nn.ModuleDict(layers)

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"imitation": unweighted scalar} of one level; ValueError without the level's scores."""
        scores, stride = level.context.scores or {}, self.teacher_strides[level.key]
        check("context.scores", sorted(scores), stride in scores, f"with a map of stride {stride}")
        score = scores[stride] if level.valid is None else scores[stride] * level.valid
        error = (widen(self.projections[level.key](level.student)) - level.teacher).square()
        total = (score * error.sum(1, keepdim=True)).sum()
        return {"imitation": total / (error.shape[1] * score.sum() + 1e-9)}
