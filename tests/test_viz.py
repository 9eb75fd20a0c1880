"""Figures: every panel is there and titled, no box or value is lost, nothing is written outside."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from figures import assert_readable, frames, images

from dfmsd import viz

CLASSES = ("striped disc", "checked square", "a class with a rather long name")


def labelled(count, *, scores=False):
    corner = torch.arange(count)[:, None] * torch.tensor([6.0, 4.0])
    found = {"boxes": torch.cat([corner, corner + 12], 1), "labels": torch.arange(count) % 3 + 1}
    if scores:
        found["scores"] = torch.linspace(0.1, 0.9, count)
    return found


def titles_of_a_row_do_not_touch(figure):
    figure.canvas.draw()
    spans = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    return all(
        not first.overlaps(second) for i, first in enumerate(spans) for second in spans[i + 1 :]
    )


def test_detections_draw_every_sure_box_and_every_truth():
    predictions = [labelled(count, scores=True) for count in (5, 0, 3, 1, 2)]
    truths = [labelled(count) for count in (2, 0, 4, 0, 1)]
    figure = viz.detections_figure(
        images(5), predictions, truths, classes=CLASSES, score=0.4, title="found and true"
    )
    assert len(figure.axes) == 5
    for axes, found, truth in zip(figure.axes, predictions, truths, strict=True):
        sure = found["boxes"][found["scores"] >= 0.4]
        expected = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in sure.tolist()]
        assert frames(axes, dashed=False) == expected
        assert len(frames(axes, dashed=True)) == len(truth["boxes"])
        head, true = axes.get_title().split(" · ")
        assert head.startswith(f"{len(sure)} found, ")
        assert true == f"{len(truth['boxes'])} true"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(CLASSES)
    assert "0.4" in figure.legends[0].get_title().get_text()
    assert titles_of_a_row_do_not_touch(figure)
    assert_readable(figure)


def test_a_tag_names_class_and_score():
    found = {
        "boxes": torch.tensor([[30.0, 20.0, 40.0, 40.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.875]),
    }
    figure = viz.detections_figure(images(1), [found], classes=CLASSES)
    assert [text.get_text() for text in figure.axes[0].texts] == ["checked square 0.88"]
    (frame,) = figure.axes[0].patches
    assert matplotlib.colors.same_color(frame.get_edgecolor(), "#56B4E9")


def test_scenes_draw_every_box_without_tags():
    targets = [{**labelled(count), "image_id": 40 + count} for count in (1, 3, 0)]
    figure = viz.scene_sheet(images(3), targets, CLASSES)
    heads = [axes.get_title() for axes in figure.axes]
    assert heads == ["41: 1 object", "43: 3 objects", "40: 0 objects"]
    assert [len(frames(axes, dashed=False)) for axes in figure.axes] == [1, 3, 0]
    assert not any(axes.texts for axes in figure.axes)
    assert_readable(figure)


@pytest.mark.parametrize("bad", [0, 4])
def test_a_label_without_a_class_is_refused(bad):
    target = {"boxes": torch.tensor([[0.0, 0.0, 5.0, 5.0]]), "labels": torch.tensor([bad])}
    with pytest.raises(ValueError, match=f"labels: got {bad}"):
        viz.scene_sheet(images(1), [target], CLASSES)


def test_bad_shapes_and_lengths_are_refused():
    with pytest.raises(ValueError, match=r"image: got shape \(48, 64\)"):
        viz.feature_maps_figure([torch.rand(48, 64)], {"teacher": [torch.rand(3, 4)]})
    with pytest.raises(ValueError, match=r"map: got shape \(1, 3, 4\)"):
        viz.feature_maps_figure(images(1), {"teacher": [torch.rand(1, 3, 4)]})
    with pytest.raises(ValueError, match="map: got values"):
        viz.feature_maps_figure(images(1), {"teacher": [torch.full((3, 4), float("nan"))]})
    with pytest.raises(ValueError, match="lengths"):
        viz.scene_sheet(images(2), [labelled(1)], CLASSES)
    with pytest.raises(ValueError, match="lengths"):
        viz.feature_maps_figure(images(2), {"teacher": [torch.rand(3, 4)]})


def test_feature_maps_share_a_scale_within_a_row():
    maps = {name: torch.rand(2, 6, 8) * k for k, name in enumerate(["teacher", "student", "s1"], 1)}
    figure = viz.feature_maps_figure(images(2), maps, title="maps")
    assert len(figure.axes) == 2 * 4 + 2
    assert [axes.get_title() for axes in figure.axes[:4]] == ["image", *maps]
    for row in range(2):
        heats = [axes.images[1] for axes in figure.axes[row * 4 + 1 : row * 4 + 4]]
        both = torch.stack([values[row] for values in maps.values()])
        assert {heat.get_clim() for heat in heats} == {(float(both.min()), float(both.max()))}
        for heat, values in zip(heats, maps.values(), strict=True):
            assert np.array_equal(heat.get_array(), values[row].numpy())
            assert tuple(heat.get_extent()) == (0, 64, 48, 0)  # over the whole image
    assert titles_of_a_row_do_not_touch(figure)
    assert_readable(figure)


def test_feature_maps_take_a_single_image_and_leave_gradients_alone():
    feature = torch.rand(5, 7, requires_grad=True)
    figure = viz.feature_maps_figure(images(1)[0], {"teacher": feature, "student": feature * 2})
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "teacher", "student"]
    assert feature.grad is None
    assert_readable(figure)


def test_masks_count_and_hatch_the_hidden_cells():
    attention, keep = torch.rand(6, 8), torch.ones(6, 8)
    keep[0, :3] = 0
    figure = viz.masks_figure(
        images(1)[0], attention, keep, enhanced=attention * 2, boxes=labelled(2)["boxes"]
    )
    pictures = [axes for axes in figure.axes if axes.images]
    assert pictures[3].get_title() == "visible: 45 of 48 cells (94%)"
    pale = np.asarray(pictures[3].images[1].get_array())[..., 3]
    assert np.array_equal(pale > 0, keep.numpy() == 0)
    assert pictures[1].images[1].get_clim() == pictures[2].images[1].get_clim()
    assert all(len(frames(axes, dashed=True)) == 2 for axes in pictures[:4])
    assert titles_of_a_row_do_not_touch(figure)
    assert_readable(figure)


def test_masks_take_bool_and_no_enhancement():
    figure = viz.masks_figure(images(1)[0], torch.rand(6, 8), torch.ones(6, 8, dtype=torch.bool))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["image", "attention of the teacher", "visible: 48 of 48 cells (100%)"]


def test_the_style_does_not_leak():
    before = dict(plt.rcParams)
    viz.bars_figure({"a": [1.0]})
    assert dict(plt.rcParams) == before
