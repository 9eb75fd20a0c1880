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
from dfmsd.widgets.mosaic import Backdrop, Panel, four_panels, mosaic, png


def picture(height=6, width=8):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def backdrop_of(image, side, boxes=(), window=(1.0, 1.0)):
    boxes = torch.tensor(boxes, dtype=torch.float).reshape(-1, 4)
    return Backdrop(SimpleNamespace(image=image, boxes=boxes, window=window), side=side)


def test_hidden_cells_are_dark_and_the_others_untouched():
    backdrop = backdrop_of(picture(), 16)
    assert backdrop.rgb.shape == (12, 16, 3)
    np.testing.assert_array_equal(
        backdrop.rgb[::2, ::2], (picture() * 255).round().byte().permute(1, 2, 0).numpy()
    )
    keep = torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    pixels = backdrop.draw_mask(keep)
    for y in range(12):
        for x in range(16):
            hidden = keep[y // 6, x // 4] == 0
            hatched = (x + y) % 6 == 0
            dark = drawing.HATCH if hatched else (drawing.DARK * backdrop.rgb[y, x]).astype(int)
            np.testing.assert_array_equal(pixels[y, x], dark if hidden else backdrop.rgb[y, x])


def test_a_heat_map_has_its_colours_over_grey_and_is_cut_at_its_limits():
    backdrop = backdrop_of(torch.zeros(3, 4, 4), 4)
    pixels = backdrop.draw_heat(torch.tensor([[0.0, 5.0], [10.0, 99.0]]), (0.0, 10.0))
    viridis = matplotlib.colormaps["viridis"]
    for (y, x), share in {(0, 0): 0, (0, 3): 127, (3, 0): 255, (3, 3): 255}.items():
        expected = drawing.HEAT * 255 * np.array(viridis(share)[:3])
        np.testing.assert_allclose(pixels[y, x], expected, atol=1.5)


def test_the_padded_part_of_a_map_is_not_shown():
    # The picture covers 3 of 4 rows and 1 of 2 columns of cells.
    backdrop = backdrop_of(torch.ones(3, 6, 4), 6, window=(0.75, 0.5))
    keep = torch.ones(4, 2)
    keep[3], keep[:, 1] = 0, 0
    np.testing.assert_array_equal(backdrop.draw_mask(keep), backdrop.rgb)
    keep[1, 0] = 0
    dark = backdrop.draw_mask(keep).max(2) < 255
    assert dark[2:4].all()
    assert not dark[:2].any()
    assert not dark[4:].any()


@pytest.mark.parametrize("box", [[2, 2, 14, 10], [-9, -9, 99, 99], [7, 7, 7, 7]])
def test_boxes_are_dashed_inside_the_picture(box):
    grey = torch.full((3, 12, 16), 0.5)
    backdrop = backdrop_of(grey, 16, boxes=[box])
    pixels = backdrop.draw_mask(torch.ones(1, 1))
    assert {32, 255} & set(np.unique(pixels[pixels != 128]).tolist())
    if box == [2, 2, 14, 10]:
        changed = np.argwhere((pixels == 255).all(2))
        assert changed.min(0).tolist() == [2, 2]
        assert changed.max(0).tolist() == [9, 13]
        assert (pixels[4:8, 4:12] == 128).all()


def test_panels_lie_in_rows_with_caption_bar_and_numbers():
    plain = np.full((20, 30, 3), 100, np.uint8)
    panels = [Panel("one", plain), Panel("two", plain, (0.0, 2.5)), Panel("three", plain)]
    page = mosaic(panels, columns=2)
    high, wide = drawing.CAPTION + 20 + drawing.GAP, 30 + drawing.BAR + drawing.GAP
    assert page.shape == (2 * high, 2 * wide, 3)
    assert page.dtype == np.uint8
    for top, left in ((0, 0), (0, wide), (high, 0)):
        place = (slice(top + drawing.CAPTION, top + high - drawing.GAP), slice(left, left + 30))
        np.testing.assert_array_equal(page[place], plain)
        assert (page[top : top + drawing.CAPTION, left : left + 30] < 128).any()  # the caption
    bar = page[drawing.CAPTION : drawing.CAPTION + 20, wide + 30 : 2 * wide]
    assert (bar[0, 4] > bar[-1, 4])[:2].all()  # yellow above violet
    assert (bar[:, 16:] < 128).any()  # numbers
    assert (page[high:, wide:] == 255).all()  # no fourth panel
    assert (page[drawing.CAPTION : high, 30 + 1 : wide] == 255).all()  # no bar without limits


def test_both_attentions_share_a_scale_that_holds_both():
    backdrop = backdrop_of(picture(), 8)
    maps = {"keep": torch.tensor([[1.0, 0.0]]), "energy": torch.tensor([[0.2, 1.0]])}
    maps |= {"attention": torch.tensor([[0.5, 1.5]]), "enhanced": torch.tensor([[0.1, 1.9]])}
    mask, attention, energy, enhanced = four_panels(backdrop, maps, MaskSettings(8))
    assert mask.caption == "keep mask, hidden cells: 1"
    assert mask.limits is None
    assert attention.limits == enhanced.limits == (0, pytest.approx(1.9))
    assert energy.limits == (0, 1)
    np.testing.assert_array_equal(energy.pixels, backdrop.draw_heat(maps["energy"], (0, 1)))
    np.testing.assert_array_equal(enhanced.pixels, backdrop.draw_heat(maps["enhanced"], (0, 1.9)))
    without = four_panels(backdrop, maps, MaskSettings(8, regions="boxes", strength=0))
    assert without[2].caption == "frequency energy by boxes"
    assert without[3].caption == "enhanced attention (off)"


def test_a_png_is_exact_or_small():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    exact, small = png(pixels), png(pixels, colours=16)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(exact))), pixels)
    assert len(small) < len(exact) / 2
    reduced = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"))
    assert len(np.unique(reduced.reshape(-1, 3), axis=0)) <= 16
