"""Plots of values: channels, points, a matrix, histograms. `dfmsd.viz` is the way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dfmsd.viz.boxes import ink
from dfmsd.viz.charts import COLOURS, chart, legend_beside, mark_values
from dfmsd.viz.panels import SIGNED, STYLE, WIDTH, filled, grid_of, value_range, wrapped

HATCHED = 100  # channels; on thinner bars a hatch hides the grey


@plt.rc_context(STYLE)
def channels_figure(
    attention: Mapping[str, Tensor], *, keep: Tensor | None = None, title: str = ""
) -> Figure:
    """Figure of channel attention: a row of bars per name, in channel order, a line at the mean 1.

    Args:
        attention: name → (C,), values ≥ 0; C may differ.
        keep: (C,), 1 = visible; masked channels are grey, hatched when wide. None masks none.
        title: what to see.

    Raises:
        ValueError: if `attention` is empty, or a shape or a value is wrong.
    """
    filled("attention", attention)
    rows = {name: vector(values, f"attention[{name!r}]") for name, values in attention.items()}
    hidden = None if keep is None else vector(keep, "keep") == 0
    if hidden is not None and not np.array_equal(vector(keep, "keep"), ~hidden):
        raise ValueError(f"keep: got values up to {float(keep.max()):g}, expected only 0 and 1")
    for name, values in rows.items():
        if values.min() < 0:
            raise ValueError(f"attention[{name!r}]: got {values.min():g}, expected values from 0")
        if hidden is not None and len(hidden) != len(values):
            raise ValueError(
                f"keep: got {len(hidden)} channels, expected the {len(values)} of {name!r}"
            )
    size = (WIDTH, 0.5 + 1.5 * len(rows))
    figure, grid = plt.subplots(len(rows), 1, figsize=size, squeeze=False, layout="constrained")
    plt.close(figure)
    figure.suptitle(wrapped(title, 0.8 * WIDTH))
    for axes, (name, values) in zip(grid[:, 0], rows.items(), strict=True):
        shown = np.ones(len(values), bool) if hidden is None else ~hidden
        place = np.arange(len(values))
        axes.bar(place[shown], values[shown], width=0.8, color=COLOURS[0])
        masked = {"color": "#BBBBBB", "edgecolor": "white", "linewidth": 0}  # the hatch is white
        masked["hatch"] = "/////" if len(values) <= HATCHED else ""
        axes.bar(place[~shown], values[~shown], width=0.8, **masked)
        axes.axhline(1, color="#222222", linewidth=0.8, linestyle="--")
        count = f": visible {shown.sum()} of {len(values)} (blue)"
        axes.set_title(name if hidden is None else name + count)
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
    log: bool = False,
) -> Figure:
    """Figure of named clouds of points, each with its own colour and marker.

    Args:
        points: name → (x, y), both (n,).
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        title: what to see.
        diagonal: a dashed line where x = y.
        log: both axes logarithmic; values must be above 0.

    Raises:
        ValueError: if `points` is empty, or a shape or a value is wrong.
    """
    filled("points", points)
    figure, axes = chart(3.8, title)
    low, high = np.inf, -np.inf
    for index, (name, (x, y)) in enumerate(points.items()):
        across, up = vector(x, f"points[{name!r}] x"), vector(y, f"points[{name!r}] y")
        if len(across) != len(up):
            raise ValueError(f"points[{name!r}]: got {len(across)} x and {len(up)} y, not as many")
        low, high = min(low, across.min(), up.min()), max(high, across.max(), up.max())
        if log and low <= 0:
            raise ValueError(f"points[{name!r}]: got {low:g}, expected values above 0 (log)")
        colour, marker = COLOURS[index % len(COLOURS)], "osD^vP*"[index % 7]
        axes.scatter(across, up, s=22, color=colour, marker=marker, alpha=0.7, label=name)
    if diagonal:
        axes.plot([low, high], [low, high], color="#666666", linestyle="--", linewidth=1, zorder=1)
    scale = "log" if log else "linear"
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale=scale, yscale=scale)
    axes.grid(alpha=0.25)
    legend_beside(axes)
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
        values: (R, C), finite.
        rows: R names.
        columns: C names.
        title: what to see.
        limits: lowest and highest value of the colours; None takes the matrix's own.
        digits: decimals of the numbers.
        signed: a diverging map, white at 0, instead of viridis.

    Raises:
        ValueError: if the shape is not (R, C), or a value is NaN or infinite.
    """
    if tuple(values.shape) != (len(rows), len(columns)) or not values.numel():
        raise ValueError(
            f"values: got shape {tuple(values.shape)}, expected ({len(rows)}, {len(columns)}), "
            "the names of rows and columns, above 0"
        )
    low, high = value_range([values], "values")
    if limits is not None:
        low, high = limits
    elif signed:
        low, high = -max(-low, high), max(-low, high)
    table = grid_of(values, "values")
    heads = [wrapped(name, 1.1) for name in columns]
    side = 0.075 * max(map(len, rows))
    cell = max(0.75, 0.08 * max(len(word) for head in heads for word in head.split("\n")))
    width = min(WIDTH, side + 1.0 + cell * len(columns))
    lines = max(head.count("\n") for head in heads)
    figure, axes = chart(0.75 + 0.15 * lines + 0.36 * len(rows), width=width)
    figure.suptitle(wrapped(title, 0.9 * width), fontsize=9)
    shown = axes.imshow(
        table, cmap=SIGNED if signed else "viridis", vmin=low, vmax=high, aspect="auto"
    )
    for (row, column), value in np.ndenumerate(table):
        colour = ink(shown.to_rgba(value))
        axes.text(column, row, f"{value:z.{digits}f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), heads)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, pad=0.02)
    return figure


@plt.rc_context(STYLE)
def histograms_figure(
    values: Mapping[str, Tensor],
    *,
    xlabel: str,
    bins: int = 40,
    marks: Mapping[float, str] | None = None,
    log: bool = False,
    title: str = "",
) -> Figure:
    """Figure of distributions as step histograms on shared bins, in shares of each set's values.

    Args:
        values: name → tensor of any shape, finite.
        xlabel: what the values are, with their unit.
        bins: how many, from the lowest to the highest of all values.
        marks: value → text of a vertical line.
        log: logarithmic shares.
        title: what to see.

    Raises:
        ValueError: if `values` is empty, or a value is NaN or infinite.
    """
    filled("values", values)
    sets = {name: vector(part.flatten(), f"values[{name!r}]") for name, part in values.items()}
    if bins < 1:
        raise ValueError(f"bins: got {bins}, expected at least 1")
    low, high = value_range(list(values.values()), "values")
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    figure, axes = chart(3.4, title)
    for index, (name, part) in enumerate(sets.items()):
        share = np.histogram(part, edges)[0] / len(part)
        colour = COLOURS[index % len(COLOURS)]
        dash = ("-", "--", "-.", ":")[index % 4]
        axes.stairs(share, edges, color=colour, linestyle=dash, linewidth=1.6, label=name)
    mark_values(axes, marks)
    axes.set(xlabel=xlabel, ylabel="share of values", yscale="log" if log else "linear")
    axes.grid(alpha=0.25)
    legend_beside(axes)
    return figure


def vector(values: Tensor, name: str) -> np.ndarray:
    """Float array (n,) of a tensor; ValueError naming it when empty, not 1-D or not finite."""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected (n,), n above 0")
    value_range([values], name)
    return values.detach().cpu().double().numpy()
