"""Charts: every curve, bar, mean and interval is where it belongs, and can be read."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
from figures import assert_readable, texts
from matplotlib.collections import PathCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from dfmsd.viz import (
    bars_figure,
    curves_figure,
    differences_figure,
    small_multiples_figure,
    tradeoff_figure,
)
from dfmsd.viz.curves import moving_mean


def test_curves_hold_raw_and_smoothed_values_and_marks():
    long = [(step, float(step % 7)) for step in range(100)]
    short = [(50, 2.0), (0, 1.0), (100, float("nan"))]
    series = {"long": long, "short": short, "none yet": []}
    marks = {0: "stage 1", 60: "stage 2"}
    figure = curves_figure(series, xlabel="step", ylabel="loss", marks=marks, title="falling")
    (axes,) = figure.axes
    raw, mean, points = axes.lines[:3]
    assert raw.get_ydata().tolist() == [value for _, value in long]
    assert mean.get_label() == "long"
    assert points.get_xdata().tolist() == [0, 50, 100]
    assert [text.get_text() for text in axes.texts] == ["stage 1", "stage 2"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("step", "loss", "falling")
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["long", "short", "none yet"]
    assert_readable(figure)


def test_curves_over_logarithmic_steps_write_each_of_them():
    pairs = [(0.1, 1.0), (3.0, 3.0), (1.0, 2.0)]
    figure = curves_figure({"a": pairs}, xlabel="×", ylabel="AP", log_steps=True)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.1", "1", "3"]
    assert axes.get_xticks().tolist() == [0.1, 1.0, 3.0]
    assert_readable(figure)
    assert_readable(curves_figure({"a": []}, xlabel="×", ylabel="AP", log_steps=True))


def test_small_multiples_show_each_curve_among_the_others():
    series = {"none": [(3, 2.0), (1, 1.0)], "a": [(1, 4.0), (3, 5.0)], "not yet": []}
    figure = small_multiples_figure(series, xlabel="step", ylabel="AP", reference="none")
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["a", "not yet"]
    *others, own = first.lines
    assert own.get_xydata().tolist() == [[1, 4], [3, 5]]
    assert [line.get_linestyle() for line in others] == ["--", "-", "-"]
    assert others[0].get_xydata().tolist() == [[1, 1], [3, 2]]
    assert [text.get_text() for text in second.texts] == ["not run"]
    assert first.get_ylim() == second.get_ylim()
    assert_readable(figure)
    many = {f"method {n}": [(0.1, n), (1.0, n + 1)] for n in range(11)}
    figure = small_multiples_figure(many, xlabel="×", ylabel="AP", title="t", log_steps=True)
    assert len(figure.axes) == 11
    assert figure.axes[0].get_xscale() == "log"
    assert_readable(figure)


@pytest.mark.parametrize("window", [1, 3, 4, 50])
def test_smoothing_equals_a_naive_loop(window):
    values = [1.0, 4.0, float("nan"), 2.0, float("inf"), 8.0, -3.0]
    half = window // 2
    naive = []
    for i in range(len(values)):
        near = [v for v in values[max(i - half, 0) : i + half + 1] if np.isfinite(v)]
        naive.append(statistics.fmean(near) if near else float("nan"))
    np.testing.assert_allclose(moving_mean(values, window), naive)


def test_bars_show_mean_spread_and_every_seed():
    rows = {"none": [38.0, 39.0, 40.0], "one stage": [41.5], "a stage that nobody ran": []}
    figure = bars_figure(rows, xlabel="AP in %", title="arms")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [39.0, 41.5]
    groups = [group for group in axes.collections if isinstance(group, PathCollection)]
    dots = [x for group in groups for x, _ in group.get_offsets().tolist()]
    assert sorted(dots) == [38.0, 39.0, 40.0, 41.5]
    words = [text.get_text() for text in axes.texts]
    assert words == ["39.0 ± 1.0  (3 seeds)", "41.5  (1 seed)", "not run"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(rows)
    assert_readable(figure)


def test_charts_refuse_nothing_to_draw():
    with pytest.raises(ValueError, match="rows"):
        bars_figure({})
    with pytest.raises(ValueError, match=r"rows\['a'\]"):
        bars_figure({"a": [1.0, float("nan")]})
    with pytest.raises(ValueError, match="series"):
        curves_figure({}, xlabel="step", ylabel="loss")


ROWS = {"above": (2.0, (1.0, 3.0)), "holds 0": (-0.5, (-2.0, 1.0))}
ROWS |= {"one seed": (4.0, None), "nothing": None}


def test_differences_stand_where_they_belong():
    figure = differences_figure(ROWS, xlabel="AP", title="differences")
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_linewidth() == 2]
    spans = [tuple(line.get_xdata()) for line in lines]
    assert spans == [(1.0, 3.0), (-2.0, 1.0), (4.0, 4.0)]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == [2.0, -0.5, 4.0]
    assert [line.get_ydata()[0] for line in dots] == [0, 1, 2]
    filled = [line.get_markerfacecolor() != "white" for line in dots]
    assert filled == [True, False, False]
    shown = [text.get_text() for text in texts(figure)]
    assert {"+2.0", "-0.5", "+4.0 (no interval)", "not run"} <= set(shown)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ROWS)
    assert axes.yaxis_inverted()
    assert_readable(figure)


def test_tradeoff_stands_where_it_belongs():
    points = {
        "a": ((10.0, (8.0, 13.0)), (2.0, (1.0, 2.5))),
        "b": ((20.0, None), (3.0, None)),
        "c": None,
    }
    figure = tradeoff_figure(points, xlabel="cost", ylabel="gain", title="gain against cost")
    (axes,) = figure.axes
    bars = [c for c in axes.containers if isinstance(c, ErrorbarContainer)][:2]
    places = [(bar.lines[0].get_xdata()[0], bar.lines[0].get_ydata()[0]) for bar in bars]
    assert places == [(10.0, 2.0), (20.0, 3.0)]
    across, up = bars[0].lines[2]
    assert across.get_segments()[0].tolist() == [[8.0, 2.0], [13.0, 2.0]]
    assert up.get_segments()[0].tolist() == [[10.0, 1.0], [10.0, 2.5]]
    shown = [text.get_text() for text in axes.texts]
    assert shown == ["b", "a", "not run: c"]
    assert [text.xy for text in axes.texts[:2]] == places[::-1]
    assert_readable(figure)


def test_names_of_near_points_do_not_overlap():
    points = {f"method {n}": ((10.0 + n, None), (5.0 + n % 3 / 9, None)) for n in range(12)}
    figure = tradeoff_figure(points, xlabel="cost", ylabel="gain")
    assert_readable(figure)
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    tops = sorted((box.y0, box.y1) for box in boxes)
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(tops))


def test_the_yardstick_runs_through_its_point():
    points = {"a": ((10.0, None), (2.0, None)), "b": ((20.0, None), (3.0, None)), "c": None}

    def lines(yardstick):
        figure = tradeoff_figure(points, xlabel="cost", ylabel="gain", yardstick=yardstick)
        return [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]

    (line,) = lines("a")
    assert (line.get_xy1(), line.get_xy2()) == ((0, 0), (10.0, 2.0))
    assert lines(None) == lines("c") == []


def test_nothing_was_run_is_a_figure_too():
    assert_readable(differences_figure(dict.fromkeys("abc"), xlabel="AP", title="none"))
    figure = tradeoff_figure(dict.fromkeys("abc"), xlabel="x", ylabel="y", title="none")
    assert [text.get_text() for text in figure.axes[0].texts] == ["not run: a; b; c"]


@pytest.mark.parametrize(
    "bad", [(1.0, (2.0, 3.0)), (float("nan"), None), (0.0, (-1.0, float("inf")))]
)
def test_bad_values_are_named(bad):
    with pytest.raises(ValueError, match=r"rows\['x'\]: got"):
        differences_figure({"x": bad}, xlabel="AP")
    with pytest.raises(ValueError, match=r"points\['x'\] gain: got"):
        tradeoff_figure({"x": ((1.0, None), bad)}, xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="rows: got no entry"):
        differences_figure({}, xlabel="AP")
    with pytest.raises(ValueError, match="points: got no entry"):
        tradeoff_figure({}, xlabel="x", ylabel="y")
