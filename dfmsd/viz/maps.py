"""Maps over pictures: one, a row per image, a row per detector of a pyramid. See `dfmsd.viz`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dfmsd.viz.panels import (
    STYLE,
    filled,
    grid_of,
    panels,
    same_length,
    show_heat,
    show_image,
    value_range,
)


@plt.rc_context(STYLE)
def heat_over_image(
    image: Tensor,
    heat: Tensor,
    *,
    title: str = "",
    limits: tuple[float, float] | None = None,
    smooth: bool = False,
    alpha: float = 0.6,
) -> Figure:
    """Figure of a heat map (h, w) over its image (3, H, W), turned grey so that colour means heat.

    Args:
        image: values in 0..1; the heat covers it from edge to edge.
        heat: any values; one cell is an H/h × W/w block of pixels.
        title: what to see.
        limits: lowest and highest value of the colour bar; None takes the heat's own.
        smooth: bilinear between cells instead of blocks.
        alpha: 0 shows the image alone, 1 the heat alone.

    Raises:
        ValueError: if a shape is another, or the heat holds NaN or infinity.
    """
    low, high = limits or value_range([heat])
    figure, (axes,) = panels([image], 1, None, heads=[title], width=4.8, bars=0.7)
    shown = show_heat(axes, image, heat, (low, high), smooth=smooth, alpha=alpha)
    figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02)
    return figure


@plt.rc_context(STYLE)
def feature_maps_figure(
    images: Tensor | Sequence[Tensor],
    maps: Mapping[str, Tensor | Sequence[Tensor]],
    *,
    title: str | None = None,
    shared: Literal["row", "figure"] = "row",
    smooth: bool = True,
    alpha: float = 0.7,
) -> Figure:
    """Figure with one row per image: the image, then every detector's map over it.

    The columns of a row can be compared: they share one colour scale, from the lowest to the
    highest value of the row or of the figure, drawn at the end.

    Args:
        images: N tensors (3, H, W) in 0..1, or a single one.
        maps: column name (teacher, student, after stage 1 …) → N tensors (h, w), or a single one.
        title: a line above all panels.
        shared: what has one colour scale, a row or the whole figure.
        smooth: bilinear between cells instead of blocks.
        alpha: 0 shows the image alone, 1 the map alone.

    Raises:
        ValueError: if the lengths differ, a shape or `shared` is another, or a map holds NaN or
            infinity.
    """
    if shared not in ("row", "figure"):
        raise ValueError(f"shared: got {shared!r}, expected 'row' or 'figure'")
    filled("maps", maps)
    if isinstance(images, Tensor) and images.ndim == 3:
        images, maps = [images], {name: [values] for name, values in maps.items()}
    same_length(images=images, **{f"maps[{name!r}]": values for name, values in maps.items()})
    repeated = [image for image in images for _ in range(len(maps) + 1)]
    heads = ["image", *maps]
    figure, frames = panels(repeated, len(heads), title, heads=heads, bars=0.5)
    ends = [value_range([values[row] for values in maps.values()]) for row in range(len(images))]
    if shared == "figure":
        ends = [(min(low for low, _ in ends), max(high for _, high in ends))] * len(images)
    for row, (image, scale) in enumerate(zip(images, ends, strict=True)):
        line = frames[row * len(heads) : (row + 1) * len(heads)]
        show_image(line[0], image)
        for axes, values in zip(line[1:], maps.values(), strict=True):
            shown = show_heat(axes, image, values[row], scale, smooth=smooth, alpha=alpha)
        if shared == "row":
            figure.colorbar(shown, ax=line, shrink=0.85, pad=0.01, aspect=25)
    if shared == "figure":
        figure.colorbar(shown, ax=frames, shrink=0.85, pad=0.01, aspect=35)
    return figure


@plt.rc_context(STYLE)
def levels_figure(
    image: Tensor,
    maps: Mapping[str, Mapping[int, Tensor]],
    *,
    title: str | None = None,
    shared: Literal["row", "figure", "panel"] = "panel",
    smooth: bool = False,
    alpha: float = 0.7,
) -> Figure:
    """Figure of a feature pyramid: a row per detector, a column per stride, heat over the image.

    Args:
        image: (3, H, W) or (1, H, W) in 0..1, turned grey so that colour means heat.
        maps: name of the detector → stride → (h, w). A stride that one lacks leaves a note.
        title: a line above all panels.
        shared: what has one colour scale: every panel its own, a row, or the whole figure.
        smooth: bilinear between cells instead of blocks.
        alpha: 0 shows the image alone, 1 the map alone.

    Raises:
        ValueError: if `maps` or a row is empty, `shared` is another word, a shape is another, or a
            map holds NaN or infinity.
    """
    if shared not in ("row", "figure", "panel"):
        raise ValueError(f"shared: got {shared!r}, expected 'row', 'figure' or 'panel'")
    scales = _scales(maps, shared)
    strides = sorted({stride for levels in maps.values() for stride in levels})
    bars = 0.3 + (0.55 * len(strides) if shared == "panel" else 0.5)
    heads = [f"stride {stride}" for stride in strides]
    count = len(maps) * len(strides)
    figure, frames = panels([image] * count, len(strides), title, heads=heads, bars=bars)
    for row, (name, levels) in enumerate(maps.items()):
        line = frames[row * len(strides) : (row + 1) * len(strides)]
        place = {"rotation": 90, "ha": "right", "va": "center", "transform": line[0].transAxes}
        line[0].text(-0.03, 0.5, name, **place)
        for axes, stride in zip(line, strides, strict=True):
            if stride not in levels:
                _absent(axes, image)
                continue
            scale = scales[name, stride]
            shown = show_heat(axes, image, levels[stride], scale, smooth=smooth, alpha=alpha)
            if shared == "panel":
                figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02, aspect=15)
        if shared == "row":
            figure.colorbar(shown, ax=line, shrink=0.85, pad=0.01, aspect=25)
    if shared == "figure":
        figure.colorbar(shown, ax=frames, shrink=0.85, pad=0.01, aspect=35)
    return figure


def _scales(
    maps: Mapping[str, Mapping[int, Tensor]], shared: str
) -> dict[tuple[str, int], tuple[float, float]]:
    """Ends of the colour scale of every map, by name and stride; checks them all."""
    filled("maps", maps)
    groups: dict[object, list[Tensor]] = {}
    for name, levels in maps.items():
        filled(f"maps[{name!r}]", levels)
        for stride, values in levels.items():
            grid_of(values, f"maps[{name!r}][{stride}]")
            value_range([values], f"maps[{name!r}][{stride}]")
            groups.setdefault(_group(shared, name, stride), []).append(values)
    ends = {group: value_range(values) for group, values in groups.items()}
    return {
        (name, stride): ends[_group(shared, name, stride)]
        for name, levels in maps.items()
        for stride in levels
    }


def _group(shared: str, name: str, stride: int) -> object:
    """What is equal for two maps that share a colour scale."""
    return {"panel": (name, stride), "row": name, "figure": None}[shared]


def _absent(axes: Axes, image: Tensor) -> None:
    show_image(axes, torch.full_like(image, 0.95))
    middle = {"ha": "center", "va": "center", "transform": axes.transAxes, "color": "#444444"}
    axes.text(0.5, 0.5, "no such level", **middle)
