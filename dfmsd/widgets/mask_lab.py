"""`MaskLab`: the laboratory in a notebook, as a widget (anywidget brings `lab.js` to the page)."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
from torch import Tensor, nn

from dfmsd.widgets.laboratory import Laboratory
from dfmsd.widgets.session import answer

_HERE = Path(__file__).parent
_VIEW = "application/vnd.jupyter.widget-view+json"


class MaskLab(Laboratory, anywidget.AnyWidget):
    """The laboratory as a widget; each further cell that ends in it shows one more view of it.

    With the environment variable DFMSD_STATIC=1 a notebook shows a still in place of the page.
    Under voila a visitor's page opens no file of the server, whatever `paths` says. The arguments
    and LabError are those of `Laboratory`.
    """

    _esm = _HERE / "lab.js"
    _css = _HERE / "lab.css"

    def __init__(
        self,
        images: Mapping[str, Tensor | str | Path],
        detectors: Mapping[str, nn.Module],
        **options: Any,
    ) -> None:
        anywidget.AnyWidget.__init__(self)
        Laboratory.__init__(self, images, detectors, **options)
        self.paths &= not os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
        self.on_msg(self._hear)
        self._still: dict[str, Any] | None = None

    def set(self, **values: Any) -> None:
        """As `Laboratory.set`; so are the others, and every view shows the result."""
        super().set(**values)
        self._hear(self, {}, [])

    def pin(self) -> None:
        """As `Laboratory.pin`."""
        super().pin()
        self._hear(self, {}, [])

    def reset(self) -> None:
        """As `Laboratory.reset`."""
        super().reset()
        self._hear(self, {}, [])

    def _hear(self, _widget: Any, message: Mapping[str, Any], buffers: Sequence[bytes]) -> None:
        content, files = answer(self, message, buffers)
        self.send(content | {"view": message.get("view")}, files)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and the still picture for viewers that cannot show it."""
        bundle = {"text/plain": "Mask laboratory (run the notebook to move the sliders)"}
        if self._still != self.values():  # one more view of a state needs no second still
            self._still = self.values()
            bundle["image/png"] = base64.b64encode(self.still()).decode()
        if os.environ.get("DFMSD_STATIC") != "1":
            bundle[_VIEW] = {"version_major": 2, "version_minor": 1, "model_id": self.model_id}
        return bundle
