"""The mask laboratory: sliders over `dfmsd.widgets.lab`, drawn by `dfmsd.widgets.mosaic`."""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
from torch import Tensor, nn

from dfmsd.data.images import read_image
from dfmsd.detectors.features import strided_levels
from dfmsd.widgets.controls import arranged, make_controls, path_field, reading, show_value
from dfmsd.widgets.lab import LabError, Scene, Tuning, look, maps
from dfmsd.widgets.mosaic import Backdrop, Panel, four_panels, mosaic, png
from dfmsd.widgets.shares import report, shares

_SIDE, _STILL_SIDE, _STILL_COLOURS = 280, 180, 256
_PLACE = ("image", "detector")
_WIDGET = "application/vnd.jupyter.widget-view+json"


class MaskLab(W.VBox):
    """Sliders for a spatial mask, the picture they make, and its numbers.

    Each pair of picture and detector is computed once, at its first visit. `values`, `set`,
    `panels`, `shares`, `picture` and `readout` do in code what hand and eye do in a notebook. With
    the environment variable DFMSD_STATIC=1 a notebook shows a still in place of the sliders.

    Args:
        images: name → tensor (3, H, W) in 0..1, or the path of a picture.
        detectors: name → torchvision detector.
        targets: name of an image → its true `boxes`, (n, 4) xyxy in pixels of the image.
        limits: sides in pixels of the image below which objects count as small and as medium.
        size: pixels to which the longer side of a picture from a file is reduced.

    Raises:
        LabError: without image or detector, or for an image that cannot be shown.
    """

    def __init__(
        self,
        images: Mapping[str, Tensor | str | Path],
        detectors: Mapping[str, nn.Module],
        *,
        targets: Mapping[str, Mapping[str, Tensor]] | None = None,
        limits: tuple[float, float] = (32, 96),
        size: int = 416,
    ) -> None:
        """See the class."""
        for name, given in (("images", images), ("detectors", detectors)):
            if not given:
                raise LabError(f"{name} must hold at least one, got none")
        self._size, self._limits = size, limits
        self._images = {name: self._opened(image) for name, image in images.items()}
        self._detectors, self._targets = dict(detectors), dict(targets or {})
        self._levels = {name: strided_levels(model) for name, model in detectors.items()}
        self._scenes: dict[tuple[str, str], tuple[Scene, Backdrop]] = {}
        self._where = (next(iter(images)), next(iter(detectors)))
        self._tuning = Tuning(_nearest(8, self._levels[self._where[1]]))
        self._controls = make_controls(images, detectors)
        self._path = path_field()
        self._shown = W.Image(format="png", layout=W.Layout(max_width="100%", flex="0 1 auto"))
        self._lines = W.HTML()
        super().__init__(
            [arranged([*self._controls.values(), self._path], self._shown), self._lines]
        )
        self.add_class("mask-lab")
        self._take({})
        self._show()
        for control in (*self._controls.values(), self._path):
            control.observe(self._draw, "value")

    @property
    def scene(self) -> Scene:
        """The chosen picture as the chosen detector sees it."""
        return self._scenes[self._where][0]

    def values(self) -> dict[str, Any]:
        """Name → value of every control: image, detector, and the fields of `Tuning`."""
        return {"image": self._where[0], "detector": self._where[1], **asdict(self._tuning)}

    def set(self, **values: Any) -> None:
        """Change controls by name, all or none.

        Args:
            values: as `values()` names them; `image` may also be the path of a picture. A detector
                without the present level brings its nearest one, unless `stride` is given.

        Raises:
            LabError: for an unknown name, or a value that its control cannot take.
        """
        self._take(values)
        self._show()

    def panels(self, **changes: Any) -> dict[str, Tensor]:
        """The maps shown, each (h, w) over the cells: keep, attention, energy, enhanced.

        With `changes`, named as for `set`, the maps that they would show; no control moves.
        """
        where, tuning = self._plan(changes)
        return maps(self._scenes[where][0], tuning)

    def shares(self, **changes: Any) -> dict[str, tuple[int, int]]:
        """The counts behind the words, see `dfmsd.widgets.shares`; `changes` as for `panels`."""
        where, tuning = self._plan(changes)
        scene = self._scenes[where][0]
        return shares(scene, maps(scene, tuning)["keep"], self._limits)

    def picture(self) -> np.ndarray:
        """The pixels shown, uint8 (H, W, 3)."""
        return mosaic(self._four(self._scenes[self._where][1], self.panels()), columns=2)

    def readout(self) -> str:
        """The lines under the picture."""
        return self._words(self.panels()["keep"])

    def still(self) -> bytes:
        """A PNG for readers without a kernel: the four panels, and below them four other masks."""
        scene = self.scene
        backdrop = Backdrop(scene.image, scene.boxes, side=_STILL_SIDE, window=scene.window)
        shown = self._four(backdrop, self.panels())
        for change in ({"ratio": 0.2}, {"ratio": 0.8}, {"select": "low"}, {"select": "random"}):
            keep = maps(scene, replace(self._tuning, **change))["keep"]
            words = " ".join(f"{name} {value}" for name, value in change.items())
            shown.append(Panel(f"the same, {words}", backdrop.masked(keep)))
        return png(mosaic(shown, columns=4), colours=_STILL_COLOURS)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and the still picture for viewers that cannot show it."""
        bundle = super()._repr_mimebundle_(**options)
        bundle["text/plain"] = "Mask laboratory (run the notebook to move the sliders)"
        bundle["image/png"] = base64.b64encode(self.still()).decode()
        if os.environ.get("DFMSD_STATIC") == "1":
            del bundle[_WIDGET]
        return bundle

    def _draw(self, change: Mapping[str, Any]) -> None:
        """The one observer: take over what was moved, then show it; or say why not."""
        if self._quiet:
            return
        moved = {k: reading(self._controls[k], value) for k, value in self.values().items()}
        if change["owner"] is self._path and self._path.value.strip():
            moved["image"] = self._path.value.strip()
        if moved["detector"] != self._where[1]:
            del moved["stride"]
        try:
            self._take(moved)
            self._show()
        except (ValueError, RuntimeError) as error:
            self._move_controls()
            self._say(str(error), colour="#b00020")

    def _take(self, values: Mapping[str, Any]) -> None:
        """Check all values, then take them over into state and controls."""
        self._where, self._tuning = self._plan(values)
        self._move_controls()

    def _plan(self, values: Mapping[str, Any]) -> tuple[tuple[str, str], Tuning]:
        """Picture and detector, and the settings, after these changes; the scene is ready then."""
        if unknown := values.keys() - self.values().keys():
            names = ", ".join(self.values())
            raise LabError(f"no control {_named(sorted(unknown))}; there are {names}")
        tuned = dict(values)
        image, detector = (tuned.pop(k, v) for k, v in zip(_PLACE, self._where, strict=True))
        if detector not in self._detectors:
            raise LabError(f"detector must be one of {_named(self._detectors)}, got {detector!r}")
        levels = self._levels[detector]
        tuned.setdefault("stride", _nearest(self._tuning.stride, levels))
        if tuned["stride"] not in levels:
            raise LabError(f"stride must be one of {sorted(levels)}, got {tuned['stride']!r}")
        tuning = replace(self._tuning, **tuned)
        new = {}
        if image not in self._images:
            opened, image = self._opened(image), Path(image).name
            new[image] = opened
        scenes = {key: scene for key, scene in self._scenes.items() if key[0] not in new}
        if (image, detector) not in scenes:
            scenes[image, detector] = self._look((self._images | new)[image], image, detector)
        self._images, self._scenes = self._images | new, scenes
        return (image, detector), tuning

    def _look(self, picture: Tensor, image: str, detector: str) -> tuple[Scene, Backdrop]:
        true = self._targets.get(image, {}).get("boxes")
        model, levels = self._detectors[detector], self._levels[detector]
        scene = look(model, picture, true, levels=levels)
        return scene, Backdrop(scene.image, scene.boxes, side=_SIDE, window=scene.window)

    def _opened(self, image: Tensor | str | Path) -> Tensor:
        if isinstance(image, Tensor):
            if image.dim() != 3 or image.shape[0] != 3:
                raise LabError(f"images must have shape (3, H, W), got {tuple(image.shape)}")
            return image
        if not isinstance(image, str | Path):
            raise LabError(f"image must be a name or the path of a picture, got {image!r}")
        try:
            return read_image(Path(image).expanduser(), max_size=self._size)
        except ValueError as error:
            known = f", or one of {_named(self._images)}" if hasattr(self, "_images") else ""
            raise LabError(f"{error}; give the path of a picture{known}") from None

    def _show(self) -> None:
        """Picture first, words after it: who waits for the words sees their picture."""
        found = self.panels()
        pixels = mosaic(self._four(self._scenes[self._where][1], found), columns=2)
        self._shown.value = png(pixels)
        self._say(self._words(found["keep"]))

    def _say(self, text: str, colour: str = "inherit") -> None:
        style = f"white-space: pre-wrap; word-break: normal; font-family: inherit; color: {colour}"
        self._lines.value = f'<pre style="{style}">{html.escape(text)}</pre>'

    def _four(self, backdrop: Backdrop, found: Mapping[str, Tensor]) -> list[Panel]:
        return four_panels(backdrop, found, by=self._tuning.regions, enhances=self._tuning.enhances)

    def _words(self, keep: Tensor) -> str:
        state = " · ".join([*self._where, *self._tuning.words()])
        return "\n".join([state, *report(self.scene, keep, self._limits)])

    def _move_controls(self) -> None:
        """Every control shows the state; the observer keeps still meanwhile."""
        self._quiet = True
        image, level = self._controls["image"], self._controls["stride"]
        levels = [(f"stride {stride}", stride) for stride in sorted(self._levels[self._where[1]])]
        for control, options in ((image, tuple(self._images)), (level, tuple(levels))):
            if control.options != options:
                control.options = options
        for name, value in self.values().items():
            show_value(self._controls[name], value)
        self._quiet = False


def _named(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))


def _nearest(stride: int, levels: Collection[int]) -> int:
    return min(levels, key=lambda level: abs(math.log2(level / stride)))
