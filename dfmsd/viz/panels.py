"""Parts of figures: rows of panels, an image, a heat map over it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from dfmsd.viz.checks import Limits, to_array

WIDTH = 9.5  # inches: 950 pixels at 100 dpi, what a notebook shows on the web without shrinking
COLUMNS = 4  # panels in a row
SIGNED = "PuOr"  # orange below 0, white at 0, purple above
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


def extent(image: Tensor) -> tuple[float, float, float, float]:
    """Edges (left, right, bottom, top) in the coordinates of boxes: the first corner is (0, 0)."""
    return (0, image.shape[-1], image.shape[-2], 0)


def wrap(text: str, inches: float) -> str:
    """Words in lines no wider than `inches`; line breaks in `text` stay."""
    letters = max(int(14 * inches), 8)  # of 9 points
    return "\n".join(textwrap.fill(line, letters) for line in text.split("\n"))


def panels(
    images: Sequence[Tensor],
    columns: int,
    title: str,
    *,
    heads: Sequence[str],
    bars: float = 0.0,
    below: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """Closed figure and one panel per image, as high as the highest image asks.

    `heads` are the titles of the first panels, wrapped to their width; colour bars and words at
    the side take `bars` of the figure's width, a legend takes `below` of its height, in inches.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    ratio = max(image.shape[-2] / image.shape[-1] for image in images)
    width = min(WIDTH, 3.2 * columns + bars)
    side = (width - bars) / columns
    heads = [wrap(head, side) for head in heads]
    title = wrap(title, 0.8 * width)
    lines = [_lines(heads[start : start + columns]) for start in range(0, len(heads), columns)]
    text = sum(0.08 + 0.16 * count for count in lines if count) + 0.2 * _lines([title]) + below
    size = (width, rows * (side * ratio + 0.05) + text + 0.1)
    # compressed: what a picture's shape leaves over goes to the margin, not between the panels
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="compressed")
    plt.close(figure)
    figure.suptitle(title)
    for axes in grid.flat:
        axes.set_axis_off()
    for spare in grid.flat[len(images) :]:
        spare.remove()
    for axes, head in zip(grid.flat, heads, strict=False):
        axes.set_title(head)
    return figure, list(grid.flat)[: len(images)]


def _lines(texts: Sequence[str]) -> int:
    """Lines of the highest of some texts, 0 when all are empty."""
    return max((text.count("\n") + 1 for text in texts if text), default=0)


def show_image(axes: Axes, image: Tensor, name: str = "image", *, grey: bool = False) -> AxesImage:
    """Draw an image into a panel, in colour or grey; ValueError naming it when it is none."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"{name}: got shape {tuple(image.shape)}, expected (3, H, W) or (1, H, W)")
    pixels = image.detach().float().cpu().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()
    pixels = pixels.mean(-1) if grey else pixels
    place = {"extent": extent(image), "interpolation": "nearest"}
    return axes.imshow(pixels, "gray", vmin=0, vmax=1, **place)


def show_heat(
    axes: Axes,
    image: Tensor,
    heat: Tensor,
    limits: Limits,
    smooth: bool = False,
    name: str = "map",
    *,
    signed: bool = False,
) -> AxesImage:
    """Draw a map (h, w) over its image turned grey; what comes back feeds a colour bar.

    A signed map is drawn without the image, whose grey would tint its white.
    """
    show_image(axes, image, grey=True)
    place = {"extent": extent(image), "interpolation": "bilinear" if smooth else "nearest"}
    low, high = limits
    colours = {"cmap": SIGNED} if signed else {"alpha": 0.7}
    return axes.imshow(to_array(heat, name), vmin=low, vmax=high, **colours, **place)
