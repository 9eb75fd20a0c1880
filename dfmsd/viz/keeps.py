"""Figures of keep masks: the attention they come from, and what stays visible. See `dfmsd.viz`."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from dfmsd.viz.boxes import draw_boxes
from dfmsd.viz.panels import (
    STYLE,
    count_visible,
    filled,
    hide_cells,
    panels,
    show_heat,
    show_image,
    value_range,
)


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
        image: (3, H, W) in 0..1.
        attention: (h, w), any values ≥ 0; its mean is 1 in this project.
        keep: (h, w), 1 = visible, 0 = masked; masked cells are drawn black.
        enhanced: (h, w) attention after strengthening; shares the attention's colour scale.
        boxes: (n, 4) xyxy absolute pixels, drawn thin and dashed on every panel.

    Raises:
        ValueError: if a shape is another, an attention holds NaN or infinity, or the mask other
            values than 0 and 1.
    """
    maps = {"attention of the teacher": attention}
    if enhanced is not None:
        maps["attention, enhanced"] = enhanced
    visible, cells = count_visible(keep)
    heads = ["image", *maps, f"visible: {visible} of {cells} cells ({visible / cells:.0%})"]
    figure, frames = panels([image] * len(heads), len(heads), None, heads=heads, bars=0.5)
    show_image(frames[0], image)
    scale = value_range(list(maps.values()))
    for axes, values in zip(frames[1:], maps.values(), strict=False):
        shown = show_heat(axes, image, values, scale, alpha=0.7)
    figure.colorbar(shown, ax=frames[1 : len(maps) + 1], shrink=0.8, pad=0.02)
    show_image(frames[-1], image)
    hide_cells(frames[-1], image, keep)
    for axes in frames if boxes is not None else ():
        draw_boxes(axes, {"boxes": boxes}, (), dashed=True)
    return figure


@plt.rc_context(STYLE)
def keep_masks_figure(
    image: Tensor,
    keeps: Mapping[str, Tensor],
    *,
    boxes: Tensor | None = None,
    title: str | None = None,
    columns: int = 4,
) -> Figure:
    """Figure with one panel per keep mask: the image with its masked cells black.

    Args:
        image: (3, H, W) or (1, H, W) in 0..1.
        keeps: name → (h, w), 1 = visible, 0 = masked; the grids may differ.
        boxes: (n, 4) xyxy absolute pixels, drawn thin and dashed on every panel.
        title: a line above all panels.
        columns: panels in a row.

    Raises:
        ValueError: if `keeps` is empty, a shape is another, or a mask holds other values.
    """
    filled("keeps", keeps)
    heads = []
    for name, keep in keeps.items():
        visible, cells = count_visible(keep, f"keeps[{name!r}]")
        heads.append(f"{name}: visible {visible} of {cells} ({visible / cells:.0%})")
    figure, frames = panels([image] * len(keeps), columns, title, heads=heads)
    for axes, keep in zip(frames, keeps.values(), strict=True):
        show_image(axes, image)
        hide_cells(axes, image, keep)
        if boxes is not None:
            draw_boxes(axes, {"boxes": boxes}, (), dashed=True)
    return figure
