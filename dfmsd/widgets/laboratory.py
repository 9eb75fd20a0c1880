"""`Laboratory`: values of the controls → masks → panels, words and files; no widget, no browser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from dfmsd.widgets.counts import Counts, count_cells, report, sentence
from dfmsd.widgets.lab import STOPS, LabError, Maps, Scene, mask_maps
from dfmsd.widgets.mosaic import (
    Backdrop,
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

_STILL_SIDE, _STILL_COLOURS, _STILL_MARGIN = 180, 128, 8
_masks = lru_cache(maxsize=8)(mask_maps)  # panels, counts and words ask for the same maps


class Laboratory(State):
    """The masks that the present values make: maps, panels, counts, words, files."""

    @property
    def scene(self) -> Scene:
        """The chosen picture as the chosen detector sees it."""
        return self._seen(self._values)[0]

    @property
    def backdrop(self) -> Backdrop:
        """The chosen picture at the size of a panel."""
        return self._seen(self._values)[1]

    def panels(self, **changes: Any) -> Maps:
        """What `mask_maps` gives now, or after `changes`, named as for `set`; no control moves."""
        return self._maps(self._plan(changes))

    def counts(self, **changes: Any) -> Counts:
        """The counts behind the words, see `count_cells`; `changes` as for `panels`."""
        values = self._plan(changes)
        return count_cells(self._seen(values)[0], self._maps(values)["keep"], self._limits)

    def drawn(self) -> list[Panel]:
        """Every panel of the present state: picture, maps, channels, and what stands beside."""
        maps, values = self._maps(self._values), self._values
        others = self._others()
        settings, shape = self.settings(values), maps["keep"].shape
        comparable = [m for _, m in others if m["keep"].shape == shape]
        alike = values["beside"] != LEVELS and comparable
        panels = map_panels(maps, settings, comparable[0]["keep"] if alike else None)
        panels.insert(1, Panel("picture", "picture"))
        feature = self._student(values).features[values["stride"]][0, values["channel"]]
        limits = (float(feature.min()), float(feature.max()))
        caption = f"channel {values['channel']}, standardised"
        panels += [channel_panel(maps, values["channel"])]
        panels += [heat_panel("channel", caption, feature, limits)]
        for label, other in others:
            panels.append(mask_panel("beside", f"keep mask, {label}", other["keep"], maps["keep"]))
            if values["beside"] != LEVELS:
                top = (0.0, float(other["enhanced"].max()))
                caption = f"enhanced attention, {label}"
                panels.append(heat_panel("beside attention", caption, other["enhanced"], top))
        return panels

    def picture(self, *, boxes: bool = True) -> np.ndarray:
        """The panels as one page, uint8 (H, W, 3)."""
        return mosaic(self.backdrop, self.drawn(), columns=4, boxes=boxes)

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
        """A PNG for readers without a kernel: picture and masks, and below them other masks."""
        backdrop = Backdrop(self.scene, side=_STILL_SIDE)
        panels = [panel for panel in self.drawn() if panel.name not in ("picture", "channel")][:6]
        for name, value in (("ratio", 0.2), ("select", "low")):
            keep = self.panels(**{name: value})["keep"]
            panels.append(mask_panel("keep", f"the same, {name} {value}", keep))
        page = mosaic(backdrop, panels, columns=4)[:, :-_STILL_MARGIN]  # its right edge is white
        around = ((_STILL_MARGIN,) * 2, (_STILL_MARGIN, 0), (0, 0))
        page = np.pad(page, around, constant_values=255)
        return png(page, colours=_STILL_COLOURS)

    def gif(self, name: str, *, most: int = 27) -> bytes:
        """An animation of the panels over stops of the slider `name`, at most `most` of them."""
        if name not in STOPS:
            raise LabError(f"name must be a slider, one of {named(STOPS)}, got {name!r}")
        before, pages = self._values, []
        try:
            for stop in list(STOPS[name])[:: math.ceil(len(STOPS[name]) / most)]:
                self._values = self._plan({name: stop})
                pages.append(mosaic(self.backdrop, self.drawn()[:6], columns=3))
        finally:
            self._values = before
        return gif(pages)

    def code(self) -> str:
        """Python that builds the `DFMSDLoss` of these masks, see `MaskSettings.code`."""
        return self.settings().code(len(self.panels()["channels"]))

    def _maps(self, values: Mapping[str, Any]) -> Maps:
        return _masks(self._seen(values)[0], self.settings(values), self._student(values))

    def _others(self) -> list[tuple[str, Maps]]:
        """Label → maps of what stands beside: state A, another detector, or all levels."""
        values, beside = self._values, self._values["beside"]
        if beside == NOTHING:
            return []
        if beside == LEVELS:
            plans = {f"stride {s}": self._plan({"stride": s}) for s in self.options()["stride"]}
        elif beside == PINNED:  # on the picture at hand
            plans = {"A": self._pinned | {"image": values["image"]}}
        else:
            plans = {beside: values | {"detector": beside, "student": beside}}
        return [(label, self._maps(plan)) for label, plan in plans.items()]
