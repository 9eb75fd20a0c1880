"""Charts of results: learning curves, scores, differences, gain against cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

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


def moving_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Centred moving mean of the finite `values`, same length; the window shrinks at the ends.

    Choice: a centred mean, not an exponential one, because it does not lag behind its curve.
    """
    import pandas as pd  # slow to import, and most figures go without

    line = pd.Series(values, dtype=float).replace([math.inf, -math.inf], math.nan)
    odd = window // 2 * 2 + 1
    return line.rolling(odd, center=True, min_periods=1).mean().to_numpy()


@plt.rc_context(STYLE)
def curves_figure(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    marks: Mapping[int, str] | None = None,
    title: str = "",
    window: int | None = None,
    log: bool = False,
    log_steps: bool = False,
) -> Figure:
    """Figure of learning curves: each a strong smoothed line over its faint raw one.

    Args:
        series: name → (step, value) pairs in any order, maybe none; NaN leaves a gap.
        marks: step → text of a vertical line, e.g. where a stage begins.
        window: values in the moving mean; None takes a twentieth of the curve. Below 3 the
            points themselves are drawn.
        log: logarithmic values.
        log_steps: logarithmic steps, each written out; above 0.
    """
    check_entries("series", series)
    figure, axes = chart((NARROW, 3.6), title, xlabel=xlabel, ylabel=ylabel)
    for index, (name, pairs) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        dash = ("-", "--", "-.", ":")[index // len(COLOURS) % 4]
        ordered = sorted(pairs, key=lambda pair: pair[0])
        steps, values = [step for step, _ in ordered], [value for _, value in ordered]
        wide = len(values) // 20 if window is None else window
        if wide < 3:
            axes.plot(steps, values, dash, color=colour, marker="o", markersize=3.5, label=name)
        else:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            mean = moving_mean(values, wide)
            axes.plot(steps, mean, dash, color=colour, linewidth=1.8, label=name)
    for step, text in (marks or {}).items():
        axes.axvline(step, color="#666666", linestyle=":", linewidth=1.2)
        style = {"va": "top", "fontsize": 8, "color": "#444444"}
        write(axes, text, (step, 1.0), (3, -2), xycoords=("data", "axes fraction"), **style)
    axes.set_yscale("log" if log else "linear")
    if log_steps:
        steps = sorted({step for pairs in series.values() for step, _ in pairs})
        axes.set_xscale("log")
        axes.set_xticks(steps, [f"{step:g}" for step in steps])
        axes.minorticks_off()
    legend_right(axes)
    return figure


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
        mean, colour, lift = statistics.fmean(values), COLOURS[row % len(COLOURS)], np.zeros(1)
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
    """Figure of one numbered point per name at (cost, gain), in a cross of both intervals.

    Args:
        points: name → (cost, gain), each (mean, interval); None: "not run", said in the legend.
        yardstick: the point to which a dashed line runs from no cost and no gain, and on: who is
            above it gains more for its cost. Without that point there is no line.
    """
    check_entries("points", points)
    figure, axes = chart((WIDTH, 4.4), title, xlabel=xlabel, ylabel=ylabel)
    axes.axhline(0, color="#444444", linewidth=1)
    axes.axvline(0, color="#444444", linewidth=1)
    for index, (name, point) in enumerate(points.items()):
        label, colour = f"{index + 1} {name}", COLOURS[index % len(COLOURS)]
        marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
        if point is None:
            axes.errorbar([], [], fmt=marker, color=colour, label=f"{label}: not run")
            continue
        x, left, right = _limits(f"points[{name!r}] cost", point[0])
        y, low, high = _limits(f"points[{name!r}] gain", point[1])
        across = [[x - left], [right - x]] if point[0][1] else None
        up = [[y - low], [high - y]] if point[1][1] else None
        line = {"color": colour, "linewidth": 1.1, "capsize": 2, "label": label}
        axes.errorbar(x, y, up, across, marker, markersize=6, **line)
        style = {"path_effects": [withStroke(linewidth=2.5, foreground="white")], "zorder": 5}
        write(axes, str(index + 1), (x, y), (4, 4), va="baseline", fontsize=8.5, **style)
    if points.get(yardstick):
        (x, _), (y, _) = points[yardstick]
        axes.axline((0, 0), (x, y), color="#666666", linestyle="--", linewidth=1, zorder=1)
    legend_right(axes)
    return figure


def _limits(name: str, row: Ranged) -> tuple[float, float, float]:
    """Mean, lower and upper end; ValueError when one is not finite, or the mean not between."""
    mean, (low, high) = row[0], row[1] or (row[0], row[0])
    if not all(map(math.isfinite, (mean, low, high))) or not low <= mean <= high:
        raise ValueError(f"{name}: got {row}, expected finite values, the mean in its interval")
    return mean, low, high
