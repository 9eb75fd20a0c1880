"""The mask laboratory: sliders (`mask_lab`, `controls`) over maps (`lab`), counts and pixels."""

from dfmsd.widgets.lab import LabError as LabError
from dfmsd.widgets.mask_lab import MaskLab as MaskLab
