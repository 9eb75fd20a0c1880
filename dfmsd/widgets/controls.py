"""The controls of the mask laboratory and their place on the page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import ipywidgets as W

from dfmsd.widgets.lab import CHOICES, STOPS

LABELS = {"image": "picture", "detector": "detector", "stride": "level"}
LABELS |= {"attention_on": "attention on", "temperature": "temperature τ", "ratio": "mask ratio"}
LABELS |= {"select": "select", "cutoff": "cut-off ρ", "strength": "strength β"}
LABELS |= {"regions": "energy in"}
# width of a control and of its label, so that no label is cut
_FORM = {"style": {"description_width": "105px"}, "layout": {"width": "330px"}}


def make_controls(images: Collection[str], detectors: Collection[str]) -> dict[str, W.Widget]:
    """Name → control, in the order of the page; the level's options are still to come."""
    offers = CHOICES | {"image": images, "detector": detectors, "stride": ()}
    controls = {}
    for name, label in LABELS.items():
        if name in STOPS:
            # A browser puts a float slider on its own steps and sends the rounded value back, which
            # can come in after code has set the next one; the number of a stop needs no rounding.
            kind, options = W.SelectionSlider, [(f"{stop:.2f}", stop) for stop in STOPS[name]]
        else:
            kind, options = W.Dropdown, tuple(offers[name])
        controls[name] = kind(description=label, options=options, **_FORM)
    return controls


def path_field() -> W.Text:
    """A field for the path of the reader's own picture, read at Enter."""
    hint = "path of a file, then Enter"
    return W.Text(description="own picture", placeholder=hint, continuous_update=False, **_FORM)


def arrange(controls: Sequence[W.Widget], picture: W.Image) -> W.HBox:
    """Controls beside the picture, or above it where the page is narrow."""
    left = W.VBox(controls, layout=W.Layout(flex="0 0 auto", margin="0 12px 0 0"))
    right = W.Box([picture], layout=W.Layout(flex="1 1 420px", min_width="0"))
    return W.HBox([left, right], layout=W.Layout(flex_flow="row wrap"))


def nearest_stop(control: W.Widget, value: Any) -> Any:
    """Where a control shows `value`: a slider at the nearest of its stops."""
    if not isinstance(control, W.SelectionSlider):
        return value
    return min((stop for _, stop in control.options), key=lambda stop: abs(stop - value))
