"""Published feature distillation methods beside `DFMSDLoss`, called the same way.

Each is built and called as `Baseline` says; it returns named, unweighted scalars in per-element
units, and `weights` holds the published weights converted to those units. On a batch without
padding each is its publication's formula; padding is never hidden and never scored.
"""

from __future__ import annotations

from torch import nn

from dfmsd.baselines.amd import AMD
from dfmsd.baselines.cwd import CWD
from dfmsd.baselines.dmkd import DMKD
from dfmsd.baselines.fgd import FGD
from dfmsd.baselines.fitnet import FitNet
from dfmsd.baselines.mgd import MGD
from dfmsd.baselines.pkd import PKD

BASELINES: dict[str, type[nn.Module]] = {
    method.__name__.lower(): method for method in (FitNet, MGD, AMD, DMKD, PKD, FGD, CWD)
}

__all__ = ["AMD", "BASELINES", "CWD", "DMKD", "FGD", "MGD", "PKD", "FitNet"]
