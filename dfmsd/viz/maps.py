"""Maps over pictures: feature maps, the levels of a pyramid, and what a keep mask hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from torch import Tensor

from dfmsd.viz.boxes import dash_boxes
from dfmsd.viz.checks import check_entries, check_lengths, value_range, visible
from dfmsd.viz.panels import COLUMNS, STYLE, extent, panels, show_heat, show_image


@plt.rc_context(STYLE)
def feature_maps_figure(
    images: Tensor | Sequence[Tensor],
    maps: Mapping[str, Tensor | Sequence[Tensor]],
    *,
    keeps: Mapping[str, Sequence[Tensor]] | None = None,
    title: str = "",
    smooth: bool = True,
    signed: bool = False,
) -> Figure:
    """Figure with one row per image: the image, then every detector's map over it.

    The columns of a row can be compared: they share one colour scale, from the lowest to the
    highest value of the row, drawn at its end.

    Args:
        images: N tensors (3, H, W) in 0..1, or a single one.
        maps: column name (teacher, student, after stage 1 …) → N tensors (h, w), or a single one.
        keeps: column name → N keep masks (h, w), 1 = visible; the cells that one hides are pale.
        smooth: bilinear between cells instead of blocks.
        signed: a diverging map, white at 0, instead of viridis over the image.
    """
    check_entries("maps", maps)
    if isinstance(images, Tensor) and images.ndim == 3:
        images, maps = [images], {name: [values] for name, values in maps.items()}
    check_lengths(images=images, **{f"maps[{name!r}]": values for name, values in maps.items()})
    heads = ["image", *maps]
    repeated = [image for image in images for _ in heads]
    figure, frames = panels(repeated, len(heads), title, heads=heads, bars=0.5)
    for row, image in enumerate(images):
        line = frames[row * len(heads) : (row + 1) * len(heads)]
        heats = [values[row] for values in maps.values()]
        low, high = value_range(heats)
        far = max(-low, high)
        limits = (-far, far) if signed else (low, high)
        show_image(line[0], image)
        for axes, heat, name in zip(line[1:], heats, maps, strict=True):
            drawn = show_heat(axes, image, heat, limits, smooth, signed=signed)
            if keeps is not None and name in keeps:
                _hide(axes, image, visible(keeps[name][row], f"keeps[{name!r}]"))
        figure.colorbar(drawn, ax=line, shrink=0.85, pad=0.01, aspect=25)
    return figure


@plt.rc_context(STYLE)
def levels_figure(
    image: Tensor, maps: Mapping[str, Mapping[int, Tensor]], *, title: str = ""
) -> Figure:
    """Figure of a feature pyramid: a row per detector, a column per stride, heat over the image.

    Every map has a colour scale of its own, from its lowest to its highest value. The image is
    grey, so that colour means heat. `maps` are name of the detector → stride → (h, w); a stride
    that one lacks leaves a note.
    """
    check_entries("maps", maps)
    for name, levels in maps.items():
        check_entries(f"maps[{name!r}]", levels)
    strides = sorted({stride for levels in maps.values() for stride in levels})
    heads, bars = [f"stride {k}" for k in strides], 0.3 + 0.55 * len(strides)
    repeated = [image] * (len(maps) * len(strides))
    figure, frames = panels(repeated, len(strides), title, heads=heads, bars=bars)
    for row, (name, levels) in enumerate(maps.items()):
        line = frames[row * len(strides) : (row + 1) * len(strides)]
        beside = {"rotation": 90, "ha": "right", "va": "center", "transform": line[0].transAxes}
        line[0].text(-0.03, 0.5, name, **beside)
        for axes, stride in zip(line, strides, strict=True):
            if stride not in levels:
                show_image(axes, torch.full_like(image, 0.95))
                middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
                axes.text(0.5, 0.5, "no such level", color="#444444", **middle)
                continue
            key = f"maps[{name!r}][{stride}]"
            drawn = show_heat(axes, image, levels[stride], (None, None), name=key)
            figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02, aspect=15)
    return figure


@plt.rc_context(STYLE)
def masks_figure(
    image: Tensor,
    attention: Tensor,
    keep: Tensor,
    *,
    enhanced: Tensor | None = None,
    boxes: Tensor | None = None,
) -> Figure:
    """Figure of the image, the teacher's attention (also enhanced, if given) and the visible cells.

    Args:
        attention: (h, w), any values ≥ 0; its mean is 1 in this project.
        keep: (h, w), 1 = visible, 0 = masked; masked cells are hatched.
        enhanced: (h, w) attention after strengthening; shares the attention's colour scale.
        boxes: drawn thin and dashed on every panel, as in `keep_masks_figure`.
    """
    maps = {"attention of the teacher": attention}
    if enhanced is not None:
        maps["attention, enhanced"] = enhanced
    cells = visible(keep, "keep")
    heads = ["image", *maps, f"visible: {cells.sum()} of {cells.size} cells ({cells.mean():.0%})"]
    figure, frames = panels([image] * len(heads), len(heads), "", heads=heads, bars=0.5)
    show_image(frames[0], image)
    limits = value_range(list(maps.values()))
    for axes, values in zip(frames[1:], maps.values(), strict=False):
        drawn = show_heat(axes, image, values, limits)
    figure.colorbar(drawn, ax=frames[1:-1], shrink=0.8, pad=0.02)
    _show_visible(frames[-1], image, cells)
    for axes in frames:
        dash_boxes(axes, boxes)
    return figure


@plt.rc_context(STYLE)
def keep_masks_figure(
    image: Tensor,
    keeps: Mapping[str, Tensor],
    *,
    boxes: Tensor | None = None,
    valid: Tensor | None = None,
    title: str = "",
) -> Figure:
    """Figure with one panel per keep mask: the image with its masked cells hatched.

    Args:
        keeps: name → (h, w), 1 = visible, 0 = masked; the grids may differ.
        boxes: drawn thin and dashed on every panel.
        valid: (h, w) bool of equal grids, False in padding, which is left out of the counts.
    """
    check_entries("keeps", keeps)
    grids = {name: visible(keep, f"keeps[{name!r}]") for name, keep in keeps.items()}
    for name, keep in grids.items():
        if valid is not None and valid.shape != keep.shape:
            raise ValueError(f"valid: got {tuple(valid.shape)}, keeps[{name!r}] is {keep.shape}")
    inside = {name: k if valid is None else k[visible(valid, "valid")] for name, k in grids.items()}
    counts = {name: f"{k.sum()} of {k.size} ({k.mean():.0%})" for name, k in inside.items()}
    heads = [f"{name}: visible {count}" for name, count in counts.items()]
    figure, frames = panels([image] * len(keeps), COLUMNS, title, heads=heads)
    for axes, cells in zip(frames, grids.values(), strict=True):
        _show_visible(axes, image, cells)
        dash_boxes(axes, boxes)
    return figure


def _show_visible(axes: Axes, image: Tensor, cells: np.ndarray) -> None:
    """Draw an image with its cells (h, w) pale and hatched that are not visible."""
    show_image(axes, image)
    _hide(axes, image, cells)


def _hide(axes: Axes, image: Tensor, cells: np.ndarray) -> None:
    """Draw the cells (h, w) that are not visible pale and hatched over what is drawn."""
    pale = np.full((*cells.shape, 4), 0.93)
    pale[..., 3] = 0.8 * ~cells
    axes.imshow(pale, extent=extent(image), interpolation="nearest")
    height, width = (size / count for size, count in zip(image.shape[1:], cells.shape, strict=True))
    squares = [
        [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
        for y, x in np.argwhere(~cells) * (height, width)
    ]
    if squares:
        outline = Path.make_compound_path(*(Path(square, closed=True) for square in squares))
        style = {"facecolor": "none", "edgecolor": "#8a8a8a", "linewidth": 0, "hatch": "////"}
        axes.add_patch(PathPatch(outline, **style))
