"""Spectra of images: energy per frequency, and per ring of frequencies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def spectrum(image: Tensor) -> tuple[Tensor, Tensor]:
    """Energy and radius of every frequency of an image (3, H, W), (1, H, W) or (h, w), both (H, W).

    The energy is |FFT|² of the grey image (mean over channels) less its mean, so that frequency 0
    has none; it sums to H·W times the sum of squares of the grey image less its mean. The radius is
    a fraction of Nyquist, as in `dfmsd.enhance.radial_gain`: √2 in the corners. Frequency 0 is in
    the middle, and the image is taken as periodic: a step between opposite edges shows as a cross.
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
