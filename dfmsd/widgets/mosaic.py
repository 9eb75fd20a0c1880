"""Maps over a picture as one array of pixels, in milliseconds: for a picture that follows a hand.

`dfmsd.viz` makes the figures of the notebooks; one of those takes a tenth of a second.
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

HEAT, DARK, HATCH = 0.75, 0.15, 80
"""Share of the heat's colour in a heat map; brightness left to a hidden cell; grey of its lines."""
CAPTION, BAR, GAP, TEXT = 24, 52, 8, 12
"""Height of a caption, width of a colour bar with its numbers, gap, size of letters; pixels."""
_FONT = ImageFont.truetype(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf", TEXT)
_COLOURS = (matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8)


@dataclass(frozen=True)
class Panel:
    """A captioned picture (H, W, 3) uint8, with a colour bar when it has limits."""

    caption: str
    pixels: np.ndarray
    limits: tuple[float, float] | None = None


class Backdrop:
    """A scene's picture with dashed boxes, `side` pixels long, and all that no slider changes."""

    def __init__(self, scene: Scene, *, side: int) -> None:
        rgb = (scene.image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        scale = side / max(rgb.shape[:2])
        height, width = (max(1, round(edge * scale)) for edge in rgb.shape[:2])
        # generated scenes are enlarged: their pixels stay pixels
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        self.rgb = np.asarray(Image.fromarray(rgb).resize((width, height), how))
        self._grey = ((1 - HEAT) * self.rgb.mean(2, keepdims=True)).astype(np.uint8)
        self._dark = (DARK * self.rgb).astype(np.uint8)
        y, x = np.indices((height, width))
        self._dark[(x + y) % 6 == 0] = HATCH  # tells a hidden cell from a dark picture
        self._window = scene.window
        frames = _draw_frames((height, width), scene.boxes.numpy() * scale)
        self._rims, self._dashes = np.flatnonzero(frames == 1), np.flatnonzero(frames == 2)

    def draw_mask(self, keep: Tensor) -> np.ndarray:
        """Pixels (H, W, 3) of the picture, cells dark and hatched where `keep` (h, w) is 0."""
        hidden = self._enlarge(keep.numpy() == 0)
        return self._draw_boxes(np.where(hidden[..., None], self._dark, self.rgb))

    def draw_heat(self, values: Tensor, limits: tuple[float, float]) -> np.ndarray:
        """Pixels (H, W, 3) of the colours of a map (h, w) over the picture in grey."""
        low, high = limits
        share = (values.numpy() - low) / max(high - low, 1e-12)
        colours = (HEAT * _COLOURS).astype(np.uint8)[(share * 255).clip(0, 255).astype(np.uint8)]
        return self._draw_boxes(self._enlarge(colours) + self._grey)

    def _enlarge(self, cells: np.ndarray) -> np.ndarray:
        """A map (h, w, ...) at the size of the panel, every cell a block."""
        rows, columns = (
            ((np.arange(pixels) + 0.5) / pixels * share * count).astype(int)
            for pixels, share, count in zip(self.rgb.shape, self._window, cells.shape, strict=False)
        )
        return cells[rows][:, columns]

    def _draw_boxes(self, pixels: np.ndarray) -> np.ndarray:
        flat = pixels.reshape(-1, 3)
        flat[self._rims], flat[self._dashes] = 32, 255
        return pixels


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


def four_panels(
    backdrop: Backdrop, maps: Mapping[str, Tensor], settings: MaskSettings
) -> list[Panel]:
    """Keep mask, attention, energy and enhanced attention; both attentions share one scale.

    The maps are (h, w), from `mask_maps` with these settings.
    """
    top = (0.0, float(max(maps["attention"].max(), maps["enhanced"].max())))
    off = "" if settings.enhances else " (off)"
    heats = (
        ("attention, mean 1", maps["attention"], top),
        (f"frequency energy by {settings.regions}", maps["energy"], (0.0, 1.0)),
        (f"enhanced attention{off}", maps["enhanced"], top),
    )
    hidden = f"keep mask, hidden cells: {int((maps['keep'] == 0).sum())}"
    panels = [Panel(name, backdrop.draw_heat(heat, limits), limits) for name, heat, limits in heats]
    return [Panel(hidden, backdrop.draw_mask(maps["keep"])), *panels]


def mosaic(panels: Sequence[Panel], columns: int) -> np.ndarray:
    """The panels, all of one size, in rows of `columns`, white between: uint8 (H, W, 3)."""
    height, width = panels[0].pixels.shape[:2]
    step_down, step_right = CAPTION + height + GAP, width + BAR + GAP
    page = Image.new("RGB", (columns * step_right, -(-len(panels) // columns) * step_down), "white")
    pen = ImageDraw.Draw(page)
    bar = _COLOURS[np.linspace(255, 0, height).astype(np.uint8)][:, None].repeat(10, axis=1)
    for index, panel in enumerate(panels):
        left, top = index % columns * step_right, index // columns * step_down + CAPTION
        page.paste(Image.fromarray(panel.pixels), (left, top))
        pen.text((left, top - 5), panel.caption, "black", _FONT, anchor="ls")
        if panel.limits:
            page.paste(Image.fromarray(bar), (left + width + 4, top))
            low, high = (f"{value:.3g}" for value in panel.limits)
            pen.text((left + width + 18, top), high, "black", _FONT, anchor="la")
            pen.text((left + width + 18, top + height), low, "black", _FONT, anchor="ld")
    return np.asarray(page)


def png(pixels: np.ndarray, *, colours: int | None = None) -> bytes:
    """A PNG of uint8 (H, W, 3): quickly packed and exact, or small with at most `colours`."""
    file, image = BytesIO(), Image.fromarray(pixels)
    if colours:
        # the default method takes its colours from the commonest pixels and spoils the scales
        how = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 1, "dither": Image.Dither.NONE}
        image.quantize(colours, **how).save(file, "PNG", optimize=True)
    else:
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()
