"""The batch behind the features, and means over the cells of it that count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from dfmsd.ranges import check


@dataclass(frozen=True, eq=False)
class Context:
    """The batch behind the features; ValueError when `sizes` does not fit `images`.

    All boxes are (n, 4) xyxy, in pixels of the padded batch.
    """

    images: Tensor  # (N, 3, H, W), padded and normalised
    sizes: list[tuple[int, int]]  # (height, width) of each image, pixels; it lies at the top left
    targets: list[dict[str, Tensor]] | None = None  # of each image, with `boxes`
    candidates: list[Tensor] | None = None  # boxes of each image, for methods that use regions
    scores: Mapping[int, Tensor] | None = None  # teacher's stride → (N, 1, h, w), 0..1, of a cell

    def __post_init__(self) -> None:
        """Check that there is one size per image, none larger than the batch."""
        shape, count = tuple(self.images.shape), len(self.sizes)
        per_image = len(shape) == 4 and count == shape[0]
        check("sizes", count, per_image, f"one (height, width) per image of images {shape}")
        for height, width in self.sizes:
            inside = 0 < height <= shape[2] and 0 < width <= shape[3]
            check("sizes", (height, width), inside, f"in 1..{shape[2:]}")

    @property
    def padded(self) -> bool:
        """True when any image is smaller than the batch, so that some cells lie in padding."""
        full = tuple(self.images.shape[-2:])
        return any((size[0], size[1]) != full for size in self.sizes)

    def valid(self, feature: Tensor) -> Tensor:
        """Bool (N, 1, h, w) for a feature (N, C, h, w): True where a cell starts inside its image.

        Cell i of h starts at pixel `i · H / h`, so shapes suffice and no stride is needed.
        """
        inside = []
        for axis in (0, 1):
            pixels, cells = self.images.shape[2 + axis], feature.shape[2 + axis]
            starts = torch.arange(cells, device=feature.device) * pixels  # integers: no rounding
            inside.append(starts < self._limits[:, axis, None] * cells)  # (N, cells)
        return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]

    def padding_mask(self, feature: Tensor) -> Tensor | None:
        """`valid`, or None when no image is padded, which spares every pass over the mask."""
        return self.valid(feature) if self.padded else None

    def target_boxes(self) -> list[Tensor]:
        """The boxes (n, 4) of each image's target; ValueError unless every image has one."""
        count, targets = len(self.sizes), self.targets
        check("context.targets", targets, targets is not None, "one dict with boxes per image")
        fits = len(targets) == count
        check("len(context.targets)", len(targets), fits, f"{count}, one per image")
        return [target["boxes"] for target in targets]

    @cached_property
    def _limits(self) -> Tensor:
        """`sizes` as (N, 2) on the images' device; a GPU takes them without a wait."""
        limits = torch.tensor(self.sizes)
        if self.images.is_cuda:
            limits = limits.pin_memory()
        return limits.to(self.images.device, non_blocking=True)


def mean_over(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """The scalar mean of `value` (N, C, H, W) where `mask` counts; 0 when it counts nothing.

    The mask is 0/1 or bool, broadcastable to the value; None counts everything.
    """
    if mask is None:
        return value.mean()
    count = mask.sum() * (value.numel() // mask.numel())
    if mask.shape[1] == 1:  # a map over cells is multiplied once, not once per channel
        value = value.sum(1, keepdim=True)
    return (value * mask).sum() / count.clamp_min(1)


def mean_squared_error(one: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
    """The scalar mean of `(one − other)²` where `mask` counts; arguments as of `mean_over`."""
    error = F.mse_loss(one, other, reduction="mean" if mask is None else "none")
    return mean_over(error, mask)


def mean_of_cells(feature: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean over the valid cells, (N, C, 1, 1), of each channel of a feature (N, C, H, W)."""
    if valid is None:
        return feature.mean((2, 3), keepdim=True)
    count = valid.sum((2, 3), keepdim=True).clamp_min(1)
    return (feature * valid).sum((2, 3), keepdim=True) / count


def softmax_input(score: Tensor, valid: Tensor | None = None) -> Tensor:
    """The score, (N, C, H, W), of which a softmax over the cells leaves nothing to the padding."""
    if valid is None:
        return score
    # the lowest finite number, not -inf, so that neither values nor gradients become NaN
    return score.masked_fill(~valid, torch.finfo(score.dtype).min)


def widen(feature: Tensor) -> Tensor:
    """The feature in float32, or as it is if its type is wider."""
    return feature.to(torch.promote_types(feature.dtype, torch.float32))
