"""The frequency view of an image, and the strengthening it gives an attention map.

Small objects are rich in high frequency and yet score low in a teacher's attention. Here the
high-frequency energy of the image is measured per cell, and attention is raised where energy is
high and attention low. In every function `cutoff` is the radius where a filter passes one half, as
a fraction of Nyquist, in (0, 1], and `softness` the half-width of its edge as a fraction of the
cut-off, 0 (hard, rings) to 1; other values raise ValueError. `sizes` are the (height, width) of
each image in the batch, pixels; None means that all fill it. `valid` is (N, 1, H, W) bool, True
inside the images; None means everywhere.
"""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from dfmsd.context import widen
from dfmsd.ranges import Cutoff, NotNegative, Share, check_value

Size = tuple[int, int]  # height, width
Sizes = list[Size] | None


def high_pass(image: Tensor, *, cutoff: Cutoff, softness: Share = 0.5) -> Tensor:
    """The part of an image (..., H, W) above the cut-off, same shape, float32 or better, mean 0.

    Multiplied by `radial_gain` in the Fourier domain, outside autocast: bf16 and fp16 have no FFT
    on most devices and lose the small coefficients. The image is taken as periodic;
    `high_frequency` mirrors its border first.
    """
    wide, size = widen(image), (image.shape[-2], image.shape[-1])
    form = {"cutoff": cutoff, "softness": softness, "device": wide.device, "dtype": wide.dtype}
    with torch.autocast(device_type=image.device.type, enabled=False):
        return torch.fft.irfft2(torch.fft.rfft2(wide) * radial_gain(size, **form), s=size)


def low_pass(image: Tensor, *, cutoff: Cutoff, softness: Share = 0.5) -> Tensor:
    """The part of an image (..., H, W) below the cut-off: `low_pass + high_pass` is the image."""
    return widen(image) - high_pass(image, cutoff=cutoff, softness=softness)


def radial_gain(
    size: Size,
    *,
    cutoff: Cutoff,
    softness: Share = 0.5,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The high-pass gain for rfft2 of an image of `size` (H, W): (H, W // 2 + 1) in 0..1, DC 0.

    Choice: a raised cosine in the radius, from `cutoff · (1 − softness)` to
    `cutoff · (1 + softness)`; a hard edge would ring around every contour.
    """
    check_value("cutoff", cutoff, Cutoff)
    check_value("softness", softness, Share)
    # cycles per pixel times two: 1 is Nyquist, half a cycle per pixel
    rows = 2 * torch.fft.fftfreq(size[0], device=device, dtype=dtype)
    columns = 2 * torch.fft.rfftfreq(size[1], device=device, dtype=dtype)
    radius = torch.hypot(rows[:, None], columns[None, :])
    if softness == 0:
        return (radius >= cutoff).to(dtype)
    step = ((radius / cutoff - 1) / (2 * softness) + 0.5).clamp(0, 1)
    return (1 - torch.cos(torch.pi * step)) / 2


def high_frequency(
    images: Tensor, *, cutoff: Cutoff, softness: Share = 0.5, sizes: Sizes = None
) -> Tensor:
    """Strength of the high frequencies per pixel, (N, 1, H, W), ≥ 0, 0 in padding; no gradient.

    The absolute high-pass of the grey image (mean over channels). Each image is cut to its own size
    first, so that neither padding nor its edge shows, and gets a mirrored margin, which keeps the
    wrap-around of the FFT out of it. `images` is (N, C, H, W).
    """
    check_value("cutoff", cutoff, Cutoff)
    grey = widen(images.detach()).mean(1, True)
    full = (grey.shape[2], grey.shape[3])
    sizes = [full] * len(grey) if sizes is None else [(int(h), int(w)) for h, w in sizes]
    strength = torch.zeros_like(grey)
    for height, width in sorted(set(sizes)):  # one FFT per distinct size
        rows = [i for i, size in enumerate(sizes) if size == (height, width)]
        # two periods of the cut-off: the filter's response has faded by then
        y, x = (min(ceil(4 / cutoff), side - 1) for side in (height, width))
        # a list as an index would make the program wait for the GPU
        group = torch.stack([grey[i, :, :height, :width] for i in rows])
        mirrored = F.pad(group, (x, x, y, y), mode="reflect")
        high = high_pass(mirrored, cutoff=cutoff, softness=softness).abs()
        for i, image in zip(rows, high[..., y : y + height, x : x + width], strict=True):
            strength[i, :, :height, :width] = image
    return strength


def pool_energy(strength: Tensor, size: Size, *, sizes: Sizes = None) -> Tensor:
    """Frequency energy per cell, (N, 1, h, w) in 0..1, an image's largest is 1; 0 in padding.

    Each cell averages the image pixels it covers, then each image is divided by its largest cell.
    Choice: by the maximum, not the range, so that none stays 0 and a flat image stays near 0.
    `strength` is (N, 1, H, W) from `high_frequency`, `size` (h, w), the cells of the level.
    """
    energy = F.adaptive_avg_pool2d(strength, size)
    if sizes is not None:
        inside = torch.zeros_like(strength)
        for image, (height, width) in zip(inside, sizes, strict=True):
            image[:, :height, :width] = 1
        # a cell that reaches past the image averages the pixels it has
        energy = energy / F.adaptive_avg_pool2d(inside, size).clamp_min(1e-6)
    return energy / energy.amax((2, 3), keepdim=True).clamp_min(1e-4)


def frequency_energy(
    images: Tensor, size: Size, *, cutoff: Cutoff, softness: Share = 0.5, sizes: Sizes = None
) -> Tensor:
    """Frequency energy of images (N, C, H, W) on a level's grid `size`, (N, 1, h, w) in 0..1.

    `pool_energy` of `high_frequency` (the arguments are theirs); for several levels call the latter
    once. Padding does not change it while cells cover the same pixels. Choice, from figure 5.
    """
    strength = high_frequency(images, cutoff=cutoff, softness=softness, sizes=sizes)
    return pool_energy(strength, size, sizes=sizes)


def region_energy(energy: Tensor, boxes: list[Tensor], image_size: Size) -> Tensor:
    """Energy averaged inside each box, (N, 1, h, w): per cell the largest of its boxes, else 0.

    A box covers every cell it touches, so that a small one covers at least one. Choice: the maximum
    where boxes overlap, so that a large box does not dilute a small rich one inside it.

    `energy` is (N, 1, h, w), `boxes` are (n, 4) xyxy per image, absolute pixels of the padded batch
    of `image_size` (H, W); n may be 0. ValueError unless there is one such tensor per image.
    """
    shapes = [tuple(box.shape) for box in boxes]
    if len(boxes) != len(energy) or any(len(s) != 2 or s[1] != 4 for s in shapes):
        raise ValueError(f"boxes must be {len(energy)} tensors (n, 4), got shapes {shapes}")
    regions = torch.zeros_like(energy)
    for region, level, box in zip(regions, energy, boxes, strict=True):
        if len(box):
            rows = _touched(box[:, 1::2].to(energy), level.shape[1], image_size[0])
            columns = _touched(box[:, 0::2].to(energy), level.shape[2], image_size[1])
            cover = rows[:, :, None] * columns[:, None, :]  # (n, h, w)
            mean = (cover * level).sum((1, 2), keepdim=True) / cover.sum((1, 2), keepdim=True)
            region[0] = (cover * mean).amax(0)
    return regions


def relative_rank(score: Tensor, valid: Tensor | None = None) -> Tensor:
    """Rank of each cell among a sample's valid ones, (N, 1, H, W): 0 lowest, 1 highest; padding 0.

    Equal scores share their mean rank; a single valid cell ranks 0.
    """
    flat = score.detach().flatten(1)
    inside = torch.ones_like(flat, dtype=torch.bool) if valid is None else valid.flatten(1)
    flat = flat.masked_fill(~inside, torch.inf).contiguous()
    order = flat.sort(dim=1).values
    first = torch.searchsorted(order, flat)
    last = torch.searchsorted(order, flat, right=True) - 1
    top = (inside.sum(1, keepdim=True) - 1).clamp_min(1)
    return ((first + last).to(score.dtype) / (2 * top) * inside).view(score.shape)


def strengthen(
    attention: Tensor, energy: Tensor, *, strength: NotNegative, valid: Tensor | None = None
) -> Tensor:
    """Attention raised where energy is high and attention low, (N, 1, H, W), again of mean 1.

    `S' ∝ S · (1 + strength · E · (1 − rank(S)))`: the most attended cell is not raised; with no
    strength or no energy the attention comes back. Choice, from figure 5.

    `attention` is (N, 1, H, W), of mean 1 over valid cells and 0 in padding, `energy` as large and
    in 0..1, `strength` ≥ 0.
    """
    check_value("strength", strength, NotNegative)
    raised = attention * (1 + strength * energy * (1 - relative_rank(attention, valid)))
    if valid is None:
        return raised / raised.mean((2, 3), keepdim=True)
    raised = raised * valid
    count, total = (x.sum((2, 3), keepdim=True) for x in (valid, raised))
    return raised * count / total.clamp_min(torch.finfo(raised.dtype).tiny)


def _touched(interval: Tensor, cells: int, pixels: int) -> Tensor:
    """(n, cells) of 0/1: 1 where an interval (n, 2) in pixels touches a cell, at least one each."""
    start, end = (interval * cells / pixels).unbind(1)
    first = start.floor().clamp(0, cells - 1)
    last = (end.ceil() - 1).clamp(0, cells - 1).maximum(first)
    index = torch.arange(cells, device=interval.device)
    return ((index >= first[:, None]) & (index <= last[:, None])).to(interval.dtype)
