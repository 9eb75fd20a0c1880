"""Panels: maps as small layers of colour numbers over a picture, and pages of them as pixels.

A browser gets the layers as PNG files of a few kilobytes and lays them over the picture itself; the
same layers make the pages that are saved. `dfmsd.viz` makes the figures of the notebooks; one of
those takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dfmsd.widgets.lab import MaskSettings, Scene

HEAT = 0.75
"""Share of the heat's colour in a heat map, the rest is the grey picture."""
CAPTION, BAR, GAP, TEXT = 24, 52, 8, 12
"""Height of a caption, width of a colour bar with its numbers, gap, size of letters; pixels."""
_FINE, _BARS = 384, 48  # pixels of a mask's layer at most; height of the bars of channels
_FONT = ImageFont.truetype(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf", TEXT)
VIRIDIS = (matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8)
# What the numbers of a layer mean, in RGBA. A hidden cell is dark and hatched, which tells it from
# a dark picture; cells that differ between two masks have an orange rim.
_MASK = np.array([[0, 0, 0, 0], [0, 0, 0, 217], [128, 128, 128, 255], [255, 140, 0, 255]], np.uint8)
_CHANNELS = np.array([[0, 0, 0, 0], [33, 130, 180, 255], [130, 130, 130, 255], [255, 140, 0, 255]])
_HEAT = np.concatenate([VIRIDIS, np.full((256, 1), 255, np.uint8)], axis=1)
PALETTES = {"heat": _HEAT, "mask": _MASK, "channels": _CHANNELS.astype(np.uint8)}


@dataclass(frozen=True)
class Panel:
    """A captioned map over the picture.

    Attributes:
        name: of the map, or "picture".
        caption: the words above it.
        layer: (h, w) uint8, numbers of a palette; None shows the picture alone.
        palette: one of `PALETTES`; "channels" are bars, which lie over nothing.
        limits: values of the first and the last colour of a heat map.
    """

    name: str
    caption: str
    layer: np.ndarray | None = None
    palette: str = "heat"
    limits: tuple[float, float] | None = None


def heat_panel(name: str, caption: str, values: Tensor, limits: tuple[float, float]) -> Panel:
    """A map (h, w) in colours; values beyond the limits take the last one."""
    low, high = limits
    share = (values.numpy() - low) / max(high - low, 1e-12)
    layer = (share * 255).clip(0, 255).astype(np.uint8)
    return Panel(name, caption, layer, "heat", (float(low), float(high)))


def mask_panel(name: str, caption: str, keep: Tensor, other: Tensor | None = None) -> Panel:
    """Hidden cells (0 in `keep`, (h, w)) hatched; those of `other` that differ have a rim."""
    block = max(4, min(64, _FINE // max(keep.shape)))
    hidden = (keep == 0).numpy().repeat(block, 0).repeat(block, 1)
    y, x = np.ogrid[: hidden.shape[0], : hidden.shape[1]]
    layer = np.where((x + y) % 10 < 2, np.uint8(2), np.uint8(1)) * hidden
    if other is not None and other.shape == keep.shape:
        differs, width = (
            (other != keep).numpy().repeat(block, 0).repeat(block, 1),
            max(1, block // 8),
        )
        rim = [(edge % block < width) | (edge % block >= block - width) for edge in (y, x)]
        layer[(rim[0] | rim[1]) & differs] = 3
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
    top = (0.0, float(max(maps["attention"].max(), maps["enhanced"].max())))
    off = "" if settings.enhances else " (off)"
    hidden = f"keep mask, hidden cells: {int((maps['keep'] == 0).sum())}"
    left = (0.0, float(maps["masked"].max()))
    return [
        mask_panel("keep", hidden, maps["keep"], other),
        heat_panel("attention", "attention, mean 1", maps["attention"], top),
        heat_panel("energy", f"frequency energy by {settings.regions}", maps["energy"], (0, 1)),
        heat_panel("enhanced", f"enhanced attention{off}", maps["enhanced"], top),
        heat_panel("masked", "feature after both masks", maps["masked"], left),
    ]


class Backdrop:
    """A scene's picture, `side` pixels long, over which panels are drawn."""

    def __init__(self, scene: Scene, *, side: int) -> None:
        rgb = (scene.image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        self.original = rgb
        scale = side / max(rgb.shape[:2])
        height, width = (max(1, round(edge * scale)) for edge in rgb.shape[:2])
        # generated scenes are enlarged: their pixels stay pixels
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        self.rgb = np.asarray(
            Image.fromarray(np.ascontiguousarray(rgb)).resize((width, height), how)
        )
        self._grey = ((1 - HEAT) * self.rgb.mean(2, keepdims=True)).astype(np.uint8)
        self._window = scene.window
        frames = _draw_frames((height, width), scene.boxes.numpy() * scale)
        self._rims, self._dashes = np.flatnonzero(frames == 1), np.flatnonzero(frames == 2)

    def draw(self, panel: Panel, *, boxes: bool = True) -> np.ndarray:
        """Pixels (H, W, 3) uint8 of a panel."""
        if panel.palette == "channels":
            layer = PALETTES["channels"][_stretch(panel.layer, self.rgb.shape, (1, 1))]
            return np.where(layer[..., 3:] > 0, layer[..., :3], np.uint8(255))
        pixels = self.rgb.copy()
        if panel.layer is not None:
            colours = PALETTES[panel.palette][_stretch(panel.layer, pixels.shape, self._window)]
            if panel.palette == "heat":
                pixels = (HEAT * colours[..., :3]).astype(np.uint8) + self._grey
            else:
                share = colours[..., 3:] / 255
                pixels = (share * colours[..., :3] + (1 - share) * pixels).astype(np.uint8)
        if boxes:
            flat = pixels.reshape(-1, 3)
            flat[self._rims], flat[self._dashes] = 32, 255
        return pixels


def _stretch(cells: np.ndarray, size: Sequence[int], window: tuple[float, float]) -> np.ndarray:
    """The part of a map (h, w) in the window at the size of a panel, every cell a block."""
    rows, columns = (
        ((np.arange(pixels) + 0.5) / pixels * share * count).astype(int)
        for pixels, share, count in zip(size, window, cells.shape, strict=False)
    )
    return cells[rows][:, columns]


def _draw_frames(size: tuple[int, int], boxes: np.ndarray) -> np.ndarray:
    """(H, W): 2 on the dashes of the boxes' frames, 1 on the gaps and the rim, 0 elsewhere."""
    rim, dashes = Image.new("L", size[::-1]), Image.new("L", size[::-1])
    for left, top, right, bottom in boxes.round().astype(int).tolist():
        right, bottom = max(left, min(right, size[1]) - 1), max(top, min(bottom, size[0]) - 1)
        corners = [max(edge, 0) for edge in (left, top, right, bottom)]
        ImageDraw.Draw(rim).rectangle(corners, outline=1, width=2)
        ImageDraw.Draw(dashes).rectangle(corners, outline=1)
    y, x = np.indices(size)
    return np.maximum(np.asarray(rim), 2 * np.asarray(dashes) * ((x + y) % 7 < 4))


def mosaic(
    backdrop: Backdrop, panels: Sequence[Panel], columns: int, *, boxes: bool = True
) -> np.ndarray:
    """The panels in rows of `columns`, with captions and colour bars on white: uint8 (H, W, 3)."""
    height, width = backdrop.rgb.shape[:2]
    step_down, step_right = CAPTION + height + GAP, width + BAR + GAP
    page = Image.new("RGB", (columns * step_right, -(-len(panels) // columns) * step_down), "white")
    pen = ImageDraw.Draw(page)
    bar = VIRIDIS[np.linspace(255, 0, height).astype(np.uint8)][:, None].repeat(10, axis=1)
    for index, panel in enumerate(panels):
        left, top = index % columns * step_right, index // columns * step_down + CAPTION
        page.paste(Image.fromarray(backdrop.draw(panel, boxes=boxes)), (left, top))
        pen.text((left, top - 5), panel.caption, "black", _FONT, anchor="ls")
        if panel.limits:
            page.paste(Image.fromarray(bar), (left + width + 4, top))
            low, high = (f"{value:.3g}" for value in panel.limits)
            pen.text((left + width + 18, top), high, "black", _FONT, anchor="la")
            pen.text((left + width + 18, top + height), low, "black", _FONT, anchor="ld")
    return np.asarray(page)


def layer_png(panel: Panel) -> bytes:
    """The layer of a panel as a PNG with a palette, for a browser."""
    image, colours = Image.fromarray(panel.layer), PALETTES[panel.palette]
    image.putpalette(colours[:, :3].tobytes())
    file = BytesIO()
    image.save(file, "PNG", compress_level=1, transparency=colours[:, 3].tobytes())
    return file.getvalue()


def png(pixels: np.ndarray, *, colours: int | None = None) -> bytes:
    """A PNG of uint8 (H, W, 3): quickly packed and exact, or small with at most `colours`."""
    file, image = BytesIO(), Image.fromarray(np.ascontiguousarray(pixels))
    if colours:
        # the default method takes its colours from the commonest pixels and spoils the scales
        how = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 1, "dither": Image.Dither.NONE}
        image.quantize(colours, **how).save(file, "PNG", optimize=True)
    else:
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def gif(pages: Sequence[np.ndarray], *, milliseconds: int = 150) -> bytes:
    """An endless GIF of pages of one size, uint8 (H, W, 3)."""
    first, *rest = (Image.fromarray(page).quantize(128, dither=Image.Dither.NONE) for page in pages)
    file = BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
    return file.getvalue()
