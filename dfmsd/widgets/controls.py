"""The controls of the mask laboratory and their place on the page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import ipywidgets as W

from dfmsd.widgets.lab import CHOICES

# about a tenth of an octave apart, R20 of the preferred numbers (ISO 3), in two digits
TEMPERATURES = (0.1, 0.11, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 0.25, 0.28, 0.32, 0.36, 0.4, 0.45)
TEMPERATURES += (0.5, 0.56, 0.63, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 1.8, 2.0)


def make_controls(images: Collection[str], detectors: Collection[str]) -> dict[str, W.Widget]:
    """Name → control, in the order of the page; the level's options are still to come."""
    return {
        "image": _choice("picture", images),
        "detector": _choice("detector", detectors),
        "stride": _choice("level", ()),
        "attention_on": _choice("attention on", CHOICES["attention_on"]),
        "temperature": _slider("temperature τ", TEMPERATURES),
        "ratio": _slider("mask ratio", [k / 100 for k in range(101)]),
        "select": _choice("select", CHOICES["select"]),
        "cutoff": _slider("cut-off ρ", [k / 20 for k in range(1, 21)]),
        "strength": _slider("strength β", [k / 2 for k in range(21)]),
        "regions": _choice("energy in", CHOICES["regions"]),
    }


def path_field() -> W.Text:
    """A field for the path of the reader's own picture, read at Enter."""
    words = {"description": "own picture", "placeholder": "path of a file, then Enter"}
    return W.Text(continuous_update=False, **words, **_form())


def show_value(control: W.Widget, value: Any) -> None:
    """Move a control to `value`, a slider to the stop that is nearest."""
    shown = _stop(control, value)
    if control.value != shown:
        control.value = shown


def reading(control: W.Widget, before: Any) -> Any:
    """The control's value; `before`, if it still stands where that puts it."""
    return before if control.value == _stop(control, before) else control.value


def arranged(controls: Sequence[W.Widget], shown: W.Image) -> W.HBox:
    """Controls beside the picture, or above it where the page is narrow."""
    left = W.VBox(controls, layout=W.Layout(flex="0 0 auto", margin="0 12px 0 0"))
    right = W.Box([shown], layout=W.Layout(flex="1 1 420px", min_width="0"))
    return W.HBox([left, right], layout=W.Layout(flex_flow="row wrap"))


def _stop(control: W.Widget, value: Any) -> Any:
    if not isinstance(control, W.SelectionSlider):
        return value
    return min((stop for _, stop in control.options), key=lambda stop: abs(stop - value))


def _slider(label: str, stops: Sequence[float]) -> W.SelectionSlider:
    """A slider over fixed stops.

    A browser puts a float slider on its own steps and sends the rounded value back, which can come
    in after code has set the next one; the number of a stop needs no rounding.
    """
    options = [(f"{stop:.2f}", stop) for stop in stops]
    return W.SelectionSlider(description=label, options=options, **_form())


def _choice(label: str, options: Collection) -> W.Dropdown:
    return W.Dropdown(description=label, options=tuple(options), **_form())


def _form() -> dict[str, Any]:
    """Width of a control and of its label, so that no label is cut."""
    return {"style": {"description_width": "105px"}, "layout": W.Layout(width="330px")}
