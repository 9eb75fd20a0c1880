"""`Laboratory`: values of the controls → masks → panels, words and files; no widget, no browser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from PIL import Image

from dfmsd.widgets.counts import Counts, count_cells, report, sentence
from dfmsd.widgets.lab import STOPS, LabError, Maps, Scene, mask_maps
from dfmsd.widgets.mosaic import (
    Panel,
    channel_panel,
    gif,
    heat_panel,
    map_panels,
    mask_panel,
    mosaic,
    png,
)
from dfmsd.widgets.state import LEVELS, NOTHING, PINNED, State, named

_STILL_SIDE, _STILL_COLOURS, _STILL_BOXES = 178, 128, 12
_masks = lru_cache(maxsize=8)(mask_maps)  # panels, counts and words ask for the same maps


class Laboratory(State):
    """The masks that the present values make: maps, panels, counts, words, files."""

    @property
    def scene(self) -> Scene:
        """The chosen picture as the chosen detector sees it."""
        return self._seen(self._values)

    def panels(self, **changes: Any) -> Maps:
        """What `mask_maps` gives now, or after `changes`, named as for `set`; no control moves."""
        return self._maps(self._plan(changes))

    def counts(self, **changes: Any) -> Counts:
        """The counts behind the words, see `count_cells`; `changes` as for `panels`."""
        values = self._plan(changes)
        return count_cells(self._seen(values), self._maps(values)["keep"], self._limits)

    def drawn(self, **changes: Any) -> list[Panel]:
        """Picture, maps, channels, and what stands beside; `changes` as for `panels`."""
        values = self._plan(changes)
        maps, settings = self._maps(values), self.settings(values)
        others = {
            label: (self._maps(v), self._seen(v)) for label, v in self._beside(values).items()
        }
        shape, window = maps["keep"].shape, self._seen(values).window
        alike = [
            m["keep"] for m, s in others.values() if (m["keep"].shape, s.window) == (shape, window)
        ]
        compared = alike[0] if alike and values["beside"] != LEVELS else None
        mask, *attentions = map_panels(maps, settings, compared)
        feature = self._student(values).features[values["stride"]][0, values["channel"]]
        limits, caption = feature.aminmax(), f"channel {values['channel']}, standardised"
        panels = [mask, Panel("picture", "picture"), *attentions]
        panels.append(channel_panel(maps, values["channel"]))
        panels.append(heat_panel("channel", caption, feature, limits))
        for label, (other, scene) in others.items():
            own = maps["keep"] if compared is not None else None
            made = [mask_panel("beside", f"keep mask, {label}", other["keep"], own)]
            if values["beside"] != LEVELS:
                limits, caption = (0, other["enhanced"].max()), f"enhanced attention, {label}"
                made.append(heat_panel("beside attention", caption, other["enhanced"], limits))
            panels += [replace(panel, window=scene.window) for panel in made]
        return panels

    def picture(self, *, boxes: bool = True) -> Image.Image:
        """The panels as one page."""
        return mosaic(self.scene, self.drawn(), columns=4, boxes=boxes)

    def sentence(self) -> str:
        """What both masks hide, in one sentence."""
        return sentence(self.scene, self._maps(self._values), self._limits)

    def readout(self) -> str:
        """The lines under the picture: the sentence, the state, the counts."""
        settings, maps = self.settings(), self._maps(self._values)
        state = " · ".join([self._values["image"], self._values["detector"], *settings.phrases()])
        words = sentence(self.scene, maps, self._limits)
        return "\n".join([words, state, *report(self.scene, maps["keep"], self._limits)])

    def still(self) -> bytes:
        """A PNG for readers without a kernel: picture and masks, and below them other masks.

        They are the mask with another ratio, and the one that stands beside, or else hides the
        opposite cells. Boxes are drawn when they are at most 12.
        """
        beside = self._values["beside"] if self._values["beside"] != LEVELS else NOTHING
        left_out = ("picture", "channel", "beside attention")
        panels = [panel for panel in self.drawn(beside=beside) if panel.name not in left_out]
        others = {"ratio": 0.5 if self._values["ratio"] <= 0.2 else 0.2}
        if beside == NOTHING:
            others["select"] = "high" if self._values["select"] == "low" else "low"
        for name, value in others.items():
            keep = self.panels(**{name: value})["keep"]
            panels.append(mask_panel("keep", f"keep mask, {name} {value}", keep))
        few = len(self.scene.boxes) <= _STILL_BOXES  # more would hide what lies under them
        page = mosaic(self.scene, panels, columns=4, side=_STILL_SIDE, boxes=few)
        return png(page, colours=_STILL_COLOURS)

    def gif(self, name: str, *, most: int = 27) -> bytes:
        """An animation of the panels over stops of the slider `name`, at most `most` of them."""
        if name not in STOPS or most < 1:
            sliders = f"one of {named(STOPS)}, and most at least 1"
            raise LabError(f"name must be a slider, {sliders}, got {name!r}, {most}")
        stops = list(STOPS[name])[:: math.ceil(len(STOPS[name]) / most)]
        pages = [self.drawn(**{name: stop, "beside": NOTHING})[:6] for stop in stops]
        return gif([mosaic(self.scene, panels, columns=3) for panels in pages])

    def code(self) -> str:
        """Python that builds the `DFMSDLoss` of these masks, see `MaskSettings.code`."""
        return self.settings().code(len(self.panels()["channels"]))

    def _maps(self, values: Mapping[str, Any]) -> Maps:
        return _masks(self._seen(values), self.settings(values), self._student(values))

    def _beside(self, values: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Label → values of what stands beside: state A, another detector, or all levels."""
        beside = values["beside"]
        if beside == LEVELS:
            strides = sorted(self._levels[values["detector"]])
            return {
                f"stride {stride}": self._plan({**values, "stride": stride, "channel": 0})
                for stride in strides
            }
        pinned = self._pinned or values  # of A masks alone are shown, whichever feature they masked
        state = {**pinned, "image": values["image"], "student": pinned["detector"]}
        found = {NOTHING: {}, PINNED: {"A": state}}
        other = {beside: {**values, "detector": beside, "student": beside}}  # its name is its label
        return found.get(beside, other)
