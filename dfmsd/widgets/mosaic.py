"""Maps over a picture as one array of pixels, drawn in milliseconds: for a slider, not for print.

`dfmsd.viz` makes the figures of the notebooks; a matplotlib figure takes a tenth of a second, too
long for a picture that follows a hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

HEAT, DARK, HATCH = 0.75, 0.15, 80
"""Share of the heat's colour in a heat map; brightness left to a hidden cell; grey of its lines."""
CAPTION, BAR, GAP, TEXT = 24, 52, 8, 12
"""Height of a caption, width of a colour bar with its numbers, gap, size of letters; pixels."""
_COLOURS = (matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8)


@dataclass(frozen=True)
class Panel:
    """A captioned picture (H, W, 3) uint8, with a colour bar when it has limits."""

    caption: str
    pixels: np.ndarray
    limits: tuple[float, float] | None = None


class Backdrop:
    """A picture at the size of its panels, and everything of it that no slider changes.

    Args:
        image: (3, H, W) in 0..1; drawn with its longer side `side` pixels long.
        boxes: (n, 4) xyxy, pixels of `image`; drawn thin, dashed and white.
        side: pixels.
        window: share of a map's height and width that lies over the picture, from the top left.
    """

    def __init__(
        self, image: Tensor, boxes: Tensor, *, side: int, window: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        """See the class."""
        rgb = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        scale = side / max(rgb.shape[:2])
        self.height, self.width = (max(1, round(edge * scale)) for edge in rgb.shape[:2])
        # generated scenes are enlarged: their pixels stay pixels
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        self.rgb = np.asarray(Image.fromarray(rgb).resize((self.width, self.height), how))
        grey = self.rgb.mean(2, keepdims=True)
        self._grey = ((1 - HEAT) * grey).astype(np.uint8)
        self._dark = (DARK * self.rgb).astype(np.uint8)
        y, x = np.indices((self.height, self.width))
        self._dark[(x + y) % 6 == 0] = HATCH  # tells a hidden cell from a dark picture
        self._window = window
        frames = _dashed((self.height, self.width), boxes.cpu().numpy() * scale)
        self._rims, self._dashes = np.flatnonzero(frames == 1), np.flatnonzero(frames == 2)

    def masked(self, keep: Tensor) -> np.ndarray:
        """Pixels (H, W, 3) of the picture, cells dark and hatched where `keep` (h, w) is 0."""
        hidden = self._spread(keep.numpy() == 0)
        return self._framed(np.where(hidden[..., None], self._dark, self.rgb))

    def heated(self, values: Tensor, limits: tuple[float, float]) -> np.ndarray:
        """Pixels (H, W, 3) of the colours of a map (h, w) over the picture in grey."""
        low, high = limits
        place = (values.numpy() - low) / max(high - low, 1e-12)
        colours = (HEAT * _COLOURS).astype(np.uint8)[(place * 255).clip(0, 255).astype(np.uint8)]
        return self._framed(self._spread(colours) + self._grey)

    def _spread(self, cells: np.ndarray) -> np.ndarray:
        """A map (h, w, ...) at the size of the panel, every cell a block."""
        rows, columns = (
            ((np.arange(pixels) + 0.5) / pixels * share * count).astype(int)
            for pixels, share, count in zip(
                (self.height, self.width), self._window, cells.shape, strict=False
            )
        )
        return cells[rows][:, columns]

    def _framed(self, pixels: np.ndarray) -> np.ndarray:
        flat = pixels.reshape(-1, 3)
        flat[self._rims], flat[self._dashes] = 32, 255
        return pixels


def _dashed(size: tuple[int, int], boxes: np.ndarray) -> np.ndarray:
    """(H, W): 2 on the dashes of the boxes' frames, 1 on the gaps and the rim, 0 elsewhere."""
    rim, dashes = Image.new("L", size[::-1]), Image.new("L", size[::-1])
    for box in boxes:
        left, top, right, bottom = (round(float(edge)) for edge in box)
        right, bottom = max(left, min(right, size[1]) - 1), max(top, min(bottom, size[0]) - 1)
        corners = (max(left, 0), max(top, 0), max(right, 0), max(bottom, 0))
        ImageDraw.Draw(rim).rectangle(corners, outline=1, width=2)
        ImageDraw.Draw(dashes).rectangle(corners, outline=1)
    y, x = np.indices(size)
    return np.maximum(np.asarray(rim), 2 * np.asarray(dashes) * ((x + y) % 7 < 4))


def four_panels(
    backdrop: Backdrop, maps: Mapping[str, Tensor], *, by: str, enhances: bool
) -> list[Panel]:
    """Keep mask, attention, energy and enhanced attention; both attentions share one scale.

    Args:
        backdrop: the picture.
        maps: keep, attention, energy and enhanced, each (h, w).
        by: what the energy is averaged over, for its caption.
        enhances: False says so in the caption of the last panel.
    """
    top = (0.0, float(max(maps["attention"].max(), maps["enhanced"].max())))
    heats = {
        "attention, mean 1": ("attention", top),
        f"frequency energy by {by}": ("energy", (0.0, 1.0)),
        f"enhanced attention{'' if enhances else ' (off)'}": ("enhanced", top),
    }
    hidden = f"keep mask, hidden cells: {int((maps['keep'] == 0).sum())}"
    return [
        Panel(hidden, backdrop.masked(maps["keep"])),
        *(
            Panel(caption, backdrop.heated(maps[name], limits), limits)
            for caption, (name, limits) in heats.items()
        ),
    ]


def mosaic(panels: Sequence[Panel], columns: int) -> np.ndarray:
    """The panels in rows of `columns`, white between them: uint8 (H, W, 3).

    All panels have one size.
    """
    height, width = panels[0].pixels.shape[:2]
    high, wide = CAPTION + height + GAP, width + BAR + GAP
    rows = -(-len(panels) // columns)
    page = np.full((rows * high, columns * wide, 3), 255, np.uint8)
    corners = [(index // columns * high, index % columns * wide) for index in range(len(panels))]
    for panel, (top, left) in zip(panels, corners, strict=True):
        page[top + CAPTION : top + CAPTION + height, left : left + width] = panel.pixels
        if panel.limits:
            bar = _COLOURS[np.linspace(255, 0, height).astype(np.uint8)][:, None]
            page[top + CAPTION : top + CAPTION + height, left + width + 4 : left + width + 14] = bar
    drawn = Image.fromarray(page)
    pen = ImageDraw.Draw(drawn)
    for panel, (top, left) in zip(panels, corners, strict=True):
        pen.text((left, top + CAPTION - 5), panel.caption, "black", _font(), anchor="ls")
        for value, y, anchor in zip(
            reversed(panel.limits or ()), (0, height), ("la", "ld"), strict=False
        ):
            place = (left + width + 18, top + CAPTION + y)
            pen.text(place, f"{value:.3g}", "black", _font(), anchor=anchor)
    return np.asarray(drawn)


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


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), TEXT)
