"""Panels: maps as small layers of colour numbers over a picture, and pages of them as pixels.

A browser gets the layers as PNG files of a few kilobytes and lays them over the picture itself; the
same layers make the pages that are saved. `dfmsd.viz` makes the figures of the notebooks; one of
those takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_rgba_array
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dfmsd.widgets.lab import MaskSettings, Scene

HEAT = 0.75
"""Share of the heat's colour in a heat map, the rest is the grey picture."""
CAPTION, BAR, GAP, TEXT = 24, 52, 8, 12
"""Height of a caption, width of a colour bar with its numbers, gap, size of letters; pixels."""
_FINE, _BARS = 384, 48  # pixels of a mask's layer at most; height of the bars of channels
_NEAREST = Image.Resampling.NEAREST
_FONT = ImageFont.truetype(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf", TEXT)
_COLOURS = {
    "heat": np.vstack(
        [to_rgba_array("#ededed"), matplotlib.colormaps["viridis"](np.arange(1, 256))]
    ),
    # a hidden cell is pale and hatched, as in `dfmsd.viz`; one that differs between two masks has
    # an orange rim
    "mask": to_rgba_array(["none", "#edededcc", "#8a8a8a", "#ff8c00"]),
    "channels": to_rgba_array(["none", "#2182b4", "#828282", "#ff8c00"]),
}
PALETTES = {name: (255 * colours).round().astype(np.uint8) for name, colours in _COLOURS.items()}
"""What the numbers of a layer mean, in RGBA."""


@dataclass(frozen=True)
class Panel:
    """A captioned map over the picture.

    Attributes:
        name: of the map, or "picture".
        caption: the words above it.
        layer: (h, w) uint8, numbers of a palette; None shows the picture alone.
        palette: one of `PALETTES`; "channels" are bars, which lie over nothing.
        limits: values of the first and the last colour of a heat map.
        window: of the scene that it came from, if that is another one than its page shows.
    """

    name: str
    caption: str
    layer: np.ndarray | None = None
    palette: str = "heat"
    limits: tuple[float, float] | None = None
    window: tuple[float, float] | None = None


def heat_panel(
    name: str, caption: str, values: Tensor, limits: tuple[float, float], keep: Tensor | None = None
) -> Panel:
    """A map (h, w) in colours; values beyond the limits take the last one.

    Cells that are 0 in `keep`, (h, w), are pale.
    """
    low, high = map(float, limits)
    share = (values.numpy() - low) / max(high - low, 1e-12)
    layer = (share * 255).clip(1, 255).astype(np.uint8)  # 0 is pale
    layer *= 1 if keep is None else (keep != 0).numpy()
    return Panel(name, caption, layer, "heat", (low, high))


def mask_panel(name: str, caption: str, keep: Tensor, other: Tensor | None = None) -> Panel:
    """Hidden cells (0 in `keep`, (h, w)) hatched; those of `other` that differ have a rim."""
    block = max(4, min(64, _FINE // max(keep.shape)))
    square = np.ones((block, block), np.uint8)
    hidden = np.kron((keep == 0).numpy(), square)
    y, x = np.ogrid[: hidden.shape[0], : hidden.shape[1]]
    layer = np.where((x + y) % 10 < 2, np.uint8(2), np.uint8(1)) * hidden
    if other is not None and other.shape == keep.shape:
        differs, width = np.kron((other != keep).numpy(), square), max(1, block // 8)
        rim = [(edge % block < width) | (edge % block >= block - width) for edge in (y, x)]
        layer[(rim[0] | rim[1]) & (differs > 0)] = 3
    return Panel(name, caption, layer, "mask")


def channel_panel(maps: Mapping[str, Tensor], channel: int) -> Panel:
    """Bars of the attention over channels, grey where hidden, orange at the one that is shown."""
    heights = (maps["channels"] / maps["channels"].max()).numpy()
    kind = np.where(maps["keep_channel"].numpy() == 0, 2, 1)
    kind[channel] = 3
    filled = np.arange(_BARS, 0, -1)[:, None] <= np.maximum(1, (heights * _BARS).round())
    bars = np.repeat(filled * kind, 4, axis=1)  # a bar is three pixels wide, and a gap
    bars[:, 3::4] = 0
    hidden = int((maps["keep_channel"] == 0).sum())
    caption = f"channels: {hidden} of {len(heights)} hidden (grey)"
    return Panel("channels", caption, bars.astype(np.uint8), "channels")


def map_panels(
    maps: Mapping[str, Tensor], settings: MaskSettings, other: Tensor | None = None
) -> list[Panel]:
    """Mask, attention, energy, enhanced attention and what is left of the student's feature.

    The maps are from `mask_maps` with these settings. Both attentions share one scale. Cells in
    which the mask differs from `other` are outlined.
    """
    top = 0, max(maps["attention"].max(), maps["enhanced"].max())
    off = "" if settings.enhances else " (off)"
    hidden = f"keep mask, hidden cells: {int((maps['keep'] == 0).sum())}"
    left = 0, maps["masked"].max()
    return [
        mask_panel("keep", hidden, maps["keep"], other),
        heat_panel("attention", "attention, mean 1", maps["attention"], top),
        heat_panel("energy", f"frequency energy by {settings.regions}", maps["energy"], (0, 1)),
        heat_panel("enhanced", f"enhanced attention{off}", maps["enhanced"], top),
        heat_panel("masked", "feature after both masks", maps["masked"], left, maps["keep"]),
    ]


def draw(scene: Scene, panel: Panel, side: int, *, boxes: bool = True) -> Image.Image:
    """A panel over the scene's picture, its longer side `side` pixels, RGB."""
    picture = to_pil_image((scene.image.clamp(0, 1) * 255).round().byte())
    scale = side / max(picture.size)
    size = tuple(max(1, round(edge * scale)) for edge in picture.size)
    # generated scenes are enlarged: their pixels stay pixels
    page = picture.resize(size, _NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    high, wide = panel.window or scene.window
    if panel.palette == "channels":
        page, high, wide, boxes = Image.new("RGB", size, "white"), 1, 1, False
    if panel.layer is not None:
        layer = layer_image(panel)
        shown = (0, 0, wide * layer.width, high * layer.height)
        layer = layer.resize(size, _NEAREST, shown).convert("RGBA")
        if panel.palette == "heat":
            layer.putalpha(round(255 * HEAT))
            page = page.convert("L")
        page = Image.alpha_composite(page.convert("RGBA"), layer)
    if boxes:
        page = Image.alpha_composite(page.convert("RGBA"), _frames(size, scene.boxes * scale))
    return page.convert("RGB")


def layer_image(panel: Panel) -> Image.Image:
    """The layer of a panel with its palette, for a page or, as a PNG, for a browser."""
    image = Image.fromarray(panel.layer)
    image.putpalette(PALETTES[panel.palette].tobytes(), "RGBA")
    return image


def _frames(size: tuple[int, int], boxes: Tensor) -> Image.Image:
    """Frames of boxes (n, 4) over nothing, inside `size`: white dashes on a dark rim."""
    rim, dashes = Image.new("L", size), Image.new("L", size)
    last = torch.tensor(size).repeat(2) - 1
    for box in boxes.round().int():
        ends = torch.cat([box[:2].clamp_min(0), (box[2:] - 1).maximum(box[:2])])
        ImageDraw.Draw(rim).rectangle(ends.minimum(last).tolist(), outline=255, width=2)
        ImageDraw.Draw(dashes).rectangle(ends.minimum(last).tolist(), outline=255)
    y, x = np.indices(size[::-1])
    frames = Image.new("RGBA", size)
    frames.paste("#202020", mask=rim)
    frames.paste("white", mask=Image.fromarray(np.asarray(dashes) * ((x + y) % 7 < 4)))
    return frames


def mosaic(
    scene: Scene, panels: Sequence[Panel], *, columns: int, side: int = 280, boxes: bool = True
) -> Image.Image:
    """The panels in rows, each `side` pixels long, with captions and colour bars on white."""
    drawn = [draw(scene, panel, side, boxes=boxes) for panel in panels]
    (width, height), rows = drawn[0].size, -(-len(panels) // columns)
    words = max(round(_FONT.getlength(panel.caption)) for panel in panels)
    step_down, step_right = CAPTION + height + GAP, max(width + BAR, words) + GAP
    page = Image.new("RGB", (GAP + columns * step_right, GAP + rows * step_down), "white")
    pen = ImageDraw.Draw(page)
    bar = Image.fromarray(PALETTES["heat"][:0:-1, None, :3]).resize((10, height))
    for index, panel in enumerate(panels):
        left, top = GAP + index % columns * step_right, GAP + CAPTION + index // columns * step_down
        page.paste(drawn[index], (left, top))
        pen.text((left, top - 5), panel.caption, "black", _FONT, anchor="ls")
        if panel.limits:
            page.paste(bar, (left + width + 4, top))
            low, high = (f"{value:.3g}" for value in panel.limits)
            pen.text((left + width + 18, top), high, "black", _FONT, anchor="la")
            pen.text((left + width + 18, top + height), low, "black", _FONT, anchor="ld")
    return page


def png(image: Image.Image, *, colours: int | None = None) -> bytes:
    """A PNG: quickly packed and exact, or small with at most `colours`."""
    if not colours:
        return _packed(image, "PNG", compress_level=1)
    # the default method takes its colours from the commonest pixels and spoils the scales
    how = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 1, "dither": Image.Dither.NONE}
    return _packed(image.quantize(colours, **how), "PNG", optimize=True)


def gif(pages: Sequence[Image.Image], *, milliseconds: int = 150) -> bytes:
    """An endless GIF of pages of one size."""
    # one palette, of every fourth pixel of all pages: what stays still then costs nothing
    sample = Image.fromarray(np.concatenate([np.asarray(page)[::4, ::4] for page in pages]))
    palette = sample.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    first, *rest = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages)
    frames = {"save_all": True, "append_images": rest, "duration": milliseconds, "loop": 0}
    return _packed(first, "GIF", **frames)


def _packed(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
