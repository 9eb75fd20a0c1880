"""The mask laboratory without its sliders: a detector's view of one picture → maps.

`capture_scene` runs a detector once and keeps what no slider changes; `mask_maps` then costs
milliseconds. Every map comes from the functions that `DFMSDLoss` calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from dfmsd.align import standardise
from dfmsd.context import Context
from dfmsd.detectors.features import capture_features, frozen_modes, strided_levels
from dfmsd.enhance import high_frequency, pool_energy, region_energy, strengthen
from dfmsd.loss import DFMSDLoss
from dfmsd.masking import channel_attention, keep_mask, spatial_attention

# about a tenth of an octave apart, R20 of the preferred numbers (ISO 3), in two digits
_TEMPERATURES = (0.1, 0.11, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 0.25, 0.28, 0.32, 0.36, 0.4, 0.45)
_TEMPERATURES += (0.5, 0.56, 0.63, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 1.8, 2.0)
STOPS = {
    "temperature": _TEMPERATURES,
    "ratio": [k / 100 for k in range(101)],
    "ratio_channel": [k / 100 for k in range(101)],
    "cutoff": [k / 20 for k in range(1, 21)],
    "strength": [k / 2 for k in range(21)],
}
"""Where each slider stops; code may also set values between the first and the last."""
_TYPES = get_type_hints(DFMSDLoss)
CHOICES = {name: get_args(_TYPES[name]) for name in ("select", "regions", "attention_on")}
"""What the other controls offer: everything that the loss can take."""
MOST_DETECTIONS = 30
Maps = dict[str, Tensor]


class LabError(ValueError):
    """A value that the laboratory cannot take; a notebook shows its one sentence and no more."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class MaskSettings:
    """A level, and settings of `DFMSDLoss` with its defaults; `ratio` is its `ratio_spatial`.

    LabError for a value beyond its `STOPS`, or not among its `CHOICES`.
    """

    stride: int
    temperature: float = DFMSDLoss.temperature
    ratio: float = DFMSDLoss.ratio_spatial
    ratio_channel: float = DFMSDLoss.ratio_channel
    select: str = DFMSDLoss.select
    cutoff: float = DFMSDLoss.cutoff
    strength: float = DFMSDLoss.strength
    regions: str = DFMSDLoss.regions
    attention_on: str = DFMSDLoss.attention_on

    def __post_init__(self) -> None:
        """Check ranges and choices."""
        for name, (low, *_, high) in STOPS.items():
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not low <= value <= high:
                raise LabError(f"{name} must lie in {low:g}..{high:g}, got {value!r}")
            object.__setattr__(self, name, float(value))  # not a number of numpy, as `code` says it
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                names = ", ".join(map(repr, choices))
                raise LabError(f"{name} must be one of {names}, got {getattr(self, name)!r}")

    @property
    def enhances(self) -> bool:
        """Whether the enhancement does anything; as in `DFMSDLoss`, not for masks at random."""
        return self.strength > 0 and self.select != "random"

    def phrases(self) -> list[str]:
        """Every setting in a word or two."""
        labels = {"cutoff": "cut-off", "regions": "energy in", "attention_on": "attention on"}
        labels |= {"ratio_channel": "channel ratio"}
        return [
            f"{labels.get(name, name)} {f'{value:.3g}' if isinstance(value, Real) else value}"
            for name, value in asdict(self).items()
        ]

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `DFMSDLoss`, which are the names of the command line's too."""
        values = asdict(self) | {"ratio_spatial": self.ratio}
        return {name: value for name, value in values.items() if name not in ("stride", "ratio")}

    def text(self) -> str:
        """The settings as `key=value` words for the command line."""
        return " ".join(f"method.{name}={value}" for name, value in self.arguments().items())

    def code(self, channels: int) -> str:
        """Python that builds a `DFMSDLoss`, for this level with so many channels.

        `method.levels(features, features, context)`, with a detector's features by stride, then
        gives its masks.
        """
        width, given = f"{{{self.stride}: {channels}}}", self.arguments().items()
        lines = ["from dfmsd.loss import DFMSDLoss", "", "method = DFMSDLoss("]
        lines += [f"    {width},  # channels of the {side}" for side in ("student", "teacher")]
        lines += [*(f"    {name}={value!r}," for name, value in given), ")"]
        if self.select == "random":
            lines += ["import torch", "", "torch.manual_seed(0)"]
        return "\n".join(lines) + "\n"

    def idle(self) -> dict[str, str]:
        """Name → why moving it cannot change a mask now."""
        if self.select == "random":
            reason = "a random mask ignores the attention and the energy"
            return dict.fromkeys(("cutoff", "strength", "regions", "attention_on"), reason)
        reason = "strength is 0: the energy is not used"
        return {} if self.strength else dict.fromkeys(("cutoff", "regions"), reason)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture as one detector sees it, with what the sliders do not change.

    Attributes:
        image: (3, H, W) in 0..1.
        context: the detector's batch of one; `candidates` are the boxes in its pixels.
        raw, features: stride → feature (1, C, h, w), as the detector gave it and standardised.
        boxes, detected: (n, 4) xyxy, pixels of `image`; True when they are the detector's own.
        window: share of the batch's height and width that the picture covers; the rest is padding.
        frequency: cut-off → `high_frequency` of the batch, (1, 1, H, W); remembers 32.
    """

    image: Tensor
    context: Context
    raw: dict[int, Tensor]
    features: dict[int, Tensor]
    boxes: Tensor
    detected: bool
    window: tuple[float, float]
    frequency: Callable[[float], Tensor]


def capture_scene(
    detector: nn.Module,
    image: Tensor,
    boxes: Tensor | None = None,
    *,
    levels: Mapping[int, tuple[str, int]] | None = None,
) -> Scene:
    """The scene of `image` (3, H, W) in 0..1, after one forward pass of a torchvision detector.

    The true `boxes` are (n, 4) xyxy in pixels of `image`; None or empty takes the detector's own,
    at most 30 of the highest scores. The detector's modes are put back; `levels` are
    `strided_levels(detector)`, when they are known.
    """
    levels = levels or strided_levels(detector)
    device = next(detector.parameters()).device
    with frozen_modes(detector), capture_features(detector) as captured:
        (detections,) = detector([image.to(device)])
    detected = boxes is None or len(boxes) == 0
    boxes = (detections["boxes"][:MOST_DETECTIONS] if detected else boxes).cpu().float()
    size, batch = tuple(captured.images.image_sizes[0]), captured.images.tensors.cpu()
    scale = torch.tensor([size[1] / image.shape[2], size[0] / image.shape[1]]).repeat(2)
    context = Context(images=batch, sizes=[size], candidates=[boxes * scale])
    raw = {stride: captured.features[name].cpu() for stride, (name, _) in levels.items()}
    features = {key: standardise(one, context.padding_mask(one)) for key, one in raw.items()}

    @lru_cache(maxsize=32)
    def frequency(cutoff: float) -> Tensor:
        return high_frequency(context.images, cutoff=cutoff, sizes=context.sizes)

    window = size[0] / batch.shape[2], size[1] / batch.shape[3]
    return Scene(image.cpu(), context, raw, features, boxes, detected, window, frequency)


def mask_maps(scene: Scene, settings: MaskSettings, student: Scene | None = None) -> Maps:
    """The maps (h, w) over the level's cells, and over its channels (C,).

    `keep`, `attention`, `energy`, `enhanced`; `rank`, 1 for the cell that the mask takes first;
    `channels` and `keep_channel`, attention and mask over channels; and `masked`, the mean
    magnitude of the standardised feature of `student` (of the scene itself, if None; its shape is
    the same) that neither mask hides. Each generator is given more: what its own mask leaves.

    As in `DFMSDLoss`, a mask at random or a strength of 0 leaves the attention as it is. Random
    masks come from a fixed seed, so that equal settings give equal masks and a higher ratio hides
    the same cells and more. LabError when the scene has no such level.
    """
    stride, context = settings.stride, scene.context
    if stride not in scene.raw:
        raise LabError(f"stride must be one of {sorted(scene.raw)}, got {stride!r}")
    raw, heat = scene.raw[stride], {"temperature": settings.temperature}
    heat["valid"] = valid = context.padding_mask(raw)
    seen = raw if settings.attention_on == "raw" else scene.features[stride]
    attention, channels = spatial_attention(seen, **heat), channel_attention(raw, **heat)
    sizes = context.sizes if context.padded else None
    energy = pool_energy(scene.frequency(settings.cutoff), tuple(raw.shape[-2:]), sizes=sizes)
    if settings.regions == "boxes":
        energy = region_energy(energy, context.candidates, tuple(context.images.shape[-2:]))
    enhanced = attention
    if settings.enhances:
        enhanced = strengthen(attention, energy, strength=settings.strength, valid=valid)
    chosen = {"select": settings.select, "generator": torch.Generator().manual_seed(0)}
    keep = keep_mask(enhanced, ratio=settings.ratio, valid=valid, **chosen)
    keep_channel = keep_mask(channels, ratio=settings.ratio_channel, **chosen)
    left = (student or scene).features[stride].abs() * keep_channel
    order = -enhanced if settings.select == "low" else enhanced
    if settings.select == "random":  # the numbers that `keep_mask` drew
        draw = torch.Generator().manual_seed(0)
        order = torch.rand(enhanced.flatten(1).shape, generator=draw).view(enhanced.shape)
    order = order if valid is None else order.masked_fill(~valid, -torch.inf)
    # the place of each cell in the order of the mask, ties in reading order
    places = order.flatten().argsort(descending=True, stable=True).argsort()
    maps = {"keep": keep, "attention": attention, "energy": energy, "enhanced": enhanced}
    maps |= {"masked": left.mean(1, keepdim=True) * keep, "rank": places.view(keep.shape) + 1.0}
    maps = {name: values[0, 0] for name, values in maps.items()}
    return maps | {"channels": channels.flatten(), "keep_channel": keep_channel.flatten()}
