"""Figures of means with their intervals: differences, gain against cost. See `dfmsd.viz`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from dfmsd.viz.charts import COLOURS, chart, legend_beside
from dfmsd.viz.panels import STYLE, WIDTH, filled

Ranged = tuple[float, tuple[float, float] | None]
"""A mean, and the ends of its interval; None: it has none."""
CLEAR, OPEN = COLOURS[0], "#888888"


@plt.rc_context(STYLE)
def differences_figure(
    rows: Mapping[str, Ranged | None], *, xlabel: str, title: str = "", digits: int = 1
) -> Figure:
    """Figure of one difference per row with its interval, beside a line at 0.

    Blue and filled: the interval excludes 0; grey and hollow: it holds 0, or there is none.

    Args:
        rows: name → (mean, interval); None: "not run".
        xlabel: what the differences are, with their unit.
        title: what to see.
        digits: decimals of the printed numbers.

    Raises:
        ValueError: if `rows` is empty, a value is NaN or infinite, or lies outside its interval.
    """
    filled("rows", rows)
    for name, row in rows.items():
        _check(f"rows[{name!r}]", row)
    figure, axes = chart(0.8 + 0.27 * len(rows), title, width=WIDTH)
    axes.axvline(0, color="#444444", linewidth=1)
    ends = [0.0]
    for place, row in enumerate(rows.values()):
        beside = {"textcoords": "offset points", "xytext": (6, 0), "va": "center", "fontsize": 8}
        if row is None:
            axes.annotate("not run", (0, place), color="#666666", **beside)
            continue
        mean, (low, high) = row[0], row[1] or (row[0], row[0])
        ends += [low, high]
        clear = row[1] is not None and not low <= 0 <= high
        colour = CLEAR if clear else OPEN
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(mean, place, "o", color=colour, markerfacecolor=colour if clear else "white")
        text = f"{mean:+.{digits}f}" if row[1] else f"{mean:+.{digits}f} (no interval)"
        axes.annotate(text, (high, place), **beside)
    span = max(ends) - min(ends) or 10.0
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xlabel=xlabel, xlim=(min(ends) - 0.03 * span, max(ends) + 0.14 * span))
    axes.grid(axis="x", alpha=0.25)
    return figure


@plt.rc_context(STYLE)
def tradeoff_figure(
    points: Mapping[str, tuple[Ranged, Ranged] | None],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    yardstick: str | None = None,
) -> Figure:
    """Figure of one numbered point per name at (cost, gain), in a cross of both intervals.

    Args:
        points: name → (cost, gain), each (mean, interval); None: "not run", said in the legend.
        xlabel: what the cost is, with its unit.
        ylabel: what the gain is, with its unit.
        title: what to see.
        yardstick: the point to which a dashed line runs from no cost and no gain, and on: who is
            above it gains more for its cost. Without that point there is no line.

    Raises:
        ValueError: if `points` is empty, a value is NaN or infinite, or lies outside its interval.
    """
    filled("points", points)
    figure, axes = chart(4.4, title, width=WIDTH)
    axes.axhline(0, color="#444444", linewidth=1)
    axes.axvline(0, color="#444444", linewidth=1)
    for index, (name, point) in enumerate(points.items()):
        label, colour = f"{index + 1} {name}", COLOURS[index % len(COLOURS)]
        marker = "osD^vP*"[index // len(COLOURS) % 7]
        if point is None:
            axes.errorbar([], [], fmt=marker, color=colour, label=f"{label}: not run")
            continue
        for kind, value in zip(("cost", "gain"), point, strict=True):
            _check(f"points[{name!r}] {kind}", value)
        (x, wide), (y, high) = point
        errors = {"xerr": _sides(x, wide), "yerr": _sides(y, high)}
        line = {"color": colour, "linewidth": 1.1, "capsize": 2}
        axes.errorbar(x, y, fmt=marker, markersize=6, label=label, **errors, **line)
        beside = {"textcoords": "offset points", "xytext": (4, 4), "fontsize": 8.5, "zorder": 5}
        halo = [withStroke(linewidth=2.5, foreground="white")]
        axes.annotate(str(index + 1), (x, y), path_effects=halo, **beside)
    if points.get(yardstick):
        (x, _), (y, _) = points[yardstick]
        axes.axline((0, 0), (x, y), color="#666666", linestyle="--", linewidth=1, zorder=1)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    legend_beside(axes)
    return figure


def _sides(mean: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """How far an interval reaches below and above its mean, as matplotlib wants it."""
    return None if interval is None else [[mean - interval[0]], [interval[1] - mean]]


def _check(name: str, row: Ranged | None) -> None:
    """Nothing; raises ValueError naming the value that is not finite or not in its interval."""
    if row is None:
        return
    mean, (low, high) = row[0], row[1] or (row[0], row[0])
    if not all(map(math.isfinite, (mean, low, high))) or not low <= mean <= high:
        raise ValueError(f"{name}: got {row}, expected finite values, the mean in its interval")
