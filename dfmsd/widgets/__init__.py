"""The mask laboratory.

The model, without any browser: settings and maps (`lab`), what the controls may be set to
(`state`), and what they make (`laboratory`, with `counts` and `mosaic`). Views over it: messages
(`session`), the page (`lab.js`, `lab.css`), the widget (`mask_lab`) and the app (`app`, `files`).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """`MaskLab` and `LabError`, imported when asked for: the command line's help needs no torch."""
    homes = {"MaskLab": "dfmsd.widgets.mask_lab", "LabError": "dfmsd.widgets.lab"}
    if name not in homes:
        raise AttributeError(f"dfmsd.widgets has no {name}")
    return getattr(import_module(homes[name]), name)
