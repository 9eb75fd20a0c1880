"""The mask laboratory without its sliders: a detector's view of one picture → maps → numbers.

`look` runs a detector once and keeps what no slider changes; `maps` then costs milliseconds. Every
map comes from `dfmsd.masking` and `dfmsd.enhance`, the functions that `DFMSDLoss` calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dfmsd.align import Context, standardise
from dfmsd.detectors.features import capture_features, frozen_modes, strided_levels
from dfmsd.enhance import high_frequency, pool_energy, region_energy, strengthen
from dfmsd.masking import Select, keep_mask, spatial_attention

Form = Literal["standardised", "raw"]
Regions = Literal["cells", "boxes"]
RANGES = {
    "temperature": (0.1, 2.0),
    "ratio": (0.0, 1.0),
    "cutoff": (0.05, 1.0),
    "strength": (0, 10),
}
"""Lowest and highest value of each slider."""
CHOICES = {"select": get_args(Select), "regions": get_args(Regions), "attention_on": get_args(Form)}
"""What the other controls offer."""
MOST_FOUND = 30


class LabError(ValueError):
    """A value that the laboratory cannot take; a notebook shows its one sentence and no more."""

    def _render_traceback_(self) -> list[str]:
        """The lines IPython prints in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Tuning:
    """What the sliders say; names and meanings of `DFMSDLoss`.

    Raises:
        LabError: for a value outside `RANGES` or `CHOICES`.
    """

    stride: int
    """of the pyramid level"""
    temperature: float = 0.5
    """of the attention"""
    ratio: float = 0.5
    """share of the cells that is hidden"""
    select: Select = "high"
    """hide the most attended, the least attended, or any cells"""
    cutoff: float = 0.25
    """of the high-pass, fraction of Nyquist"""
    strength: float = 1.0
    """of the enhancement"""
    regions: Regions = "cells"
    """energy by cell, or averaged inside boxes"""
    attention_on: Form = "standardised"
    """form of the feature for the attention"""

    def __post_init__(self) -> None:
        """Check ranges and choices."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, Real) or not low <= value <= high:
                raise LabError(f"{name} must lie in {low:g}..{high:g}, got {value!r}")
        for name, offered in CHOICES.items():
            if getattr(self, name) not in offered:
                words = ", ".join(map(repr, offered))
                raise LabError(f"{name} must be one of {words}, got {getattr(self, name)!r}")

    @property
    def enhances(self) -> bool:
        """Whether the enhancement does anything; as in `DFMSDLoss`, not for masks at random."""
        return self.strength > 0 and self.select != "random"

    def words(self) -> list[str]:
        """Every setting in a word or two."""
        return [
            f"stride {self.stride}",
            f"temperature {self.temperature:.3g}",
            f"ratio {self.ratio:.3g}",
            f"select {self.select}",
            f"cut-off {self.cutoff:.3g}",
            f"strength {self.strength:.3g}",
            f"energy in {self.regions}",
            f"attention on {self.attention_on}",
        ]


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture as one detector sees it, with what the sliders do not change."""

    image: Tensor
    """(3, H, W) in 0..1"""
    context: Context
    """the detector's batch of one; `candidates` are the boxes in its pixels"""
    magnitude: dict[tuple[int, str], Tensor]
    """(stride, form) → mean over channels of the absolute feature, (1, 1, h, w)"""
    boxes: Tensor
    """(n, 4) xyxy, pixels of `image`"""
    found: bool
    """True when the boxes are the detector's own, because no true ones are known"""
    _frequencies: dict[float, Tensor] = field(default_factory=dict)

    @property
    def strides(self) -> list[int]:
        """The levels, finest first."""
        return sorted({stride for stride, _ in self.magnitude})

    @property
    def window(self) -> tuple[float, float]:
        """Share of the batch's height and width that the picture covers; the rest is padding."""
        size, batch = self.context.sizes[0], self.context.images.shape[-2:]
        return size[0] / batch[0], size[1] / batch[1]

    def frequency(self, cutoff: float) -> Tensor:
        """`high_frequency` of the batch, (1, 1, H, W); the last 32 cut-offs are kept."""
        if cutoff not in self._frequencies:
            if len(self._frequencies) == 32:
                del self._frequencies[next(iter(self._frequencies))]
            self._frequencies[cutoff] = high_frequency(
                self.context.images, cutoff=cutoff, sizes=self.context.sizes
            )
        return self._frequencies[cutoff]


def look(
    detector: nn.Module,
    image: Tensor,
    boxes: Tensor | None = None,
    *,
    levels: Mapping[int, tuple[str, int]] | None = None,
) -> Scene:
    """The scene of `image` (3, H, W) in 0..1, after one forward pass of a torchvision detector.

    Args:
        detector: has `.transform` and `.backbone`; its modes are put back.
        image: on any device.
        boxes: the true ones, (n, 4) xyxy in pixels of `image`; None or empty takes the detector's
            own, at most 30 of the highest scores.
        levels: `strided_levels(detector)`, when it is known.
    """
    levels = levels or strided_levels(detector)
    place = next(detector.parameters()).device
    with frozen_modes(detector), capture_features(detector) as seen:
        (own,) = detector([image.to(place)])
    size = tuple(seen.images.image_sizes[0])
    context = Context(images=seen.images.tensors.cpu(), sizes=[size])
    found = boxes is None or len(boxes) == 0
    boxes = (own["boxes"][:MOST_FOUND] if found else boxes).cpu().float()
    scale = torch.tensor([size[1] / image.shape[2], size[0] / image.shape[1]]).repeat(2)
    magnitude = {}
    for stride, (name, _) in levels.items():
        feature = seen.features[name].cpu()
        valid = context.valid(feature) if context.padded else None
        for form, seen_as in (("raw", feature), ("standardised", standardise(feature, valid))):
            # the attention averages over channels first: of this mean it makes the same map
            magnitude[stride, form] = seen_as.float().abs().mean(1, keepdim=True)
    context = Context(images=context.images, sizes=[size], candidates=[boxes * scale])
    return Scene(image.cpu(), context, magnitude, boxes, found)


def maps(scene: Scene, tuning: Tuning) -> dict[str, Tensor]:
    """The maps (h, w) over the level's cells: keep, attention, energy, enhanced.

    As in `DFMSDLoss`, a mask at random or a strength of 0 leaves the attention as it is. Random
    masks come from a fixed seed, so that equal settings give equal masks and a higher ratio hides
    the same cells and more.

    Raises:
        LabError: when the scene has no such level.
    """
    if tuning.stride not in scene.strides:
        raise LabError(f"stride must be one of {scene.strides}, got {tuning.stride!r}")
    seen, context = scene.magnitude[tuning.stride, tuning.attention_on], scene.context
    valid = context.valid(seen) if context.padded else None
    attention = spatial_attention(seen, temperature=tuning.temperature, valid=valid)
    sizes = context.sizes if context.padded else None
    energy = pool_energy(scene.frequency(tuning.cutoff), tuple(seen.shape[-2:]), sizes=sizes)
    if tuning.regions == "boxes":
        energy = region_energy(energy, context.candidates, tuple(context.images.shape[-2:]))
    enhanced = attention
    if tuning.enhances:
        enhanced = strengthen(attention, energy, strength=tuning.strength, valid=valid)
    keep = keep_mask(
        enhanced,
        ratio=tuning.ratio,
        select=tuning.select,
        valid=valid,
        generator=torch.Generator().manual_seed(0),
    )
    found = {"keep": keep, "attention": attention, "energy": energy, "enhanced": enhanced}
    return {name: values[0, 0] for name, values in found.items()}
