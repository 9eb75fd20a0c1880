"""MGD, FGD, PKD and CWD as their publications state them, written out plainly: peers to time.

Each takes features by level, lists of (N, C, H, W), and returns the published loss, a sum over the
levels, with the weights for RetinaNet. No padding, no adapter: both sides have as many channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import torch
from torch import Tensor, nn

Levels = Sequence[Tensor]


def mgd(student: Levels, teacher: Levels, generators: Sequence[nn.Module]) -> Tensor:
    """`2e-5 · Σ (G(F_s · keep) − F_t)² / N`; a cell is hidden with probability 0.65."""
    loss = 0.0
    for s, t, generator in zip(student, teacher, generators, strict=True):
        n, _, h, w = t.shape
        keep = torch.where(torch.rand(n, 1, h, w) > 1 - 0.65, 0, 1)
        loss = loss + 2e-5 * (generator(s * keep) - t).square().sum() / n
    return loss


def attentions(feature: Tensor, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    """FGD's attention over cells (N, 1, H, W) and over channels (N, C, 1, 1), mean 1."""
    n, c, h, w = feature.shape
    magnitude = feature.abs()
    cells = (magnitude.mean(1).view(n, -1) / temperature).softmax(1).view(n, 1, h, w) * h * w
    channels = (magnitude.mean((2, 3)) / temperature).softmax(1).view(n, c, 1, 1) * c
    return cells, channels


def box_masks(boxes: Sequence[Tensor], feature: Tensor, pixels: tuple[int, int]) -> list[Tensor]:
    """FGD's masks of foreground and background, (N, 1, H, W)."""
    n, _, h, w = feature.shape
    foreground = feature.new_zeros(n, 1, h, w)
    for i in range(n):
        for x1, y1, x2, y2 in boxes[i].tolist():
            left, right = floor(x1 / pixels[1] * w), ceil(x2 / pixels[1] * w)
            top, bottom = floor(y1 / pixels[0] * h), ceil(y2 / pixels[0] * h)
            area = (bottom + 1 - top) * (right + 1 - left)
            inside = foreground[i, 0, top : bottom + 1, left : right + 1]
            inside.clamp_(min=1 / area)  # the smallest box over a cell counts
    background = (foreground == 0).to(feature.dtype)
    return [foreground, background / background.sum((1, 2, 3), keepdim=True).clamp_min(1)]


def with_context(block: nn.Module, feature: Tensor) -> Tensor:
    """FGD's global context block: pooled where `block.where` attends, through `block.add`."""
    n, c, _, _ = feature.shape
    share = block.where(feature).view(n, -1, 1).softmax(1)  # (N, HW, 1)
    return feature + block.add((feature.view(n, c, -1) @ share).view(n, c, 1, 1))


def fgd(
    student: Levels,
    teacher: Levels,
    blocks: Sequence[tuple[nn.Module, nn.Module]],
    boxes: Sequence[Tensor],
    pixels: tuple[int, int],
) -> Tensor:
    """`Σ (α M_fg + β M_bg) S A (F_s − F_t)² + γ (Σ|ΔS| + Σ|ΔA|) + λ Σ (GC_s − GC_t)²`, over N."""
    loss = 0.0
    for s, t, (block_s, block_t) in zip(student, teacher, blocks, strict=True):
        (cells_s, channels_s), (cells_t, channels_t) = attentions(s), attentions(t)
        foreground, background = box_masks(boxes, t, pixels)
        error = (s - t).square() * cells_t * channels_t
        level = 1e-3 * (foreground * error).sum() + 5e-4 * (background * error).sum()
        level = level + 5e-4 * (cells_s - cells_t).abs().sum()
        level = level + 5e-4 * (channels_s - channels_t).abs().sum()
        difference = with_context(block_s, s) - with_context(block_t, t)
        loss = loss + (level + 5e-6 * difference.square().sum()) / len(t)
    return loss


def pkd(student: Levels, teacher: Levels) -> Tensor:
    """`10 · Σ mean (z_s − z_t)² / 2`, each channel standardised over the batch."""

    def score(x: Tensor) -> Tensor:
        mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
        return (x - mean) / (std + 1e-6)

    pairs = zip(student, teacher, strict=True)
    return sum(10.0 * (score(s) - score(t)).square().mean() / 2 for s, t in pairs)


def cwd(student: Levels, teacher: Levels, tau: float = 1.0) -> Tensor:
    """`10 · τ² Σ KL(softmax_hw(F_t / τ) ‖ softmax_hw(F_s / τ)) / (N C)`."""
    loss = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = s.flatten(2) / tau, t.flatten(2) / tau
        terms = t.softmax(2) * (t.log_softmax(2) - s.log_softmax(2))
        loss = loss + 10.0 * tau**2 * terms.sum() / (t.shape[0] * t.shape[1])
    return loss
