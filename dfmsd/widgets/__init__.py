"""The mask laboratory.

The model, without any browser: settings and maps (`lab`), what the controls may be set to
(`state`), and what they make (`laboratory`, with `counts` and `mosaic`). Views over it: messages
(`session`), the page (`lab.js`, `lab.css`), the widget (`mask_lab`) and the app (`app`, `files`).
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`MaskLab` and `LabError`, imported when asked for: the command line's help needs no torch."""
    if name == "MaskLab":
        from dfmsd.widgets.mask_lab import MaskLab as found
    elif name == "LabError":
        from dfmsd.widgets.lab import LabError as found
    else:
        raise AttributeError(name)
    return found
