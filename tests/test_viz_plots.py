"""Figures of values: bars, points, numbers and curves are the ones that were given."""

from __future__ import annotations

import math
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from figures import assert_readable
from matplotlib.collections import PathCollection

from dfmsd import viz
from dfmsd.enhance import low_pass
from dfmsd.viz.spectra import radial_profile, spectrum

NAN = float("nan")


def bars(axes):
    return {round(bar.get_x() + bar.get_width() / 2): bar for bar in axes.patches}


def test_channels_are_bars_in_order_and_masked_ones_hatched():
    first, second = torch.tensor([0.5, 2.0, 0.25, 1.25]), torch.tensor([1.0, 1.0, 2.0, 0.0])
    keep = torch.tensor([1, 0, 1, 0])
    figure = viz.channels_figure({"one": first, "two": second}, keep=keep, title="channels")
    assert len(figure.axes) == 2
    for axes, values in zip(figure.axes, (first, second), strict=True):
        drawn = bars(axes)
        assert [drawn[k].get_height() for k in range(4)] == values.tolist()
        assert [k for k in range(4) if drawn[k].get_hatch()] == [1, 3]
        assert len({drawn[k].get_facecolor() for k in range(4)}) == 2
        assert axes.lines[0].get_ydata() == [1, 1]
    assert figure.axes[0].get_title() == "one: visible 2 of 4 (blue)"
    assert_readable(figure)


def test_many_channels_stay_one_bar_each():
    figure = viz.channels_figure({"many": torch.rand(256)}, keep=torch.rand(256) > 0.5)
    assert len(bars(figure.axes[0])) == 256
    assert len({bar.get_facecolor() for bar in figure.axes[0].patches}) == 2
    assert not any(bar.get_hatch() for bar in figure.axes[0].patches)


def test_points_and_their_diagonal():
    points = {"before": (torch.tensor([1, 8]), torch.tensor([2.0, 4.0])), "after": ([9.0], [0.5])}
    points["after"] = tuple(map(torch.tensor, points["after"]))
    figure = viz.scatter_figure(points, xlabel="side", ylabel="score", diagonal=True)
    (axes,) = figure.axes
    clouds = [group for group in axes.collections if isinstance(group, PathCollection)]
    assert [cloud.get_offsets().tolist() for cloud in clouds] == [[[1, 2], [8, 4]], [[9, 0.5]]]
    (line,) = axes.lines
    assert list(line.get_xdata()) == list(line.get_ydata()) == [0.5, 9]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before", "after"]
    assert_readable(figure)


def test_a_matrix_prints_its_numbers_in_readable_ink():
    values = torch.tensor([[0.0, 0.5, 1.0], [-0.001, 0.25, 0.75]])
    columns = ["task", "reconstruction of channels", "sum"]
    figure = viz.matrix_figure(values, ["a", "b"], columns, limits=(0, 1), title="matrix " * 20)
    axes = figure.axes[0]
    assert np.array_equal(axes.images[0].get_array(), values.numpy())
    assert axes.images[0].get_clim() == (0, 1)
    texts = {text.get_position(): text for text in axes.texts}
    words = [[texts[column, row].get_text() for column in range(3)] for row in range(2)]
    assert words == [["0.00", "0.50", "1.00"], ["0.00", "0.25", "0.75"]]
    assert texts[0, 0].get_color() == "white"
    assert texts[2, 0].get_color() == "black"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    names = [tick.get_text().replace("\n", " ") for tick in axes.get_xticklabels()]
    assert names == columns
    assert "\n" in axes.get_xticklabels()[1].get_text()
    assert_readable(figure)
    page = figure.bbox
    assert figure._suptitle.get_window_extent().x0 >= page.x0
    spans = [tick.get_window_extent() for tick in axes.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(spans))


def test_a_signed_matrix_is_centred_at_zero():
    figure = viz.matrix_figure(torch.tensor([[-3.0, 1.0]]), ["a"], ["x", "y"], signed=True)
    assert figure.axes[0].images[0].get_clim() == (-3, 3)


def test_a_matrix_may_have_logarithmic_colours():
    values = torch.tensor([[0.01, 1.0, 100.0, 0.0]])
    figure = viz.matrix_figure(values, ["a"], list("wxyz"), log=True)
    drawn = figure.axes[0].images[0]
    assert drawn.get_clim() == (pytest.approx(0.01), 100)
    assert drawn.norm(1.0) == pytest.approx(0.5)
    assert figure.axes[0].texts[3].get_color() == "black"
    with pytest.raises(ValueError, match="values: got -1 at the least, expected values from 0"):
        viz.matrix_figure(-torch.ones(1, 1), ["a"], ["x"], log=True)


def test_stacked_bars_begin_where_the_last_ended():
    parts = {"one": {"task": 1.0, "rec": 0.5}, "two": {"rec": 0.25, "align": 0.01}}
    figure = viz.stacked_figure(parts, xlabel="loss", title="balance")
    (axes,) = figure.axes
    drawn = [(b.get_x(), b.get_width(), b.get_y() + 0.33) for b in axes.patches if b.get_width()]
    expected = [(0, 1, 0), (1, 0.5, 0), (0, 0.25, 1), (0.25, 0.01, 1)]
    np.testing.assert_allclose(drawn, expected, atol=1e-9)
    # 0.01 is too narrow for its number; the sums stand beside the bars
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.50", "0.25", "1.50", "0.26"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["task", "rec", "align"]
    assert_readable(figure)


def test_a_grating_has_its_energy_at_its_frequency():
    x = torch.arange(32, dtype=torch.float64)
    grating = (1 + torch.cos(2 * math.pi * x / 8)).expand(24, 32) / 2  # period 8 is Nyquist / 4
    energy, radius = spectrum(grating)
    assert radius[energy > 1e-9].tolist() == pytest.approx([0.25, 0.25])
    middle, share = radial_profile(grating, 8)
    assert share[2] == pytest.approx(1)
    assert middle[2] == 2.5 / 8
    assert share.sum() == pytest.approx(1)


def test_the_spectrum_keeps_the_energy_and_measures_radii_as_the_filters_do():
    image = torch.rand(3, 15, 22, dtype=torch.float64)
    grey = image.mean(0) - image.mean()
    energy, radius = spectrum(image)
    torch.testing.assert_close(energy.sum() / grey.numel(), grey.square().sum())
    low = spectrum(low_pass(image, cutoff=0.5, softness=0))[0]
    assert low[radius >= 0.5].max() < 1e-20
    torch.testing.assert_close(low[radius < 0.5], energy[radius < 0.5])
    # a naive sum per ring
    _, share = radial_profile(image, 5)
    for k in range(len(share)):
        inside = (radius * 5 >= k - 1e-9) & (radius * 5 < k + 1 - 1e-9)
        assert share[k] == pytest.approx(float(energy[inside].sum() / energy.sum()))


def test_a_flat_image_has_no_energy():
    assert not radial_profile(torch.full((8, 8), 0.25), 4)[1].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: viz.channels_figure({}), "attention: got no entry"),
        (lambda: viz.channels_figure({"a": torch.ones(2, 2)}), r"attention\['a'\]: got shape"),
        (lambda: viz.channels_figure({"a": -torch.ones(2)}), "got -1, expected values from 0"),
        (
            lambda: viz.channels_figure({"a": torch.ones(3)}, keep=torch.ones(2)),
            "keep: got 2 channels, expected the 3 of 'a'",
        ),
        (
            lambda: viz.channels_figure({"a": torch.ones(2)}, keep=torch.tensor([0, 2])),
            "keep: got values from 0 to 2, expected only 0 and 1",
        ),
        (lambda: viz.scatter_figure({}, xlabel="", ylabel=""), "points: got no entry"),
        (
            lambda: viz.scatter_figure({"a": (torch.ones(2), torch.ones(3))}, xlabel="", ylabel=""),
            r"points\['a'\]: got 2 x and 3 y",
        ),
        (
            lambda: viz.matrix_figure(torch.ones(2, 3), ["a"], ["x"]),
            r"values: got shape \(2, 3\), expected \(1, 1\)",
        ),
        (lambda: viz.matrix_figure(torch.tensor([[NAN]]), ["a"], ["x"]), "values: got values such"),
        (lambda: viz.stacked_figure({}, xlabel=""), "parts: got no entry"),
        (lambda: viz.stacked_figure({"a": {}}, xlabel=""), r"parts\['a'\]: got no entry"),
        (lambda: viz.stacked_figure({"a": {"b": -1}}, xlabel=""), r"parts\['a'\]\['b'\]: got -1"),
        (lambda: viz.stacked_figure({"a": {"b": NAN}}, xlabel=""), "got nan, expected a finite"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_figure_stays_open_after_a_refusal():
    with pytest.raises(ValueError, match="points"):
        viz.scatter_figure({"a": (torch.ones(2), torch.ones(3))}, xlabel="", ylabel="")
    assert not matplotlib.pyplot.get_fignums()
