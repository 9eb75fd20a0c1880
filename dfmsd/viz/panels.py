"""Parts of figures: checks of what is to be drawn, rows of panels, an image, a heat map over it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

WIDTH = 9.5  # inches: 950 pixels at 100 dpi, what a notebook shows on the web without shrinking
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


def same_length(**lists: Sequence | None) -> None:
    """Nothing; raises ValueError unless all lists that are not None have one length above 0."""
    sizes = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(f"{', '.join(sizes)}: got lengths {sizes}, expected equal ones above 0")


def filled(name: str, values: Mapping) -> None:
    """Nothing; raises ValueError naming the argument when it holds no entry."""
    if not values:
        raise ValueError(f"{name}: got no entry, expected at least one")


def value_range(maps: Sequence[Tensor], name: str = "map") -> tuple[float, float]:
    """Lowest and highest value of all maps; ValueError when one is empty, NaN or infinite."""
    if any(values.numel() == 0 for values in maps):
        raise ValueError(f"{name}: got a tensor without values, expected at least one")
    ends = [float(end) for values in maps for end in values.detach().cpu().double().aminmax()]
    for end in ends:
        if not math.isfinite(end):
            raise ValueError(f"{name}: got values such as {end}, expected finite ones")
    return min(ends), max(ends)


def grid_of(values: Tensor, name: str) -> np.ndarray:
    """Float array (h, w) of a map; raises ValueError naming it when it has another shape."""
    if values.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected (h, w)")
    return values.detach().float().cpu().numpy()


def picture(image: Tensor, name: str = "image") -> np.ndarray:
    """Float array (H, W, 3) in 0..1 of an image (3, H, W) or (1, H, W); raises ValueError else."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"{name}: got shape {tuple(image.shape)}, expected (3, H, W) or (1, H, W)")
    return image.detach().float().cpu().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()


def picture_ranges(images: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of named images (3, H, W) or (1, H, W) and maps (h, w).

    Raises:
        ValueError: naming it, when there is none, a shape is another, or a value NaN or infinite.
    """
    filled("images", images)
    for name, image in images.items():
        if image.ndim != 2 and (image.ndim != 3 or image.shape[0] not in (1, 3)):
            raise ValueError(
                f"images[{name!r}]: got shape {tuple(image.shape)}, "
                "expected (3, H, W), (1, H, W) or (h, w)"
            )
    return {name: value_range([image], f"images[{name!r}]") for name, image in images.items()}


def extent(image: Tensor) -> tuple[float, float, float, float]:
    """Edges (left, right, bottom, top) in the coordinates of boxes: the first corner is (0, 0)."""
    return (0, image.shape[-1], image.shape[-2], 0)


def wrapped(text: str, inches: float) -> str:
    """Words in lines no wider than `inches`; line breaks in `text` stay."""
    letters = max(int(14 * inches), 8)  # of 9 points
    return "\n".join(textwrap.fill(line, letters) for line in text.split("\n"))


def panels(
    images: Sequence[Tensor],
    columns: int,
    title: str | None,
    *,
    heads: Sequence[str] = (),
    width: float | None = None,
    bars: float = 0.0,
    below: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """Closed figure and one frame per image, as high as the highest image asks.

    `heads` are the titles of the first panels, wrapped to their width; `width` is the figure's, of
    which colour bars and words at the side take `bars`, and a legend takes `below`, in inches.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    ratio = max(image.shape[-2] / image.shape[-1] for image in images)
    width = width or min(WIDTH, 3.2 * columns + bars)
    side = (width - bars) / columns
    words = [wrapped(head, side) for head in heads]
    top = wrapped(title or "", 0.8 * width)
    lines = [_lines(words[start : start + columns]) for start in range(0, len(words), columns)]
    text = sum(0.08 + 0.16 * count for count in lines if count) + 0.2 * _lines([top]) + below
    # compressed: what a picture's shape leaves over goes to the margin, not between the panels
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(width, rows * (side * ratio + 0.05) + text + 0.1),
        squeeze=False,
        layout="compressed",
    )
    plt.close(figure)
    figure.suptitle(top)
    for axes in grid.flat:
        axes.set_axis_off()
    for spare in grid.flat[len(images) :]:
        spare.remove()
    frames = list(grid.flat)[: len(images)]
    for axes, word in zip(frames, words, strict=False):
        axes.set_title(word)
    return figure, frames


def _lines(words: Sequence[str]) -> int:
    """Lines of the highest of some words, 0 when all are empty."""
    return max((word.count("\n") + 1 for word in words if word), default=0)


def show_image(
    axes: Axes,
    image: Tensor,
    *,
    grey: bool = False,
    edges: tuple[float, float, float, float] | None = None,
    name: str = "image",
) -> AxesImage:
    """Draw an image into a panel, in colour or grey; its first pixel's corner is (0, 0).

    `edges` are others than the image's own, for one that stands for a larger picture; `name` is
    what an error calls it.
    """
    pixels = picture(image, name)
    shown = pixels.mean(-1) if grey else pixels
    place = {"extent": edges or extent(image), "interpolation": "nearest"}
    return axes.imshow(shown, cmap="gray", vmin=0, vmax=1, **place)


def show_picture(
    axes: Axes,
    image: Tensor,
    limits: tuple[float, float],
    *,
    edges: tuple[float, float, float, float] | None = None,
) -> AxesImage:
    """Draw an image (3, H, W) or (1, H, W), or a map (h, w) in viridis.

    An image beyond 0..1 is scaled from `limits`, its lowest and highest value.
    """
    low, high = limits
    if image.ndim == 2:
        place = {"extent": edges or extent(image), "interpolation": "nearest"}
        return axes.imshow(grid_of(image, "map"), vmin=low, vmax=high, **place)
    beyond = low < 0 or high > 1
    shown = (image.float() - low) / max(high - low, 1e-12) if beyond else image
    return show_image(axes, shown, edges=edges)


def count_visible(keep: Tensor, name: str = "keep") -> tuple[int, int]:
    """How many cells of a mask (h, w) are visible, and how many there are.

    Raises:
        ValueError: naming the mask, when its shape is another or it holds other values than 0, 1.
    """
    cells = grid_of(keep, name)
    low, high = value_range([keep], name)
    if not np.isin(cells, (0, 1)).all():
        raise ValueError(f"{name}: got values from {low:g} to {high:g}, expected only 0 and 1")
    return int(cells.sum()), cells.size


def hide_cells(axes: Axes, image: Tensor, keep: Tensor) -> None:
    """Draw the masked cells of `keep` (h, w) black over an image."""
    hidden = grid_of(keep, "keep") == 0
    black = np.zeros((*hidden.shape, 4))
    black[..., 3] = 0.85 * hidden
    axes.imshow(black, extent=extent(image), interpolation="nearest")


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
