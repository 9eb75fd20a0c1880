"""Experiments: grids of runs, as data. `dfmsd experiment NAME` runs what has no record yet."""

from dfmsd.experiments.grids_few import FEW
from dfmsd.experiments.grids_scenes import SCENES

EXPERIMENTS = SCENES | FEW
