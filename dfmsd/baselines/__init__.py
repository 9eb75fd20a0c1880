"""Published feature distillation methods beside `DFMSDLoss`, called the same way.

Each is built and called as `Baseline` says; it returns named, unweighted scalars in per-element
units, and `weights` holds the published weights converted to those units. On a batch without
padding each is its publication's formula; padding is never hidden and never scored. `PseudoLabels`
is the rival without features: it changes what the student's own losses aim at.
"""

from __future__ import annotations

from torch import nn

from dfmsd.baselines.amd import AMD
from dfmsd.baselines.cwd import CWD, NormCWD
from dfmsd.baselines.dmkd import DMKD
from dfmsd.baselines.fgd import FGD
from dfmsd.baselines.fitnet import FitNet, ScoreL2
from dfmsd.baselines.mgd import MGD
from dfmsd.baselines.pkd import PKD
from dfmsd.baselines.pseudo_labels import PseudoLabels as PseudoLabels

BASELINES: dict[str, type[nn.Module]] = {
    method.__name__.lower(): method for method in (FitNet, MGD, AMD, DMKD, PKD, FGD, CWD)
}
BASELINES |= {"norm_cwd": NormCWD, "score_l2": ScoreL2}
