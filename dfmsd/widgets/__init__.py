"""The mask laboratory.

The model, without any browser: settings and maps (`lab`), what the controls may be set to
(`state`), and what they make (`laboratory`, with `counts` and `mosaic`). Views over it: messages
(`session`), the page (`lab.js`, `lab.css`), the widget (`mask_lab`) and the app (`app`).
"""

from dfmsd.widgets.lab import LabError as LabError
from dfmsd.widgets.mask_lab import MaskLab as MaskLab
