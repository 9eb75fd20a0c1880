"""The laboratory's pixels: every cell where it belongs, in its colour."""

from __future__ import annotations

import io
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from dfmsd.widgets import mosaic as drawing
from dfmsd.widgets.lab import MaskSettings
from dfmsd.widgets.mosaic import (
    PALETTES,
    Panel,
    channel_panel,
    draw,
    gif,
    heat_panel,
    layer_image,
    map_panels,
    mask_panel,
    mosaic,
    png,
)


def picture(height=6, width=8):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def scene_of(image, boxes=(), window=(1.0, 1.0)):
    boxes = torch.tensor(boxes, dtype=torch.float).reshape(-1, 4)
    return SimpleNamespace(image=image, boxes=boxes, window=window)


def drawn(scene, panel, side, **options):
    return np.array(draw(scene, panel, side, **options))


def masked(scene, keep, side, **options):
    return drawn(scene, mask_panel("keep", "keep", keep), side, **options)


def plain(scene, side):
    return drawn(scene, Panel("picture", "picture"), side, boxes=False)


def test_hidden_cells_are_pale_and_hatched_and_the_others_untouched():
    scene, side = scene_of(picture()), 160
    assert plain(scene, side).shape == (120, 160, 3)
    keep = torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    pixels = masked(scene, keep, side)
    hidden = (keep == 0).numpy().repeat(60, 0).repeat(40, 1)
    np.testing.assert_array_equal(pixels[~hidden], plain(scene, side)[~hidden])
    line = (pixels[hidden] == 0x8A).all(1)
    assert 0.1 < line.mean() < 0.3
    pale = 0.2 * plain(scene, side)[hidden][~line] + 0.8 * 0xED
    np.testing.assert_allclose(pixels[hidden][~line], pale, atol=1)  # to whole numbers


def test_cells_that_differ_have_a_rim():
    scene, side = scene_of(picture()), 160
    keep, other = torch.ones(2, 4), torch.ones(2, 4)
    other[0, 1] = 0
    pixels = drawn(scene, mask_panel("keep", "keep", keep, other), side)
    rim = (pixels == PALETTES["mask"][3, :3]).all(2)
    assert rim[:60, 40:80].any(0).all()
    assert not rim[60:].any()
    assert not rim[:, :40].any()
    np.testing.assert_array_equal(masked(scene, keep, side), plain(scene, side))


def test_a_heat_map_has_its_colours_over_grey_and_is_cut_at_its_limits():
    scene = scene_of(torch.zeros(3, 4, 4))
    values = torch.tensor([[0.0, 5.0], [10.0, 99.0]])
    pixels = drawn(scene, heat_panel("a", "a", values, (0.0, 10.0)), 4)
    viridis = matplotlib.colormaps["viridis"]
    for (y, x), share in {(0, 0): 0, (0, 3): 127, (3, 0): 255, (3, 3): 255}.items():
        expected = drawing.HEAT * 255 * np.array(viridis(share)[:3])
        np.testing.assert_allclose(pixels[y, x], expected, atol=1.5)


def test_hidden_cells_of_a_heat_map_are_pale():
    keep = torch.tensor([[1, 0], [1, 1]])
    panel = heat_panel("a", "a", torch.tensor([[0.0, 9.0], [9.0, 4.0]]), (0, 9), keep)
    assert panel.layer.tolist() == [[1, 0], [255, 113]]
    pixels = drawn(scene_of(torch.zeros(3, 4, 4)), panel, 4)
    np.testing.assert_allclose(pixels[0, 3], drawing.HEAT * 0xED, atol=1)


def test_the_padded_part_of_a_map_is_not_shown():
    # The picture covers 3 of 4 rows and 1 of 2 columns of cells.
    scene, side = scene_of(torch.ones(3, 60, 40), window=(0.75, 0.5)), 60
    keep = torch.ones(4, 2)
    keep[3], keep[:, 1] = 0, 0
    np.testing.assert_array_equal(masked(scene, keep, side), plain(scene, side))
    keep[1, 0] = 0
    veiled = masked(scene, keep, side).max(2) < 255
    assert veiled[20:40].all()
    assert not veiled[:20].any()
    assert not veiled[40:].any()


@pytest.mark.parametrize("box", [[2, 2, 14, 10], [-9, -9, 99, 99], [7, 7, 7, 7]])
def test_boxes_are_dashed_inside_the_picture(box):
    grey = torch.full((3, 12, 16), 0.5)
    scene, side = scene_of(grey, boxes=[box]), 16
    pixels = masked(scene, torch.ones(1, 1), side)
    assert {32, 255} & set(np.unique(pixels[pixels != 128]).tolist())
    np.testing.assert_array_equal(
        masked(scene, torch.ones(1, 1), side, boxes=False), plain(scene, side)
    )
    if box == [2, 2, 14, 10]:
        changed = np.argwhere((pixels == 255).all(2))
        assert changed.min(0).tolist() == [2, 2]
        assert changed.max(0).tolist() == [9, 13]
        assert (pixels[4:8, 4:12] == 128).all()


def test_panels_lie_in_rows_with_caption_bar_and_numbers():
    scene, side = scene_of(torch.full((3, 20, 30), 0.4)), 30
    heat = heat_panel("two", "two", torch.zeros(2, 3), (0.0, 2.5))
    panels = [Panel("one", "one"), heat, Panel("three", "three")]
    page = np.array(mosaic(scene, panels, columns=2, side=side))
    high, wide = drawing.CAPTION + 20 + drawing.GAP, 30 + drawing.BAR + drawing.GAP
    assert page.shape == (drawing.GAP + 2 * high, drawing.GAP + 2 * wide, 3)
    page = page[drawing.GAP :, drawing.GAP :]
    for top, left in ((0, 0), (high, 0)):
        place = (slice(top + drawing.CAPTION, top + high - drawing.GAP), slice(left, left + 30))
        np.testing.assert_array_equal(page[place], plain(scene, side))
        assert (page[top : top + drawing.CAPTION, left : left + 30] < 128).any()  # the caption
    bar = page[drawing.CAPTION : drawing.CAPTION + 20, wide + 30 : 2 * wide]
    assert (bar[0, 4] > bar[-1, 4])[:2].all()  # yellow above violet
    assert (bar[:, 16:] < 128).any()  # numbers
    assert (page[high:, wide:] == 255).all()  # no fourth panel
    assert (page[drawing.CAPTION : high, 30 + 1 : wide] == 255).all()  # no bar without limits


def test_both_attentions_share_a_scale_that_holds_both():
    maps = {"keep": torch.tensor([[1.0, 0.0]]), "energy": torch.tensor([[0.2, 1.0]])}
    maps |= {"attention": torch.tensor([[0.5, 1.5]]), "enhanced": torch.tensor([[0.1, 1.9]])}
    maps |= {"masked": torch.tensor([[0.0, 0.4]])}
    mask, attention, energy, enhanced, left = map_panels(maps, MaskSettings(8))
    assert mask.caption == "keep mask, hidden cells: 1"
    assert mask.limits is None
    assert attention.limits == enhanced.limits == (0, pytest.approx(1.9))
    assert energy.limits == (0, 1)
    assert left.limits == (0, pytest.approx(0.4))
    without = map_panels(maps, MaskSettings(8, regions="boxes", strength=0))
    assert without[2].caption == "frequency energy by boxes"
    assert without[3].caption == "enhanced attention (off)"


def test_bars_are_as_high_as_their_attention_and_grey_where_hidden():
    maps = {"channels": torch.tensor([0.5, 2.0, 1.0]), "keep_channel": torch.tensor([1.0, 0, 1])}
    panel = channel_panel(maps, 2)
    assert panel.caption == "channels: 1 of 3 hidden (grey)"
    heights = [(panel.layer[:, 4 * k] > 0).mean() for k in range(3)]
    assert heights == [0.25, 1.0, 0.5]
    assert [panel.layer[-1, 4 * k] for k in range(3)] == [1, 2, 3]
    pixels = drawn(scene_of(picture()), panel, 16)
    assert (pixels[0, 0] == 255).all()  # a white ground, no picture


@pytest.mark.parametrize("kind", ["heat", "mask"])
def test_a_layer_as_png_has_the_colours_of_its_palette(kind):
    keep = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    panel = mask_panel("m", "m", keep) if kind == "mask" else heat_panel("h", "h", keep, (0, 1))
    read = np.asarray(Image.open(io.BytesIO(png(layer_image(panel)))).convert("RGBA"))
    expected = PALETTES[kind][panel.layer]
    np.testing.assert_array_equal(read[..., 3], expected[..., 3])
    seen = expected[..., 3] > 0
    np.testing.assert_array_equal(read[seen], expected[seen])


def test_a_gif_has_a_frame_per_page_and_never_ends():
    pages = [Image.new("RGB", (9, 8), (shade,) * 3) for shade in (0, 120, 240)]
    file = Image.open(io.BytesIO(gif(pages)))
    assert (file.n_frames, file.size, file.info["loop"]) == (3, (9, 8), 0)


def test_a_png_is_exact_or_small():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    page = Image.fromarray(pixels)
    exact, small = png(page), png(page, colours=16)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(exact))), pixels)
    assert len(small) < len(exact) / 2
    reduced = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"))
    assert len(np.unique(reduced.reshape(-1, 3), axis=0)) <= 16
