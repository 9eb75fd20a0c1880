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
from dfmsd.widgets.controls import arrange, make_controls, nearest_stop, path_field
from dfmsd.widgets.counts import Counts, count_cells, report
from dfmsd.widgets.lab import LabError, MaskSettings, Scene, capture_scene, mask_maps
from dfmsd.widgets.mosaic import Backdrop, Panel, four_panels, mosaic, png

_SIDE, _STILL_SIDE, _STILL_COLOURS = 280, 180, 256


class MaskLab(W.VBox):
    """Sliders for a spatial mask, the picture they make, and its numbers.

    Each pair of picture and detector is computed once, at its first visit. With the environment
    variable DFMSD_STATIC=1 a notebook shows a still in place of the sliders. LabError without image
    or detector, or for an image that cannot be shown.

    Args:
        images: name → tensor (3, H, W) in 0..1, or the path of a picture.
        detectors: name → torchvision detector.
        targets: name of an image → its true `boxes`, (n, 4) xyxy in pixels of the image.
        limits: sides in pixels of the image below which objects count as small and as medium.
        size: pixels to which the longer side of a picture from a file is reduced.
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
        for name, given in (("images", images), ("detectors", detectors)):
            if not given:
                raise LabError(f"{name} must hold at least one, got none")
        self._size, self._limits, self._images = size, limits, {}
        self._images = {name: self._open(image) for name, image in images.items()}
        self._detectors, self._targets = dict(detectors), dict(targets or {})
        self._levels = {name: strided_levels(model) for name, model in detectors.items()}
        self._scenes: dict[tuple[str, str], tuple[Scene, Backdrop]] = {}
        self._pair = (next(iter(images)), next(iter(detectors)))
        self._settings = MaskSettings(_nearest(8, self._levels[self._pair[1]]))
        self._controls = make_controls(images, detectors)
        self._path = path_field()
        self._shown = W.Image(format="png", layout=W.Layout(max_width="100%", flex="0 1 auto"))
        self._lines = W.HTML()
        controls = [*self._controls.values(), self._path]
        super().__init__([arrange(controls, self._shown), self._lines])
        self.add_class("mask-lab")
        self.set()
        for control in controls:
            control.observe(self._draw, "value")

    @property
    def scene(self) -> Scene:
        """The chosen picture as the chosen detector sees it."""
        return self._scenes[self._pair][0]

    def values(self) -> dict[str, Any]:
        """Name → value of every control: image, detector, and the fields of `MaskSettings`."""
        return {"image": self._pair[0], "detector": self._pair[1], **asdict(self._settings)}

    def set(self, **values: Any) -> None:
        """Change controls by their names in `values()`, all or none.

        `image` may also be the path of a picture. A detector without the present level brings its
        nearest one, unless `stride` is given. LabError for an unknown name, or a value that its
        control cannot take.
        """
        self._pair, self._settings = self._plan(values)
        self._move_controls()
        self._show()

    def panels(self, **changes: Any) -> dict[str, Tensor]:
        """What `mask_maps` gives now, or after `changes`, named as for `set`; no control moves."""
        pair, settings = self._plan(changes)
        return mask_maps(self._scenes[pair][0], settings)

    def counts(self, **changes: Any) -> Counts:
        """The counts behind the words, see `count_cells`; `changes` as for `panels`."""
        pair, settings = self._plan(changes)
        scene = self._scenes[pair][0]
        return count_cells(scene, mask_maps(scene, settings)["keep"], self._limits)

    def picture(self) -> np.ndarray:
        """The pixels shown, uint8 (H, W, 3)."""
        return self._render()[0]

    def readout(self) -> str:
        """The lines under the picture."""
        return self._render()[1]

    def still(self) -> bytes:
        """A PNG for readers without a kernel: the four panels, and below them four other masks."""
        backdrop = Backdrop(self.scene, side=_STILL_SIDE)
        panels = four_panels(backdrop, self.panels(), self._settings)
        others = (("ratio", 0.2), ("ratio", 0.8), ("select", "low"), ("select", "random"))
        for name, value in others:
            keep = self.panels(**{name: value})["keep"]
            panels.append(Panel(f"the same, {name} {value}", backdrop.draw_mask(keep)))
        return png(mosaic(panels, columns=4), colours=_STILL_COLOURS)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and the still picture for viewers that cannot show it."""
        bundle = super()._repr_mimebundle_(**options)
        bundle["text/plain"] = "Mask laboratory (run the notebook to move the sliders)"
        bundle["image/png"] = base64.b64encode(self.still()).decode()
        if os.environ.get("DFMSD_STATIC") == "1":
            del bundle["application/vnd.jupyter.widget-view+json"]
        return bundle

    def _draw(self, change: Mapping[str, Any]) -> None:
        """The one observer: take over what was moved, then show it; or say why not."""
        if self._quiet:
            return
        moved = self.values()
        for name, control in self._controls.items():
            if control.value != nearest_stop(control, moved[name]):
                moved[name] = control.value
        if change["owner"] is self._path and self._path.value.strip():
            moved["image"] = self._path.value.strip()
        if moved["detector"] != self._pair[1]:
            del moved["stride"]
        try:
            self.set(**moved)
        except (ValueError, RuntimeError) as error:
            self._move_controls()
            self._say(str(error), colour="#b00020")

    def _plan(self, values: Mapping[str, Any]) -> tuple[tuple[str, str], MaskSettings]:
        """Picture and detector, and the settings, after these changes; the scene is ready then."""
        if unknown := values.keys() - self.values().keys():
            names = ", ".join(self.values())
            raise LabError(f"no control {_named(sorted(unknown))}; there are {names}")
        changes = dict(values)
        image = changes.pop("image", self._pair[0])
        detector = changes.pop("detector", self._pair[1])
        if detector not in self._detectors:
            raise LabError(f"detector must be one of {_named(self._detectors)}, got {detector!r}")
        levels = self._levels[detector]
        changes.setdefault("stride", _nearest(self._settings.stride, levels))
        if changes["stride"] not in levels:
            raise LabError(f"stride must be one of {sorted(levels)}, got {changes['stride']!r}")
        settings = replace(self._settings, **changes)
        picture, scenes = self._images.get(image), dict(self._scenes)
        if picture is None:  # a path; another picture of that name may have been seen before
            picture, image = self._open(image), Path(image).name
            scenes = {pair: scene for pair, scene in scenes.items() if pair[0] != image}
        if (image, detector) not in scenes:
            boxes, model = self._targets.get(image, {}).get("boxes"), self._detectors[detector]
            scene = capture_scene(model, picture, boxes, levels=levels)
            scenes[image, detector] = scene, Backdrop(scene, side=_SIDE)
        self._images, self._scenes = {**self._images, image: picture}, scenes
        return (image, detector), settings

    def _open(self, image: Tensor | str | Path) -> Tensor:
        if isinstance(image, Tensor):
            if image.dim() != 3 or image.shape[0] != 3:
                raise LabError(f"images must have shape (3, H, W), got {tuple(image.shape)}")
            return image
        if not isinstance(image, str | Path):
            raise LabError(f"image must be a name or the path of a picture, got {image!r}")
        try:
            return read_image(Path(image).expanduser(), max_size=self._size)
        except ValueError as error:
            known = f", or one of {_named(self._images)}" if self._images else ""
            raise LabError(f"{error}; give the path of a picture{known}") from None

    def _show(self) -> None:
        pixels, text = self._render()
        self._shown.value = png(pixels)
        self._say(text)  # last: who waits for the words sees their picture

    def _render(self) -> tuple[np.ndarray, str]:
        """The pixels shown, and the lines under them."""
        (scene, backdrop), maps = self._scenes[self._pair], self.panels()
        pixels = mosaic(four_panels(backdrop, maps, self._settings), columns=2)
        state = " · ".join([*self._pair, *self._settings.phrases()])
        return pixels, "\n".join([state, *report(scene, maps["keep"], self._limits)])

    def _say(self, text: str, colour: str = "inherit") -> None:
        style = f"white-space: pre-wrap; word-break: normal; font-family: inherit; color: {colour}"
        self._lines.value = f'<pre style="{style}">{html.escape(text)}</pre>'

    def _move_controls(self) -> None:
        """Every control shows the state; the observer keeps still meanwhile."""
        self._quiet = True
        levels = sorted(self._levels[self._pair[1]])
        self._controls["image"].options = tuple(self._images)
        self._controls["stride"].options = tuple((f"stride {level}", level) for level in levels)
        for name, value in self.values().items():
            self._controls[name].value = nearest_stop(self._controls[name], value)
        self._quiet = False


def _named(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))


def _nearest(stride: int, levels: Collection[int]) -> int:
    return min(levels, key=lambda level: abs(math.log2(level / stride)))
