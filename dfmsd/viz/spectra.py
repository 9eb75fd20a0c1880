"""Spectra of images: energy per frequency, per ring, and the figure of both. See `dfmsd.viz`."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle
from torch import Tensor

from dfmsd.enhance import check_filter
from dfmsd.viz.charts import COLOURS
from dfmsd.viz.panels import STYLE, WIDTH, picture_ranges, show_picture, wrapped

DECADES = 5  # of the magnitude, below its highest value; the energy has twice as many
FLOOR = 1e-6  # lowest share drawn: below it float32 images hold rounding


def spectrum(image: Tensor) -> tuple[Tensor, Tensor]:
    """Energy and radius of every frequency of an image (3, H, W), (1, H, W) or (h, w), both (H, W).

    The energy is |FFT|² of the grey image (mean over channels) less its mean, so that frequency 0
    has none; it sums to H·W times the grey image's sum of squares. The radius is a fraction of
    Nyquist, as in `dfmsd.enhance.radial_gain`: √2 in the corners. Frequency 0 is in the middle, and
    the image is taken as periodic: a step between opposite edges shows as a cross.
    """
    grey = image.detach().cpu().double()
    grey = grey.mean(0) if grey.ndim == 3 else grey
    energy = torch.fft.fftshift(torch.fft.fft2(grey - grey.mean()).abs() ** 2)
    # cycles per pixel times two: 1 is Nyquist
    turns = [2 * torch.fft.fftfreq(side, dtype=torch.float64) for side in grey.shape]
    rows, columns = map(torch.fft.fftshift, turns)
    return energy, torch.hypot(rows[:, None], columns[None, :])


def radial_profile(image: Tensor, rings: int) -> tuple[np.ndarray, np.ndarray]:
    """Middle radius of each ring and the share of the energy in it; the shares sum to 1.

    There are `rings` rings up to Nyquist and as wide ones beyond it, up to the corners at √2. A
    flat image has no energy: all shares are 0.
    """
    energy, radius = spectrum(image)
    count = int(np.ceil(np.sqrt(2) * rings)) + 1
    ring = (radius * rings + 1e-9).long().flatten()  # 1/6 · 6 is one, whatever the rounding
    total = energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    share = torch.bincount(ring, energy.flatten(), minlength=count) / total
    return (np.arange(len(share)) + 0.5) / rings, share.numpy()


@plt.rc_context(STYLE)
def spectrum_figure(
    images: Mapping[str, Tensor],
    *,
    cutoff: float | None = None,
    softness: float = 0.0,
    title: str | None = None,
) -> Figure:
    """Figure of images, their spectra below them, and the radial profiles of all in one panel.

    A spectrum is log10 of |FFT| / √(H·W), which does not grow with the image, on axes in fractions
    of Nyquist; all share one scale. The legend gives the share of the energy from the cut-off on.
    An image beyond 0..1 is scaled to it.

    Args:
        images: name → (3, H, W), (1, H, W) or (h, w).
        cutoff: radius of the drawn circle, a fraction of Nyquist in (0, 1]; None draws none.
        softness: half-width of the filter's edge as a fraction of the cut-off, 0..1: two dashed
            circles and a pale band.
        title: a line above all.

    Raises:
        ValueError: if `images` is empty, or a shape, a value, the cut-off or softness is wrong.
    """
    ends = picture_ranges(images)
    check_filter(1 if cutoff is None else cutoff, softness)
    count = len(images)
    width = max(4.0, min(WIDTH, 0.9 + 2.1 * count))
    side = (width - 0.9) / count
    tall = side * min(max(image.shape[-2] / image.shape[-1] for image in images.values()), 1.3)
    figure = plt.figure(figsize=(width, tall + side + 3.2), layout="constrained")
    plt.close(figure)
    figure.suptitle(wrapped(title or "", 0.8 * width))
    grid = figure.add_gridspec(3, count, height_ratios=[tall, side, 1.7])
    energies = {name: spectrum(image)[0] for name, image in images.items()}
    spectra = {name: energy / energy.numel() for name, energy in energies.items()}
    top = np.log10(max(float(energy.max()) for energy in spectra.values()) or 1.0) / 2
    below = []
    for column, (name, image) in enumerate(images.items()):
        axes = figure.add_subplot(grid[0, column])
        axes.set_axis_off()
        axes.set_title(wrapped(name, side))
        show_picture(axes, image, ends[name])
        below.append(figure.add_subplot(grid[1, column]))
        shown = _show_spectrum(below[-1], spectra[name], top)
        if cutoff is not None:
            _circles(below[-1], cutoff, softness)
        below[-1].tick_params(labelleft=column == 0)
    below[0].set_ylabel("vertical / Nyquist")
    figure.colorbar(shown, ax=below, shrink=0.9, pad=0.01, label="log10 of the magnitude")
    _profiles(figure.add_subplot(grid[2, :]), images, cutoff, softness)
    figure.legend(loc="outside lower center", ncols=2 if count > 1 else 1)
    return figure


def _show_spectrum(axes: Axes, energy: Tensor, top: float) -> AxesImage:
    magnitude = energy.clamp_min(10 ** (2 * (top - DECADES))).log10().numpy() / 2
    # a cell is 2 / n wide and its frequency in its middle; the first is -1 where n is even
    first, upper = (-(2 * (n // 2) + 1) / n for n in reversed(energy.shape))
    edges = (first, first + 2, upper + 2, upper)
    scale = {"vmin": top - DECADES, "vmax": top, "interpolation": "nearest"}
    shown = axes.imshow(magnitude, extent=edges, **scale)
    axes.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1], xlabel="horizontal / Nyquist")
    return shown


def _circles(axes: Axes, cutoff: float, softness: float) -> None:
    for radius in {cutoff, cutoff * (1 - softness), cutoff * (1 + softness)}:
        edge = {"linestyle": "-" if radius == cutoff else (0, (3, 3)), "edgecolor": "white"}
        axes.add_patch(Circle((0, 0), radius, fill=False, linewidth=1.1, **edge))


def _profiles(
    axes: Axes, images: Mapping[str, Tensor], cutoff: float | None, softness: float
) -> None:
    # one ring holds at least one frequency of the smallest picture
    rings = int(np.clip(min(min(image.shape[-2:]) for image in images.values()) // 2, 2, 40))
    seen = []
    for index, (name, image) in enumerate(images.items()):
        middle, share = radial_profile(image, rings)
        label = name
        if cutoff is not None:
            energy, radius = spectrum(image)
            total = energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
            label += f" ({float(energy[radius >= cutoff].sum() / total):.1%} beyond the cut-off)"
        style = {"color": COLOURS[index % 7], "linestyle": ("-", "--", "-.", ":")[index % 4]}
        drawn = np.where(share >= FLOOR, share, np.nan)
        axes.plot(middle, drawn, linewidth=1.6, label=label, **style)
        seen += share[share >= FLOOR].tolist()
    if cutoff is not None:
        axes.axvline(cutoff, color="#222222", linewidth=1)
        axes.axvspan(cutoff * (1 - softness), cutoff * (1 + softness), color="#222222", alpha=0.08)
    axes.set(xlabel="radius / Nyquist", ylabel="share of energy", yscale="log")
    # a log axis needs its ends even when every picture is flat
    axes.set(xlim=(0, 1.42), ylim=(min(seen, default=FLOOR) / 2, max(seen, default=1) * 2))
    axes.grid(alpha=0.25)
