"""Curves: of learning, and small multiples of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfmsd.viz.charts import COLOURS, NARROW, chart, legend_right, write
from dfmsd.viz.checks import check_entries
from dfmsd.viz.panels import STYLE, wrap


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
        series: name → (step, value) pairs in any order, maybe none; the mean leaves NaN out.
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
    axes.margins(y=0.1 if marks else None)  # the texts stand above the curves
    for step, text in (marks or {}).items():
        axes.axvline(step, color="#666666", linestyle=":", linewidth=1.2)
        style = {"va": "top", "fontsize": 8, "color": "#444444"}
        write(axes, text, (step, 1.0), (3, -2), xycoords=("data", "axes fraction"), **style)
    axes.set_yscale("log" if log else "linear")
    if log_steps:
        _log_steps(axes, series)
    legend_right(axes)
    return figure


@plt.rc_context(STYLE)
def small_multiples_figure(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    reference: str | None = None,
    log_steps: bool = False,
) -> Figure:
    """Figure of one panel per curve, all with the same axes: its own in blue, the others grey.

    Args:
        series: name → (step, value) pairs in any order, maybe none, which says "not run".
        reference: the name that has no panel of its own: black and dashed in every one.
        log_steps: logarithmic steps, each written out; above 0.
    """
    check_entries("series", series)
    if reference is not None and reference not in series:
        raise ValueError(f"reference: got {reference!r}, expected one of {list(series)}")
    lines = {name: np.array(sorted(pairs)).reshape(-1, 2).T for name, pairs in series.items()}
    own = [name for name in lines if name != reference] or list(lines)
    columns, rows = min(len(own), 5), -(-len(own) // 5)
    size = (1.9 * columns if columns > 2 else NARROW, 0.8 + 1.7 * rows)
    shared = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, grid = plt.subplots(rows, columns, figsize=size, **shared)
    plt.close(figure)
    figure.suptitle(wrap(title, 0.8 * size[0]))
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    for spare in grid.flat[len(own) :]:
        spare.remove()
    for axes, name in zip(grid.flat, own, strict=False):
        for other, line in lines.items():
            black = other == reference
            axes.plot(*line, "--" if black else "-", color="#222222" if black else "#CCCCCC", lw=1)
        axes.plot(*lines[name], color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.8)
        axes.set_title(wrap(name, 1.7), fontsize=8.5)
        axes.grid(alpha=0.25)
        if not lines[name].size:
            axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color="#666666")
        if log_steps:
            _log_steps(axes, series)
    return figure


def _log_steps(axes: Axes, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """A logarithmic axis on which every step is written out."""
    steps = sorted({step for pairs in series.values() for step, _ in pairs})
    axes.set_xscale("log")
    axes.set_xticks(steps, [f"{step:g}" for step in steps])
    axes.minorticks_off()
