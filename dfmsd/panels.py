"""Parts of figures: rows of panels, an image, a heat map over it, boxes, a legend of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

WIDTH = 9.5  # inches: 950 pixels at 100 dpi, what a notebook shows on the web without shrinking
# Okabe and Ito's colours without black, which shadows on a picture hide.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "figure.titlesize": 11,
    "image.cmap": "viridis",
}


def same_length(**lists: Sequence | None) -> None:
    """Nothing; raises ValueError unless all lists that are not None have one length above 0."""
    sizes = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(f"{', '.join(sizes)}: got lengths {sizes}, expected equal ones above 0")


def value_range(maps: Sequence[Tensor]) -> tuple[float, float]:
    """Lowest and highest value of all maps; raises ValueError when one is NaN or infinite."""
    low = min(float(values.detach().min()) for values in maps)
    high = max(float(values.detach().max()) for values in maps)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"map: got values from {low} to {high}, expected finite ones")
    return low, high


def grid_of(values: Tensor, name: str) -> np.ndarray:
    """Float array (h, w) of a map; raises ValueError naming it when it has another shape."""
    if values.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected (h, w)")
    return values.detach().float().cpu().numpy()


def picture(image: Tensor) -> np.ndarray:
    """Float array (H, W, 3) in 0..1 of an image (3, H, W) or (1, H, W); raises ValueError else."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image: got shape {tuple(image.shape)}, expected (3, H, W) or (1, H, W)")
    return image.detach().float().cpu().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()


def extent(image: Tensor) -> tuple[float, float, float, float]:
    """Edges (left, right, bottom, top) in the coordinates of boxes: the first corner is (0, 0)."""
    return (0, image.shape[-1], image.shape[-2], 0)


def panels(
    images: Sequence[Tensor],
    columns: int,
    title: str | None,
    *,
    width: float | None = None,
    text: float = 0.3,
) -> tuple[Figure, list[Axes]]:
    """Closed figure and one empty frame per image, as high as the highest image asks.

    `width` is the figure's and `text` the height left for words above each row, in inches.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    ratio = max(image.shape[-2] / image.shape[-1] for image in images)
    width = width or min(WIDTH, 3.2 * columns)
    height = rows * (width / columns * ratio + text) + (0.35 if title else 0) + 0.3
    figure, grid = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained"
    )
    plt.close(figure)
    figure.suptitle(title or "")
    for axes in grid.flat:
        axes.set_axis_off()
    for spare in grid.flat[len(images) :]:
        spare.remove()
    return figure, list(grid.flat)[: len(images)]


def show_image(axes: Axes, image: Tensor, *, grey: bool = False) -> None:
    """Draw an image into a panel, in colour or grey; its first pixel's corner is (0, 0)."""
    pixels = picture(image)
    shown = pixels.mean(-1) if grey else pixels
    axes.imshow(shown, extent=extent(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def show_heat(
    axes: Axes,
    image: Tensor,
    heat: Tensor,
    limits: tuple[float, float],
    *,
    alpha: float,
    smooth: bool = False,
) -> AxesImage:
    """Draw a map (h, w) over its image turned grey; what comes back feeds a colour bar."""
    show_image(axes, image, grey=True)
    return axes.imshow(
        grid_of(heat, "map"),
        extent=extent(image),
        interpolation="bilinear" if smooth else "nearest",
        alpha=alpha,
        vmin=limits[0],
        vmax=limits[1],
    )


def draw_boxes(
    axes: Axes,
    found: Mapping[str, Tensor],
    classes: Sequence[str],
    *,
    dashed: bool = False,
) -> None:
    """Draw `boxes` (n, 4), xyxy in pixels, in class colours, named where there are `scores`.

    `dashed` ones are thin and white, whatever their class.

    Raises:
        ValueError: if one of `labels` is outside 1..K.
    """
    boxes = found["boxes"].detach().cpu().tolist()
    labels = found["labels"].tolist() if "labels" in found else [None] * len(boxes)
    scores = found["scores"].tolist() if "scores" in found else [None] * len(boxes)
    for (left, top, right, bottom), label, score in zip(boxes, labels, scores, strict=True):
        if label is not None and not 1 <= label <= len(classes):
            raise ValueError(f"labels: got {label}, expected 1..{len(classes)} (the classes)")
        colour = "white" if dashed else class_colour(label)
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour)
        frame.set(linestyle=(0, (3, 2)) if dashed else "-", linewidth=1.0 if dashed else 1.6)
        # A dark rim keeps every colour visible on every background.
        frame.set_path_effects([withStroke(linewidth=2.2 if dashed else 3.0, foreground="#202020")])
        axes.add_patch(frame)
        if score is not None:
            _tag(axes, (left, top, right), f"{classes[label - 1]} {score:.2f}", colour)


def _tag(axes: Axes, edges: tuple[float, float, float], text: str, colour: str) -> None:
    """Write `text` above a box, inside it at the image's upper edge; leftwards at its right."""
    left, top, right = edges
    width, height = max(axes.get_xlim()), max(axes.get_ylim())
    above, early = top > 0.09 * height, left < 0.55 * width
    style = {"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.9}
    axes.text(
        max(left, 0) if early else min(right, width),
        top if above else max(top, 0),
        text,
        fontsize=7,
        color="white" if sum(to_rgb(colour)) < 1.35 else "black",
        ha="left" if early else "right",
        va="bottom" if above else "top",
        bbox=style,
        clip_on=True,
    )


def class_colour(label: int) -> str:
    """Colour of class `label` (1..K), as #rrggbb; more than seven classes share colours."""
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def class_legend(figure: Figure, classes: Sequence[str], title: str | None = None) -> None:
    """Write a line of words and the classes' names and colours below all panels."""
    handles = [
        Patch(color=class_colour(label), label=name) for label, name in enumerate(classes, start=1)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(classes), 6), title=title
    )
