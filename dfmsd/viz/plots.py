"""Plots of values: channels, points, a matrix, bars of parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from dfmsd.viz.boxes import ink
from dfmsd.viz.charts import COLOURS, MARKERS, NARROW, chart, legend_right, write
from dfmsd.viz.checks import check_entries, to_array, visible
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
    size = (WIDTH, 0.5 + 1.5 * len(attention))
    figure, grid = plt.subplots(
        len(attention), 1, figsize=size, squeeze=False, layout="constrained"
    )
    plt.close(figure)
    figure.suptitle(wrap(title, 0.8 * WIDTH))
    for axes, (name, channels) in zip(grid[:, 0], attention.items(), strict=True):
        values = to_array(channels, f"attention[{name!r}]", "(n,)")
        blue = values >= 0 if keep is None else visible(keep, "keep", "(n,)")
        if values.min() < 0:
            raise ValueError(f"attention[{name!r}]: got {values.min():g}, expected values from 0")
        if len(blue) != len(values):
            sizes = f"got {len(blue)} channels, expected the {len(values)} of {name!r}"
            raise ValueError(f"keep: {sizes}")
        numbers = np.arange(len(values))
        axes.bar(numbers[blue], values[blue], width=0.8, color=COLOURS[0])
        masked = {"color": "#BBBBBB", "edgecolor": "white", "linewidth": 0}  # the hatch is white
        masked["hatch"] = "/////" if len(values) <= HATCHED else ""
        axes.bar(numbers[~blue], values[~blue], width=0.8, **masked)
        axes.axhline(1, color="#222222", linewidth=0.8, linestyle="--")
        note = "" if keep is None else f": visible {blue.sum()} of {len(values)} (blue)"
        axes.set(title=name + note, xlim=(-0.7, len(values) - 0.3), ylabel="attention")
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
    figure, axes = chart((NARROW, 3.8), title, xlabel=xlabel, ylabel=ylabel)
    ends = []
    for index, (name, (x, y)) in enumerate(points.items()):
        sides = {f"points[{name!r}] x": x, f"points[{name!r}] y": y}
        across, up = (to_array(values, side, "(n,)") for side, values in sides.items())
        if len(across) != len(up):
            raise ValueError(f"points[{name!r}]: got {len(across)} x and {len(up)} y, not as many")
        ends += [across.min(), up.min(), across.max(), up.max()]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.scatter(across, up, s=22, color=colour, marker=marker, alpha=0.7, label=name)
    if diagonal:
        line = [min(ends), max(ends)]
        axes.plot(line, line, color="#666666", linestyle="--", linewidth=1, zorder=1)
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
    log: bool = False,
) -> Figure:
    """Figure of a matrix as colours, each cell with its number.

    Args:
        values: (R, C), for R names of rows and C of columns.
        limits: lowest and highest value of the colours; None takes the matrix's own.
        signed: a diverging map, white at 0, instead of viridis.
        log: logarithmic colours, from the lowest value above 0, which one must be; 0 stays white.
    """
    if tuple(values.shape) != (len(rows), len(columns)) or not values.numel():
        shape = f"({len(rows)}, {len(columns)}), the names of rows and columns, above 0"
        raise ValueError(f"values: got shape {tuple(values.shape)}, expected {shape}")
    table = to_array(values, "values")
    far = abs(table).max()
    low, high = limits or ((-far, far) if signed else (table.min(), table.max()))
    if log and not (table.min() >= 0 and far):
        raise ValueError(
            f"values: got {table.min():g} at the least, expected values from 0 for log"
        )
    norm = LogNorm(table[table > 0].min(), high) if log else Normalize(low, high)
    heads = [wrap(name, 1.1) for name in columns]
    side = 0.075 * max(map(len, rows))
    cell = max(0.95, 0.08 * max(len(word) for head in heads for word in head.split("\n")))
    width = min(WIDTH, side + 1.0 + cell * len(columns))
    lines = max(head.count("\n") for head in heads)
    figure, axes = chart((width, 0.75 + 0.15 * lines + 0.36 * len(rows)), "")
    axes.grid(False)
    figure.suptitle(wrap(title, 0.9 * width), fontsize=9)
    cmap = SIGNED if signed else "viridis"
    drawn = axes.imshow(table, cmap=cmap, norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        colour = ink(drawn.to_rgba(value)) if value or not log else "black"
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
    figure, axes = chart((WIDTH, 0.9 + 0.42 * len(parts)), title, parts, xlabel=xlabel)
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
        write(axes, f"{total:.2f}", (total, row), (4, 0))
    axes.set_xlim(0, far * 1.09)
    legend_right(axes)
    return figure
