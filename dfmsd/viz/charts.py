"""Charts of numbers: learning curves, scores per arm. `dfmsd.viz` is the way in."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfmsd.viz.boxes import ink
from dfmsd.viz.panels import STYLE, WIDTH, filled, wrapped

# Okabe and Ito's colours, neighbours far apart; without yellow, too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")


def chart(height: float, title: str = "", *, width: float = 0.8 * WIDTH) -> tuple[Figure, Axes]:
    """Closed figure with one empty chart, inches; the title is wrapped."""
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    plt.close(figure)
    axes.set_title(wrapped(title, 0.8 * width))
    return figure, axes


def mark_values(axes: Axes, marks: Mapping[float, str] | None) -> None:
    """Draw a dotted vertical line with its text at every value of `marks`."""
    for value, text in (marks or {}).items():
        axes.axvline(value, color="#666666", linestyle=":", linewidth=1.2)
        place = {"xytext": (3, -2), "textcoords": "offset points", "va": "top", "fontsize": 8}
        axes.annotate(
            text, (value, 1.0), xycoords=("data", "axes fraction"), color="#444444", **place
        )


def legend_beside(axes: Axes) -> None:
    """Write the legend right of the chart: there it cannot hide a value."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """Centred moving mean of `values`, same length; the window shrinks at the ends.

    NaN and infinity are left out of it.

    Choice: a centred mean, not an exponential one, because it does not lag behind its curve.
    """
    line, half = np.asarray(values, dtype=float), window // 2
    finite = np.isfinite(line)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, line, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    start = np.maximum(np.arange(len(line)) - half, 0)
    end = np.minimum(np.arange(len(line)) + half + 1, len(line))
    seen = count[end] - count[start]
    return np.where(seen > 0, (total[end] - total[start]) / np.maximum(seen, 1), np.nan)


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
        xlabel: what the steps are.
        ylabel: what the values are.
        marks: step → text of a vertical line, e.g. where a stage begins.
        title: what to see.
        window: values in the moving mean; None takes a twentieth of the curve. Below 3 the
            points themselves are drawn.
        log: logarithmic values.
        log_steps: logarithmic steps, each written out; above 0.

    Raises:
        ValueError: if `series` is empty.
    """
    if not series:
        raise ValueError("series: got no curve, expected at least one name")
    figure, axes = chart(3.6, title)
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
            axes.plot(steps, smoothed(values, wide), dash, color=colour, linewidth=1.8, label=name)
    mark_values(axes, marks)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    if log_steps:
        places = sorted({step for pairs in series.values() for step, _ in pairs})
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{step:g}" for step in places])
        axes.minorticks_off()
    axes.grid(alpha=0.25)
    legend_beside(axes)
    return figure


@plt.rc_context(STYLE)
def bars_figure(
    rows: Mapping[str, Sequence[float]],
    *,
    xlabel: str = "AP",
    title: str = "",
    digits: int = 1,
    start: float = 0.0,
) -> Figure:
    """Figure of one bar per arm, as long as its mean, a dot per seed and the numbers beside it.

    The line around the mean is ± one standard deviation over the seeds (divisor n − 1).

    Args:
        rows: name of the arm → its value for every seed; none means "not run".
        xlabel: what the values are, with their unit.
        title: what to see.
        digits: decimals of the printed numbers.
        start: where the axis begins; from above zero only differences can be read.

    Raises:
        ValueError: if `rows` is empty or a value is NaN or infinite.
    """
    if not rows:
        raise ValueError("rows: got no arm, expected at least one name")
    for name, values in rows.items():
        if not all(map(math.isfinite, values)):
            raise ValueError(f"rows[{name!r}]: got {list(values)}, expected finite values")
    figure, axes = chart(0.9 + 0.42 * len(rows), title)
    far = max((value for values in rows.values() for value in values), default=start)
    for place, values in enumerate(rows.values()):
        _bar(axes, place, list(values), COLOURS[place % len(COLOURS)], digits, start)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xlabel=xlabel, xlim=(start, start + max(far - start, 1e-9) * 1.32))
    axes.grid(axis="x", alpha=0.25)
    return figure


@plt.rc_context(STYLE)
def stacked_figure(
    parts: Mapping[str, Mapping[str, float]], *, xlabel: str, title: str = "", digits: int = 2
) -> Figure:
    """Figure of one bar per row, stacked from its parts, each with its value where it fits.

    Beside the bar stands its sum.

    Args:
        parts: row (a setting) → part (a term of the loss) → value ≥ 0. A part keeps its colour in
            every row; one that a row lacks is left out there.
        xlabel: what the values are, with their unit.
        title: what to see.
        digits: decimals of the printed numbers.

    Raises:
        ValueError: if `parts` or a row is empty, or a value is below 0, NaN or infinite.
    """
    filled("parts", parts)
    for row, terms in parts.items():
        filled(f"parts[{row!r}]", terms)
        for name, value in terms.items():
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"parts[{row!r}][{name!r}]: got {value}, expected a finite value from 0"
                )
    names = list(dict.fromkeys(name for terms in parts.values() for name in terms))
    figure, axes = chart(0.9 + 0.42 * len(parts), title, width=WIDTH)
    far = max(sum(terms.values()) for terms in parts.values()) or 1.0
    left = np.zeros(len(parts))
    for index, name in enumerate(names):
        values = np.array([terms.get(name, 0.0) for terms in parts.values()], dtype=float)
        colour = COLOURS[index % len(COLOURS)]
        axes.barh(range(len(parts)), values, left=left, height=0.66, color=colour, label=name)
        for place, value in enumerate(values):
            text = f"{value:.{digits}f}"
            if value > 0.013 * len(text) * far:  # the letters' width on the narrowest chart
                middle = (left[place] + value / 2, place)
                axes.text(*middle, text, ha="center", va="center", color=ink(colour))
        left += values
    for place, total in enumerate(left):
        beside = {"textcoords": "offset points", "xytext": (4, 0), "va": "center"}
        axes.annotate(f"{total:.{digits}f}", (total, place), **beside)
    axes.set_yticks(range(len(parts)), list(parts))
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set(xlabel=xlabel, xlim=(0, far * 1.09))
    axes.grid(axis="x", alpha=0.25)
    legend_beside(axes)
    return figure


def _bar(
    axes: Axes, place: int, values: list[float], colour: str, digits: int, start: float
) -> None:
    """Draw one arm of `bars_figure` at height `place`."""
    beside = {"textcoords": "offset points", "xytext": (8, 0), "va": "center"}
    if not values:
        axes.annotate("not run", (start, place), color="#666666", **beside)
        return
    mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    axes.barh(place, mean - start, left=start, height=0.62, color=colour, alpha=0.45)
    text = f"{mean:.{digits}f}"
    if len(values) > 1:
        axes.errorbar(mean, place, xerr=spread, color=colour, capsize=4, linewidth=1.8)
        text += f" ± {spread:.{digits}f}"
    lift = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0.0]
    axes.scatter(values, place + np.asarray(lift), s=16, color="black", zorder=3, linewidths=0)
    right = max([*values, mean + spread])
    axes.annotate(
        f"{text}  ({len(values)} seed{'s' * (len(values) > 1)})", (right, place), **beside
    )
