"""Plots of values: channels, points, a matrix, bars of parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dfmsd.viz.boxes import ink
from dfmsd.viz.charts import COLOURS, MARKERS, chart, legend_right, name_rows, write_right
from dfmsd.viz.checks import check_entries, grid_of, value_range
from dfmsd.viz.panels import SIGNED, STYLE, WIDTH, wrap

HATCHED = 100  # channels; on thinner bars a hatch hides the grey


@plt.rc_context(STYLE)
def channels_figure(
    attention: Mapping[str, Tensor], *, keep: Tensor | None = None, title: str = ""
) -> Figure:
    """Figure of channel attention: a row of bars per name, in channel order, a line at the mean 1.

    Args:
        attention: name → (C,), values ≥ 0; C may differ.
        keep: (C,), 1 = visible; masked channels are grey, hatched when wide. None masks none.
    """
    check_entries("attention", attention)
    rows = {name: vector(values, f"attention[{name!r}]") for name, values in attention.items()}
    visible = None if keep is None else vector(keep, "keep")
    if visible is not None and not np.isin(visible, (0, 1)).all():
        raise ValueError(f"keep: got values up to {visible.max():g}, expected only 0 and 1")
    for name, values in rows.items():
        if values.min() < 0:
            raise ValueError(f"attention[{name!r}]: got {values.min():g}, expected values from 0")
        if visible is not None and len(visible) != len(values):
            sizes = f"got {len(visible)} channels, expected the {len(values)} of {name!r}"
            raise ValueError(f"keep: {sizes}")
    size = (WIDTH, 0.5 + 1.5 * len(rows))
    figure, grid = plt.subplots(len(rows), 1, figsize=size, squeeze=False, layout="constrained")
    plt.close(figure)
    figure.suptitle(wrap(title, 0.8 * WIDTH))
    for axes, (name, values) in zip(grid[:, 0], rows.items(), strict=True):
        blue = np.ones(len(values), bool) if visible is None else visible == 1
        channels = np.arange(len(values))
        axes.bar(channels[blue], values[blue], width=0.8, color=COLOURS[0])
        masked = {"color": "#BBBBBB", "edgecolor": "white", "linewidth": 0}  # the hatch is white
        masked["hatch"] = "/////" if len(values) <= HATCHED else ""
        axes.bar(channels[~blue], values[~blue], width=0.8, **masked)
        axes.axhline(1, color="#222222", linewidth=0.8, linestyle="--")
        count = f": visible {blue.sum()} of {len(values)} (blue)"
        axes.set_title(name if visible is None else name + count)
        axes.set(xlim=(-0.7, len(values) - 0.3), ylabel="attention")
    axes.set_xlabel("channel (dashed: the mean, 1)")
    return figure


@plt.rc_context(STYLE)
def scatter_figure(
    points: Mapping[str, tuple[Tensor, Tensor]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    diagonal: bool = False,
) -> Figure:
    """Figure of named clouds of points, each with its own colour and marker.

    `points` are name → (x, y), both (n,); the `diagonal` is a dashed line where x = y.
    """
    check_entries("points", points)
    figure, axes = chart(3.8, title)
    ends = []
    for index, (name, (x, y)) in enumerate(points.items()):
        across, up = vector(x, f"points[{name!r}] x"), vector(y, f"points[{name!r}] y")
        if len(across) != len(up):
            raise ValueError(f"points[{name!r}]: got {len(across)} x and {len(up)} y, not as many")
        ends += [across.min(), up.min(), across.max(), up.max()]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.scatter(across, up, s=22, color=colour, marker=marker, alpha=0.7, label=name)
    if diagonal:
        line = [min(ends), max(ends)]
        axes.plot(line, line, color="#666666", linestyle="--", linewidth=1, zorder=1)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    legend_right(axes)
    return figure


@plt.rc_context(STYLE)
def matrix_figure(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    limits: tuple[float, float] | None = None,
    digits: int = 2,
    signed: bool = False,
) -> Figure:
    """Figure of a matrix as colours, each cell with its number.

    Args:
        values: (R, C), for R names of rows and C of columns.
        limits: lowest and highest value of the colours; None takes the matrix's own.
        signed: a diverging map, white at 0, instead of viridis.
    """
    if tuple(values.shape) != (len(rows), len(columns)) or not values.numel():
        shape = f"({len(rows)}, {len(columns)}), the names of rows and columns, above 0"
        raise ValueError(f"values: got shape {tuple(values.shape)}, expected {shape}")
    low, high = value_range([values], "values")
    if limits is not None:
        low, high = limits
    elif signed:
        low, high = -max(-low, high), max(-low, high)
    table = grid_of(values, "values")
    heads = [wrap(name, 1.1) for name in columns]
    side = 0.075 * max(map(len, rows))
    cell = max(0.75, 0.08 * max(len(word) for head in heads for word in head.split("\n")))
    width = min(WIDTH, side + 1.0 + cell * len(columns))
    lines = max(head.count("\n") for head in heads)
    figure, axes = chart(0.75 + 0.15 * lines + 0.36 * len(rows), width=width)
    figure.suptitle(wrap(title, 0.9 * width), fontsize=9)
    cmap = SIGNED if signed else "viridis"
    drawn = axes.imshow(table, cmap=cmap, vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        colour = ink(drawn.to_rgba(value))
        axes.text(column, row, f"{value:z.{digits}f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), heads)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axes, pad=0.02)
    return figure


@plt.rc_context(STYLE)
def stacked_figure(
    parts: Mapping[str, Mapping[str, float]], *, xlabel: str, title: str = ""
) -> Figure:
    """Figure of one bar per row, stacked from its parts, each with its value where it fits.

    Beside the bar stands its sum.

    Args:
        parts: row (a setting) → part (a term of the loss) → value ≥ 0. A part keeps its colour in
            every row; one that a row lacks is left out there.
    """
    check_entries("parts", parts)
    for row, terms in parts.items():
        check_entries(f"parts[{row!r}]", terms)
        for name, value in terms.items():
            if not 0 <= value < math.inf:
                key = f"parts[{row!r}][{name!r}]"
                raise ValueError(f"{key}: got {value}, expected a finite value from 0")
    figure, axes = chart(0.9 + 0.42 * len(parts), title, width=WIDTH)
    far = max(sum(terms.values()) for terms in parts.values()) or 1.0
    left = np.zeros(len(parts))
    for index, name in enumerate(dict.fromkeys(name for terms in parts.values() for name in terms)):
        values = np.array([terms.get(name, 0.0) for terms in parts.values()], dtype=float)
        colour = COLOURS[index % len(COLOURS)]
        axes.barh(range(len(parts)), values, left=left, height=0.66, color=colour, label=name)
        for row, value in enumerate(values):
            text = f"{value:.2f}"
            if value > 0.013 * len(text) * far:  # the letters' width on the narrowest chart
                middle = left[row] + value / 2
                axes.text(middle, row, text, ha="center", va="center", color=ink(colour))
        left += values
    for row, total in enumerate(left):
        write_right(axes, f"{total:.2f}", (total, row), 4)
    axes.set(xlabel=xlabel, xlim=(0, far * 1.09))
    name_rows(axes, parts)
    legend_right(axes)
    return figure


def vector(values: Tensor, name: str) -> np.ndarray:
    """Float array (n,) of a tensor; ValueError naming it when empty, not 1-D or not finite."""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected (n,), n above 0")
    value_range([values], name)
    return values.detach().cpu().double().numpy()
