"""Figures of detections, feature maps, masks, curves and tables of runs; returned, never shown.

Every function returns a closed `matplotlib` figure: a notebook cell that ends in it shows it once,
a script calls `savefig`. One style for all; the colours are Okabe and Ito's and the maps viridis,
which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dfmsd.charts import bars_figure, curves_figure
from dfmsd.panels import (
    STYLE,
    class_legend,
    draw_boxes,
    extent,
    grid_of,
    panels,
    same_length,
    show_heat,
    show_image,
    value_range,
)

__all__ = [
    "bars_figure",
    "curves_figure",
    "detections_figure",
    "feature_maps_figure",
    "heat_over_image",
    "masks_figure",
    "scene_sheet",
]


@plt.rc_context(STYLE)
def detections_figure(
    images: Sequence[Tensor],
    predictions: Sequence[Mapping[str, Tensor]],
    truths: Sequence[Mapping[str, Tensor]] | None = None,
    *,
    classes: Sequence[str],
    score: float = 0.4,
    columns: int = 4,
    title: str | None = None,
) -> Figure:
    """Figure with one panel per image: found boxes in class colours, true ones thin and dashed.

    Args:
        images: N tensors (3, H, W) or (1, H, W) in 0..1.
        predictions: N dicts of `boxes` (n, 4) xyxy absolute pixels, `labels` (n,) in 1..K and
            `scores` (n,).
        truths: N dicts of `boxes` and `labels`, or None.
        classes: the K names; `classes[0]` belongs to label 1.
        score: boxes that score lower are left out.
        columns: panels in a row.
        title: a line above all panels.

    Raises:
        ValueError: if the lengths differ, an image has another shape, or a label is outside 1..K.
    """
    same_length(images=images, predictions=predictions, truths=truths)
    figure, frames = panels(images, columns, title)
    for index, (axes, image, found) in enumerate(zip(frames, images, predictions, strict=False)):
        show_image(axes, image)
        truth = truths[index] if truths is not None else None
        if truth is not None:
            draw_boxes(axes, truth, classes, dashed=True)
        sure = found["scores"] >= score
        kept = {name: found[name][sure] for name in ("boxes", "labels", "scores")}
        draw_boxes(axes, kept, classes)
        known = f" · {len(truth['boxes'])} true" if truth is not None else ""
        axes.set_title(f"{len(kept['boxes'])} found{known}")
    dashed = "; dashed white: true boxes" if truths is not None else ""
    class_legend(figure, classes, f"found at score ≥ {score:g}{dashed}")
    return figure


@plt.rc_context(STYLE)
def scene_sheet(
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
    *,
    columns: int = 4,
    title: str | None = None,
) -> Figure:
    """Figure with one panel per image and its true boxes in their classes' colours.

    Args:
        images: N tensors (3, H, W) or (1, H, W) in 0..1.
        targets: N dicts of `boxes` (n, 4) xyxy absolute pixels and `labels` (n,) in 1..K.
        classes: the K names; `classes[0]` belongs to label 1.
        columns: panels in a row.
        title: a line above all panels.

    Raises:
        ValueError: if the lengths differ, an image has another shape, or a label is outside 1..K.
    """
    same_length(images=images, targets=targets)
    figure, frames = panels(images, columns, title)
    for index, (axes, image, target) in enumerate(zip(frames, images, targets, strict=False)):
        show_image(axes, image)
        draw_boxes(axes, target, classes)
        many = len(target["boxes"])
        axes.set_title(f"{target.get('image_id', index)}: {many} object{'s' * (many != 1)}")
    class_legend(figure, classes)
    return figure


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
    figure, (axes,) = panels([image], 1, None, width=4.8)
    shown = show_heat(axes, image, heat, (low, high), smooth=smooth, alpha=alpha)
    axes.set_title(title)
    figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02)
    return figure


@plt.rc_context(STYLE)
def feature_maps_figure(
    images: Tensor | Sequence[Tensor],
    maps: Mapping[str, Tensor | Sequence[Tensor]],
    *,
    title: str | None = None,
    smooth: bool = True,
    alpha: float = 0.7,
) -> Figure:
    """Figure with one row per image: the image, then every detector's map over it.

    A row shares one colour scale, so that its columns can be compared: from its lowest to its
    highest value, drawn at its end.

    Args:
        images: N tensors (3, H, W) in 0..1, or a single one.
        maps: column name (teacher, student, after stage 1 …) → N tensors (h, w), or a single one.
        title: a line above all panels.
        smooth: bilinear between cells instead of blocks.
        alpha: 0 shows the image alone, 1 the map alone.

    Raises:
        ValueError: if the lengths differ, a shape is another, or a map holds NaN or infinity.
    """
    if isinstance(images, Tensor) and images.ndim == 3:
        images, maps = [images], {name: [values] for name, values in maps.items()}
    same_length(images=images, **{f"maps[{name!r}]": values for name, values in maps.items()})
    repeated = [image for image in images for _ in range(len(maps) + 1)]
    figure, frames = panels(repeated, len(maps) + 1, title, text=0.02)
    for row, image in enumerate(images):
        line = frames[row * (len(maps) + 1) : (row + 1) * (len(maps) + 1)]
        scale = value_range([values[row] for values in maps.values()])
        show_image(line[0], image)
        for axes, values in zip(line[1:], maps.values(), strict=True):
            shown = show_heat(axes, image, values[row], scale, smooth=smooth, alpha=alpha)
        figure.colorbar(shown, ax=line, shrink=0.85, pad=0.01, aspect=25)
        for axes, name in zip(line, ["image", *maps], strict=True):
            axes.set_title(name if row == 0 else "")
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
        image: (3, H, W) in 0..1.
        attention: (h, w), any values ≥ 0; its mean is 1 in this project.
        keep: (h, w), 1 = visible, 0 = masked; masked cells are drawn black.
        enhanced: (h, w) attention after strengthening; shares the attention's colour scale.
        boxes: (n, 4) xyxy absolute pixels, drawn thin and dashed on every panel.

    Raises:
        ValueError: if a shape is another, or an attention holds NaN or infinity.
    """
    maps = {"attention of the teacher": attention}
    if enhanced is not None:
        maps["attention, enhanced"] = enhanced
    figure, frames = panels([image] * (len(maps) + 2), len(maps) + 2, None)
    show_image(frames[0], image)
    frames[0].set_title("image")
    for axes, (name, values) in zip(frames[1:], maps.items(), strict=False):
        shown = show_heat(axes, image, values, value_range(list(maps.values())), alpha=0.7)
        axes.set_title(name)
    figure.colorbar(shown, ax=frames[1 : len(maps) + 1], shrink=0.8, pad=0.02)
    show_image(frames[-1], image)
    grid_of(keep, "keep")
    black = np.zeros((*keep.shape, 4))
    black[..., 3] = 0.85 * (keep.detach().cpu().numpy() == 0)
    frames[-1].imshow(black, extent=extent(image), interpolation="nearest")
    visible, cells = int((keep != 0).sum()), keep.numel()
    frames[-1].set_title(f"visible: {visible} of {cells} cells ({visible / cells:.0%})")
    for axes in frames if boxes is not None else ():
        draw_boxes(axes, {"boxes": boxes}, (), dashed=True)
    return figure
