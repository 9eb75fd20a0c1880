"""Figures of named pictures: every picture, mask and box is drawn as given, scales as promised."""

from __future__ import annotations

from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from figures import assert_readable, frames, images
from matplotlib.colors import to_rgb

from dfmsd import viz
from dfmsd.viz.boxes import ink
from dfmsd.viz.checks import value_range
from dfmsd.viz.panels import wrap

BOXES = torch.tensor([[4.0, 6.0, 20.0, 30.0], [30.0, 8.0, 60.0, 40.0]])
NAN = float("nan")


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title().replace("\n", " ") == title]
    return axes


def test_the_names_of_boxes_that_share_an_edge_do_not_cover_each_other():
    boxes = torch.tensor([[2.0, 10.0, 60.0, 30.0], [2.0, 10.0, 62.0, 32.0]])
    found = {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8])}
    figure = viz.detections_figure(images(1), [found], classes=["disc", "square"])
    figure.canvas.draw()
    first, second = (text.get_window_extent() for text in figure.axes[0].texts)
    assert not first.overlaps(second)


def test_a_name_takes_the_corner_where_it_covers_least():
    # above the second box lies the first, below it there is room
    boxes = torch.tensor([[4.0, 12.0, 40.0, 22.0], [4.0, 23.0, 40.0, 36.0]])
    found = {"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": torch.ones(2)}
    figure = viz.detections_figure(images(1), [found], classes=["disc"])
    first, second = figure.axes[0].texts
    assert (first.get_position()[1], second.get_position()[1]) == (12, 36)
    assert (first.get_va(), second.get_va()) == ("bottom", "top")


def test_a_valid_grid_and_a_reference_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"valid: got \(2, 2\), keeps\['a'\] is \(3, 4\)"):
        viz.keep_masks_figure(images(1)[0], {"a": torch.ones(3, 4)}, valid=torch.ones(2, 2) > 0)
    with pytest.raises(ValueError, match=r"reference: got 'b', expected one of \['a'\]"):
        viz.small_multiples_figure({"a": [(1, 2)]}, xlabel="x", ylabel="y", reference="b")


def test_keep_masks_hatch_the_masked_cells_and_count_them():
    some, none = torch.ones(3, 4), torch.ones(6, 8, dtype=torch.bool)
    some[0, :3] = 0
    figure = viz.keep_masks_figure(images(1)[0], {"some": some, "none": none}, boxes=BOXES)
    shown = panel(figure, "some: visible 9 of 12 (75%)")
    under, pale = shown.images
    assert np.array_equal(np.asarray(pale.get_array())[..., 3] > 0, some.numpy() == 0)
    assert tuple(pale.get_extent()) == tuple(under.get_extent()) == (0, 64, 48, 0)
    clear = panel(figure, "none: visible 48 of 48 (100%)").images[1]
    assert not np.asarray(clear.get_array())[..., 3].any()
    assert all(len(frames(axes, dashed=True)) == 2 for axes in figure.axes)
    hatched = [[p for p in axes.patches if p.get_hatch()] for axes in figure.axes]
    assert [len(patches) for patches in hatched] == [1, 0]
    (left, top), (right, bottom) = hatched[0][0].get_path().get_extents().get_points()
    assert (left, top, right, bottom) == (0, 0, 48, 16)
    assert_readable(figure)


def test_padding_is_left_out_of_the_counts_of_keep_masks():
    keep, valid = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool)
    keep[0], valid[:, 2:] = 0, False
    figure = viz.keep_masks_figure(images(1)[0], {"some": keep}, valid=valid)
    assert panel(figure, "some: visible 4 of 6 (67%)")


def test_every_picture_may_have_boxes_of_its_own():
    named = dict(zip("ab", images(2), strict=True))
    figure = viz.pictures_figure(named, boxes={"b": BOXES})
    assert [len(frames(axes, dashed=True)) for axes in figure.axes] == [0, 2]
    with pytest.raises(ValueError, match=r"boxes: got \['c'\], expected names"):
        viz.pictures_figure(named, boxes={"c": BOXES})


def test_long_names_of_panels_are_wrapped():
    keeps = {f"attended, stride {k}": torch.ones(80, 80) for k in range(4)}
    figure = viz.keep_masks_figure(images(1)[0], keeps, title="a long title " * 20)
    assert all("\n" in axes.get_title() for axes in figure.axes)
    assert_readable(figure)
    spans = [axes.title.get_window_extent() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in pairwise(spans))
    top = figure._suptitle.get_window_extent()
    assert not any(top.overlaps(span) for span in spans)


LEVELS = {
    "teacher": {8: torch.arange(12.0).view(3, 4), 16: torch.tensor([[5.0, 40.0]])},
    "student": {16: torch.tensor([[-1.0, 3.0]])},
}


def test_every_level_has_a_scale_of_its_own():
    figure = viz.levels_figure(images(1)[0], LEVELS)
    heats = [axes.images[1] for axes in figure.axes[:4] if len(axes.images) == 2]
    assert [heat.get_clim() for heat in heats] == [(0, 11), (5, 40), (-1, 3)]
    assert np.array_equal(heats[0].get_array(), LEVELS["teacher"][8].numpy())
    assert len(figure.axes) == 4 + 3


def test_levels_name_rows_and_columns_and_note_what_is_missing():
    figure = viz.levels_figure(images(1)[0], LEVELS, title="pyramids")
    assert [axes.get_title() for axes in figure.axes[:4]] == ["stride 8", "stride 16", "", ""]
    words = [[text.get_text() for text in axes.texts] for axes in figure.axes[:4]]
    assert words == [["teacher"], [], ["student", "no such level"], []]
    assert_readable(figure)


def test_pictures_are_drawn_as_they_are_or_scaled_and_say_so():
    image = images(1)[0]
    wide = image * 4 - 2
    shown = {"image": image, "wide": wide, "sign": wide, "map": torch.arange(6.0).view(2, 3)}
    figure = viz.pictures_figure(shown, boxes=BOXES, signed=["sign"], title="four")
    drawn = [axes.images[0] for axes in figure.axes[:4]]
    np.testing.assert_allclose(drawn[0].get_array(), image.permute(1, 2, 0), atol=1e-6)
    low, high = float(wide.min()), float(wide.max())
    expected = (wide.permute(1, 2, 0) - low) / (high - low)
    np.testing.assert_allclose(drawn[1].get_array(), expected, atol=1e-6)
    assert figure.axes[1].get_title() == f"wide ({low:.2g} to {high:.2g})"
    np.testing.assert_allclose(drawn[2].get_array(), wide.mean(0), atol=1e-6)
    bottom, top = drawn[2].get_clim()
    assert bottom == -top == -float(wide.mean(0).abs().max())
    assert drawn[3].get_clim() == (0, 5)
    assert {tuple(picture.get_extent()) for picture in drawn} == {(0, 64, 48, 0)}
    assert all(len(frames(axes, dashed=True)) == 2 for axes in figure.axes[:4])
    assert_readable(figure)


def test_regions_colour_each_box_by_its_score_on_one_scale():
    scores = {"low": torch.tensor([0.25, 1.0]), "high": torch.tensor([3.0, 0.0])}
    image = images(1)[0]
    figure = viz.regions_figure({"low": image, "high": image}, BOXES, scores, title="regions")
    viridis = matplotlib.colormaps["viridis"]
    for axes, name in zip(figure.axes, scores, strict=False):
        assert axes.get_title() == name
        expected = {}
        for box, score in zip(BOXES.tolist(), scores[name].tolist(), strict=True):
            corner = (box[0], box[1], box[2] - box[0], box[3] - box[1])
            expected[corner] = viridis(score / 3)
        found = {
            (*p.get_xy(), p.get_width(), p.get_height()): p.get_edgecolor() for p in axes.patches
        }
        assert found.keys() == expected.keys()
        for corner, colour in expected.items():
            assert found[corner] == pytest.approx(colour)
        tags = sorted(text.get_text() for text in axes.texts)
        assert tags == sorted(f"{score:.2f}" for score in scores[name].tolist())
    assert_readable(figure)


def test_many_regions_carry_no_figures():
    boxes = BOXES.repeat(7, 1)
    figure = viz.regions_figure({"a": images(1)[0]}, boxes, {"a": torch.arange(14.0)})
    assert len(figure.axes[0].patches) == 14
    assert not figure.axes[0].texts


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: viz.keep_masks_figure(i, {}), "keeps: got no entry"),
        (
            lambda i: viz.keep_masks_figure(i, {"a": torch.full((2, 2), 0.5)}),
            r"keeps\['a'\]: got values from 0.5 to 0.5, expected only 0 and 1",
        ),
        (lambda i: viz.keep_masks_figure(i, {"a": torch.ones(4)}), r"keeps\['a'\]: got shape"),
        (
            lambda i: viz.keep_masks_figure(i, {"a": torch.ones(2, 2)}, boxes=torch.ones(4)),
            r"boxes: got shape \(4,\), expected \(n, 4\)",
        ),
        (lambda i: viz.levels_figure(i, {}), "maps: got no entry"),
        (lambda i: viz.levels_figure(i, {"a": {}}), r"maps\['a'\]: got no entry"),
        (
            lambda i: viz.levels_figure(i, {"a": {8: torch.ones(1, 2, 2)}}),
            r"maps\['a'\]\[8\]: got shape \(1, 2, 2\)",
        ),
        (
            lambda i: viz.levels_figure(i, {"a": {8: torch.tensor([[1.0, NAN]])}}),
            r"maps\['a'\]\[8\]: got values such as nan",
        ),
        (lambda i: viz.feature_maps_figure(i, {}), "maps: got no entry"),
        (lambda i: viz.pictures_figure({}), "images: got no entry"),
        (lambda i: viz.pictures_figure({"a": i}, signed=["b"]), r"signed: got \['b'\]"),
        (lambda i: viz.pictures_figure({"a": torch.ones(2, 4, 4)}), r"images\['a'\]: got shape"),
        (lambda i: viz.pictures_figure({"a": i * NAN}), r"images\['a'\]: got values such as nan"),
        (
            lambda i: viz.regions_figure({"a": i}, BOXES, {"b": torch.ones(2)}),
            r"scores: got names \['b'\], expected \['a'\]",
        ),
        (
            lambda i: viz.regions_figure({"a": i}, BOXES, {"a": torch.ones(3)}),
            r"scores\['a'\]: got shape \(3,\), expected \(2,\)",
        ),
        (
            lambda i: viz.regions_figure({"a": i}, BOXES[:0], {"a": torch.ones(0)}),
            "scores: got a tensor without values",
        ),
    ],
)
def test_bad_pictures_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(images(1)[0])


def test_one_bad_map_among_good_ones_is_noticed():
    for bad in (NAN, float("inf")):
        with pytest.raises(ValueError, match="such as"):
            value_range([torch.ones(2), torch.tensor([0.0, bad]), torch.zeros(2)])
    assert value_range([torch.tensor([1, 4]), torch.tensor([True])]) == (1, 4)


def test_wrapping_keeps_line_breaks_and_words():
    assert wrap("one two three", 0.6) == "one two\nthree"  # eight letters a line
    assert wrap("one\ntwo", 9) == "one\ntwo"
    assert wrap("", 1) == ""


def test_ink_takes_the_higher_contrast():
    # relative luminances 0.2159 (grey 0.5: 4.3 against 5.3 to black) and 0.1329 (grey 0.4)
    assert [ink(c) for c in ("white", "black", "0.5", "0.4", "#F0E442", "#0072B2")] == [
        *("black", "white", "black", "white", "black", "white")
    ]


def test_the_name_of_a_box_of_another_class_or_place_is_red_and_counted():
    truth = {"boxes": BOXES, "labels": torch.tensor([1, 2])}
    beside = torch.tensor([40.0, 30.0, 44.0, 34.0])
    found = {"boxes": torch.stack([BOXES[0], BOXES[1], beside]), "labels": torch.tensor([1, 1, 2])}
    found |= {"scores": torch.ones(3)}
    none = {"boxes": BOXES[:0], "labels": truth["labels"][:0]}
    options = {"classes": ["a", "b"], "names": ["first", "second"]}
    figure = viz.detections_figure(images(1) * 2, [found] * 2, [truth, none], **options)
    some = panel(figure, "first: 3 found, 2 wrong · 2 true").texts
    assert [text.get_text() for text in some] == ["a 1.00", "✗ a 1.00", "✗ b 1.00"]
    reds = [text.get_bbox_patch().get_facecolor()[:3] == to_rgb("#B00000") for text in some]
    assert reds == [False, True, True]
    every = panel(figure, "second: 3 found, 3 wrong · 0 true").texts
    assert [text.get_text()[0] for text in every] == ["✗"] * 3
    assert_readable(figure)


def test_signed_maps_are_centred_at_zero():
    maps = {"a": torch.tensor([[-1.0, 3.0]]), "b": torch.tensor([[0.0, 1.0]])}
    figure = viz.feature_maps_figure(images(1)[0], maps, signed=True)
    for name in maps:
        drawn = panel(figure, name).images[1]
        assert (drawn.get_clim(), drawn.get_cmap().name) == ((-3, 3), "PuOr")


def test_maps_without_colour_bars_are_larger():
    maps = {"a": torch.rand(4, 6), "b": torch.rand(4, 6)}
    barred, bare = (viz.pictures_figure(maps, bars=bars) for bars in (True, False))
    assert (len(barred.axes), len(bare.axes)) == (4, 2)
    assert_readable(bare)
