"""Charts of results: scores, differences, gain against cost."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfmsd.viz.checks import check_entries
from dfmsd.viz.panels import STYLE, WIDTH, wrap

# Okabe and Ito's colours, neighbours far apart; without yellow, too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
MARKERS = "osD^vP*"
NARROW = 0.8 * WIDTH
Ranged = tuple[float, tuple[float, float] | None]  # a mean, and its interval's ends, if it has one


def chart(
    size: tuple[float, float], title: str, rows: Collection[str] = (), **labels: str
) -> tuple[Figure, Axes]:
    """Closed figure with one empty chart, (width, height) inches, `rows` named from the top."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    plt.close(figure)
    axes.set(title=wrap(title, 0.8 * size[0]), **labels)
    axes.grid(axis="x" if rows else "both", alpha=0.25)
    if rows:
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure, axes


def write(
    axes: Axes, text: str, point: tuple[float, float], gap: tuple[float, float], **style: Any
) -> None:
    """Write `text` beside a point, `gap` printer's points right of it and above it."""
    axes.annotate(text, point, gap, textcoords="offset points", **{"va": "center", **style})


def legend_right(axes: Axes) -> None:
    """Write the legend right of the chart: there it cannot hide a value."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


@plt.rc_context(STYLE)
def bars_figure(
    rows: Mapping[str, Sequence[float]], *, xlabel: str = "AP", title: str = ""
) -> Figure:
    """Figure of one bar per row, as long as its mean, a dot per seed and the numbers beside it.

    The line around the mean is ± one standard deviation over the seeds (divisor n − 1).
    `rows` are name → the value for every seed; none means "not run".
    """
    check_entries("rows", rows)
    for name, values in rows.items():
        if not all(map(math.isfinite, values)):
            raise ValueError(f"rows[{name!r}]: got {list(values)}, expected finite values")
    figure, axes = chart((NARROW, 0.9 + 0.42 * len(rows)), title, rows, xlabel=xlabel)
    for row, values in enumerate(rows.values()):
        if not values:
            write(axes, "not run", (0, row), (8, 0), color="#666666")
            continue
        mean, colour, lift = statistics.fmean(values), "#666666", np.zeros(1)
        text, right = f"{mean:.1f}  (1 seed)", mean
        axes.barh(row, mean, height=0.62, color=colour, alpha=0.45)
        if len(values) > 1:
            sd, lift = statistics.stdev(values), np.linspace(-0.16, 0.16, len(values))
            axes.errorbar(mean, row, xerr=sd, color=colour, capsize=4, linewidth=1.8)
            text, right = f"{mean:.1f} ± {sd:.1f}  ({len(values)} seeds)", max(*values, mean + sd)
        axes.scatter(values, row + lift, s=16, color="black", zorder=3, linewidths=0)
        write(axes, text, (right, row), (8, 0))
    far = max((value for values in rows.values() for value in values), default=0)
    axes.set_xlim(0, max(far, 1e-9) * 1.32)
    return figure


@plt.rc_context(STYLE)
def differences_figure(
    rows: Mapping[str, Ranged | None], *, xlabel: str, title: str = ""
) -> Figure:
    """Figure of one difference per row with its interval, beside a line at 0.

    `rows` are name → (mean, interval), None: "not run". Blue and filled: the interval excludes 0;
    grey and hollow: it holds 0, or there is none.
    """
    check_entries("rows", rows)
    figure, axes = chart((WIDTH, 0.8 + 0.27 * len(rows)), title, rows, xlabel=xlabel)
    axes.axvline(0, color="#444444", linewidth=1)
    ends = [0.0]
    for place, (name, row) in enumerate(rows.items()):
        if row is None:
            write(axes, "not run", (0, place), (6, 0), color="#666666", fontsize=8)
            continue
        mean, low, high = _limits(f"rows[{name!r}]", row)
        ends += [low, high]
        clear = row[1] is not None and not low <= 0 <= high
        colour = COLOURS[0] if clear else "#888888"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(mean, place, "o", color=colour, markerfacecolor=colour if clear else "white")
        text = f"{mean:+.1f}{'' if row[1] else ' (no interval)'}"
        write(axes, text, (high, place), (6, 0), fontsize=8)
    span = max(ends) - min(ends) or 10.0
    axes.set_xlim(min(ends) - 0.03 * span, max(ends) + 0.14 * span)
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
    """Figure of one point per name at (cost, gain), in a cross of both intervals.

    The names stand at the right, as high as their points as far as they have room.

    Args:
        points: name → (cost, gain), each (mean, interval); None: "not run", said with its name.
        yardstick: the point, black, to which a dashed line runs from no cost and no gain, and on:
            who is above it gains more for its cost. Without that point there is no line.
    """
    check_entries("points", points)
    figure, axes = chart((WIDTH, 4.4), title, xlabel=xlabel, ylabel=ylabel)
    axes.axhline(0, color="#444444", linewidth=1)
    axes.axvline(0, color="#444444", linewidth=1)
    others = [name for name in points if name != yardstick]
    palette = COLOURS if len(others) <= len(COLOURS) else plt.colormaps["tab10"].colors
    looks = {
        name: (palette[k % len(palette)], MARKERS[k // len(palette) % len(MARKERS)])
        for k, name in enumerate(others)
    } | {yardstick: ("#222222", MARKERS[0])}
    places = {}
    for name, point in points.items():
        if point is None:
            continue
        colour, marker = looks[name]
        x, left, right = _limits(f"points[{name!r}] cost", point[0])
        y, low, high = _limits(f"points[{name!r}] gain", point[1])
        places[name] = x, y, colour
        across = [[x - left], [right - x]] if point[0][1] else None
        up = [[y - low], [high - y]] if point[1][1] else None
        line = {"color": colour, "elinewidth": 0.8, "capsize": 2, "markersize": 6}
        axes.errorbar(x, y, up, across, marker, **line)
    if yardstick in places:
        x, y, _ = places[yardstick]
        axes.axline((0, 0), (x, y), color="#666666", linestyle="--", linewidth=1, zorder=1)
    low, high = axes.get_ylim()
    order = sorted(places, key=lambda name: -places[name][1])
    heights = _apart([(places[name][1] - low) / (high - low) for name in order], 0.055)
    for name, height in zip(order, heights, strict=True):
        x, y, colour = places[name]
        lead = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": (0, 0.5)}
        style = {"textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        axes.annotate(name, (x, y), (1.03, height), color=colour, arrowprops=lead, **style)
    if missing := [name for name in points if name not in places]:
        below = {"xy": (0, 0), "xycoords": "axes fraction", "va": "top", "color": "#666666"}
        text = textwrap.fill(f"not run: {'; '.join(missing)}", 110)
        axes.annotate(text, xytext=(0, -34), textcoords="offset points", **below)
    return figure


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Falling `heights`, moved as little as is simple until no two are nearer than `gap`."""
    top, placed = math.inf, []
    for height in heights:
        top = min(height, top - gap)
        placed.append(top)
    bottom = -math.inf
    for index in reversed(range(len(placed))):
        bottom = placed[index] = max(placed[index], bottom + gap, 0.0)
    return placed


def _limits(name: str, row: Ranged) -> tuple[float, float, float]:
    """Mean, lower and upper end; ValueError when one is not finite, or the mean not between."""
    mean, (low, high) = row[0], row[1] or (row[0], row[0])
    if not all(map(math.isfinite, (mean, low, high))) or not low <= mean <= high:
        raise ValueError(f"{name}: got {row}, expected finite values, the mean in its interval")
    return mean, low, high
