"""FGD: imitate foreground and background apart, where the teacher attends, and global context."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from dfmsd.baselines.base import CHANNELS, ONE_STAGE_CELLS, Baseline, Level
from dfmsd.context import mean_over, mean_squared_error, softmax_input
from dfmsd.masking import channel_attention, spatial_attention
from dfmsd.ranges import NotNegative, Positive

LEVELS = 5  # P3–P7


class FGD(Baseline):
    """Focal and global distillation: five terms, all of them means.

    Source: Yang et al., CVPR 2022. With the attentions S (cells) and A (channels) and the boxes'
    masks M of `box_masks`, the published loss is, summed over the levels and divided by N,
    `α Σ M_fg S_t A_t (F_s − F_t)² + β Σ M_bg S_t A_t (F_s − F_t)² + γ (Σ|A_s − A_t| + Σ|S_s − S_t|)
    + λ Σ (GC_s(F_s) − GC_t(F_t))²`, GC the trained `GlobalContext` of each side; for RetinaNet
    α = 1e-3, β = γ = 5e-4, λ = 5e-6. The terms here, and what these α to λ are for them on P3–P7 at
    800 x 1216 pixels with 256 channels:

    - foreground, background: per image and level the sum over cells, the mean over channels (M
      already divides by the area), mean over images and levels: 1.28, 0.64
    - attention_spatial: mean over all valid cells of the pyramid: 10.1
    - attention_channel: mean over channels and levels: 0.64
    - relation: mean over all valid elements of the pyramid: 25.9

    Two-stage detectors (P2–P5) have α = γ = 5e-5, β = 2.5e-5, λ = 5e-7. Published: adapter="auto".

    Args:
        temperature: of the attentions, > 0.
        foreground_weight, ..., relation_weight: of the terms, ≥ 0; 0 is off. Without `relation`
            there is no `GlobalContext`.
    """

    temperature: Positive = 0.5
    foreground_weight: NotNegative = 1e-3 * CHANNELS * LEVELS
    background_weight: NotNegative = 5e-4 * CHANNELS * LEVELS
    attention_spatial_weight: NotNegative = 5e-4 * ONE_STAGE_CELLS
    attention_channel_weight: NotNegative = 5e-4 * CHANNELS * LEVELS
    relation_weight: NotNegative = 5e-6 * CHANNELS * ONE_STAGE_CELLS

    def __post_init__(self) -> None:
        """Check the settings, build the modules."""
        super().__post_init__()
        channels = self.channels.items() if "relation" in self.weights else ()
        self.student_context = nn.ModuleDict({key: GlobalContext(c) for key, c in channels})
        self.teacher_context = nn.ModuleDict({key: GlobalContext(c) for key, c in channels})

    def term_weights(self) -> dict[str, float]:
        """See `Baseline.term_weights`."""
        names = [field.name for field in fields(self) if field.name.endswith("_weight")]
        return {name.removesuffix("_weight"): getattr(self, name) for name in names}

    def level_share(self, term: str, level: Level) -> Tensor | None:
        """See `Baseline.level_share`: two terms are means over the whole pyramid."""
        per_cell = {"attention_spatial": level.teacher.shape[1], "relation": 1}.get(term)
        return None if per_cell is None else level.elements / per_cell

    def compare(self, level: Level) -> dict[str, Tensor]:
        """Term → unweighted scalar of one level; ValueError unless every image has targets."""
        boxes, pixels = level.context.target_boxes(), tuple(level.context.images.shape[-2:])
        s, t, valid = level.student, level.teacher, level.valid
        how = {"temperature": self.temperature, "valid": valid}
        cells_s, cells_t = (spatial_attention(x, **how) for x in (s, t))
        channels_s, channels_t = (channel_attention(x, **how) for x in (s, t))
        error = cells_t * (channels_t * (s - t).square()).mean(1, keepdim=True)  # (N, 1, H, W)
        foreground, background = box_masks(boxes, tuple(t.shape[-2:]), pixels, valid=valid)
        losses = {
            "foreground": (foreground * error).sum((1, 2, 3)).mean(),
            "background": (background * error).sum((1, 2, 3)).mean(),
            "attention_spatial": mean_over((cells_s - cells_t).abs(), valid),
            "attention_channel": (channels_s - channels_t).abs().mean(),
        }
        if "relation" in self.weights:
            whole_s = self.student_context[level.key](s, valid)
            whole_t = self.teacher_context[level.key](t, valid)
            losses["relation"] = mean_squared_error(whole_s, whole_t, valid)
        return losses


def box_masks(
    boxes: list[Tensor],
    cells: tuple[int, int],
    pixels: tuple[int, int],
    *,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """FGD's masks of foreground and background, both (N, 1, h, w) and ≥ 0.

    A box covers the rows `floor(y1) .. ceil(y2)`, the last one included, in cells, and so the
    columns. The foreground is 1 / (rows · columns) of the smallest box over a cell, else 0; rows
    and columns that the map cuts off count. The background is 1 / (how many cells no box covers)
    on those cells, so it sums to 1. Source: FGD. Choice: padding is 0 in both.

    `boxes` are (n, 4) xyxy per image in pixels of the batch, n may be 0: all is background. `cells`
    and `pixels` are (height, width) of map and batch. `valid` is (N, 1, h, w) bool, True inside the
    images; None means everywhere.
    """
    foreground = torch.stack([_foreground(b, cells, pixels) for b in boxes])[:, None]
    if valid is not None:
        foreground = foreground * valid
    background = foreground == 0
    background = background if valid is None else background & valid
    count = background.sum((1, 2, 3), keepdim=True).clamp_min(1)
    return foreground, background.to(foreground.dtype) / count


def _foreground(boxes: Tensor, cells: tuple[int, int], pixels: tuple[int, int]) -> Tensor:
    """(h, w), see `box_masks`."""
    if len(boxes) == 0:
        return boxes.new_zeros(cells)
    covered, lengths = [], []
    for axis in (0, 1):  # y, then x
        low = (boxes[:, 1 - axis] / pixels[axis] * cells[axis]).floor()[:, None]
        high = (boxes[:, 3 - axis] / pixels[axis] * cells[axis]).ceil()[:, None]
        index = torch.arange(cells[axis], device=boxes.device)
        covered.append((index >= low) & (index <= high))  # (n, cells)
        lengths.append(high - low + 1)
    inside = covered[0][:, :, None] & covered[1][:, None, :]  # (n, h, w)
    return (inside / (lengths[0] * lengths[1])[:, :, None]).amax(0)


class GlobalContext(nn.Module):
    """The feature plus what its whole map says: a vector per image, pooled where a map attends.

    conv1x1 → softmax over cells → pooled (N, C, 1, 1) → conv1x1 to C/2, LayerNorm, ReLU, conv1x1 to
    C, added. The last convolution starts at zero, so at first nothing is added.
    Source: FGD, after GCNet. Choice: the softmax runs over valid cells only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.where = nn.Conv2d(channels, 1, 1)
        self.add = nn.Sequential(
            nn.Conv2d(channels, half, 1),
            nn.LayerNorm([half, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, channels, 1),
        )
        nn.init.kaiming_normal_(self.where.weight, nonlinearity="relu")
        for zero in (self.where.bias, self.add[-1].weight, self.add[-1].bias):
            nn.init.zeros_(zero)

    def forward(self, feature: Tensor, valid: Tensor | None = None) -> Tensor:
        """The feature with its context, (N, C, H, W); `valid` (N, 1, H, W) bool or None."""
        score = softmax_input(self.where(feature), valid)
        share = score.flatten(1).softmax(1).view_as(score)  # (N, 1, H, W)
        return feature + self.add((feature * share).sum((2, 3), keepdim=True))
