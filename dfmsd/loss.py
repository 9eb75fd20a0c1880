"""`DFMSDLoss`: one level, then the pyramid → named scalars, and the masks to look at.

Per level the student's feature is adapted, hidden where the teacher attends (dual masks, the
spatial one strengthened by the image's high frequencies), rebuilt by generators and compared with
the teacher's; beside that, both features are aligned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from math import ceil, prod
from typing import Literal

import torch
from torch import Tensor, nn

from dfmsd.align import (
    Adapter,
    Fit,
    Match,
    channel_divergence,
    match_levels,
    pair_strides,
    standardise,
)
from dfmsd.context import Context, mean_squared_error
from dfmsd.enhance import high_frequency, pool_energy, region_energy, strengthen
from dfmsd.generate import DualGenerator, Mix, reconstruction_loss
from dfmsd.masking import Select, channel_attention, keep_mask, spatial_attention
from dfmsd.ranges import Cutoff, NotNegative, Positive, Share, check_fields, positive_weights

Form = Literal["standardised", "raw"]


@dataclass
class Level:
    """What `DFMSDLoss` did on one level; parts that are switched off are None.

    Features are (N, C, H, W), maps over cells (N, 1, H, W), over channels (N, C, 1, 1).
    """

    student: Tensor  # feature that was masked: adapted, and standardised unless target="raw"
    teacher: Tensor  # feature to rebuild
    valid: Tensor | None  # bool over cells; None when no image is padded
    attention: Tensor | None = None  # the teacher's, over cells, mean 1
    energy: Tensor | None = None  # over cells, 0..1; averaged inside boxes if so set
    enhanced: Tensor | None = None  # over cells, mean 1: what made the mask
    channels: Tensor | None = None  # the teacher's attention over channels, mean 1
    keep_spatial: Tensor | None = None  # over cells, 0 hidden, 1 visible
    keep_channel: Tensor | None = None  # over channels, 0 hidden, 1 visible
    reconstruction: Tensor | None = None  # feature, fused
    losses: dict[str, Tensor] = field(default_factory=dict)  # term → unweighted scalar


@dataclass(eq=False, repr=False)
class DFMSDLoss(nn.Module):
    """Dual feature masking with enhancement, and semantic alignment: one stage of DFMSD.

    Called with features by stride and a `Context`, it returns {"reconstruction", "alignment"},
    unweighted means over the levels; a term without weight or branch is left out. `weights` holds
    the weights. Levels that it was not built for are ignored. No gradient reaches the teacher.
    `torch.compile(method, dynamic=False)` takes it as one graph, anew for other image sizes.
    Source: the paper names the parts; Choice: their forms, see the functions.

    Args:
        student_channels, teacher_channels: stride → C.
        spatial, channel: use the branch.
        ratio_spatial, ratio_channel: share of cells and of channels to hide, 0..1.
        temperature: of both attentions, > 0.
        select: hide the most attended ("high"), the least ("low") or any ("random", from torch's
            global generator).
        attention_on: form of the teacher's feature for the spatial attention (raw magnitude of a
            Swin teacher is anti-object); the channel attention is always on the raw one.
        target: rebuild the "standardised" teacher from the standardised student, or raw from raw.
        masked_only: count the error only where a mask (any of them) hides.
        fusion: share of the spatial branch, 0..1, or "learned" per level, starting at a half.
        cutoff: of the high-pass, fraction of Nyquist, in (0, 1].
        strength: of the enhancement, ≥ 0; 0 is off, and so is select="random".
        regions: "cells", or "boxes": energy averaged inside the context's candidates, or else
            inside its targets' boxes.
        adapter: "conv", "identity" or "auto", see `Adapter`.
        generator_width: of both branches as a fraction of C_t, rounded up, > 0.
        match: "stride" or "index", see `pair_strides`.
        align: "pearson", half the mean squared difference of the standardised features; or
            "distribution", their `channel_divergence` at temperature 1, CWD's. Both are half the
            variance of a small difference, so that a weight means about the same for both.
        reconstruction_weight: on the mean squared error; 0 is off.
        alignment_weight: 10 on "pearson" is 5 on the whole mean squared difference; 0 is off.

    ValueError when an argument is out of range, no level is in common, or every term is off.
    """

    student_channels: dict[int, int]
    teacher_channels: dict[int, int]
    _: KW_ONLY
    spatial: bool = True
    channel: bool = True
    ratio_spatial: Share = 0.5
    ratio_channel: Share = 0.5
    temperature: Positive = 0.5
    select: Select = "high"
    attention_on: Form = "standardised"
    target: Form = "standardised"
    masked_only: bool = False
    fusion: Mix = "learned"
    cutoff: Cutoff = 0.25
    strength: NotNegative = 1.0
    regions: Literal["cells", "boxes"] = "cells"
    adapter: Fit = "conv"
    generator_width: Positive = 0.5
    match: Match = "stride"
    align: Literal["pearson", "distribution"] = "pearson"
    reconstruction_weight: NotNegative = 1.0
    alignment_weight: NotNegative = 10.0

    def __post_init__(self) -> None:
        """Check the settings, build the modules."""
        super().__init__()
        check_fields(self)
        rebuild = self.reconstruction_weight if self.spatial or self.channel else 0.0
        self.weights = positive_weights(reconstruction=rebuild, alignment=self.alignment_weight)
        self.pairs = pair_strides(self.student_channels, self.teacher_channels, self.match)
        self.adapters, self.generators = nn.ModuleDict(), nn.ModuleDict()
        branches = {"spatial": self.spatial, "channel": self.channel, "share": self.fusion}
        for stride, teacher_stride in self.pairs:
            sides = self.student_channels[stride], self.teacher_channels[teacher_stride]
            self.adapters[str(stride)] = Adapter(*sides, self.adapter)
            if "reconstruction" in self.weights:
                width = ceil(self.generator_width * sides[1])
                self.generators[str(stride)] = DualGenerator(sides[1], width, **branches)

    def forward(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], context: Context
    ) -> dict[str, Tensor]:
        """Term → unweighted scalar, the mean over the levels.

        Features are stride → (N, C, H, W), `context` is the batch behind them; ValueError when a
        level is missing, or boxes are needed and the context has none.
        """
        levels = self.levels(student, teacher, context).values()
        losses = {name: [level.losses[name] for level in levels] for name in self.weights}
        return {name: torch.stack(values).mean() for name, values in losses.items()}

    def levels(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], context: Context
    ) -> dict[int, Level]:
        """Student stride → everything that was done there; arguments and errors of `forward`."""
        frequency = None  # strength per pixel, once for all levels
        enhances = self.spatial and self.strength > 0 and self.select != "random"
        if enhances and "reconstruction" in self.weights:
            frequency = high_frequency(context.images, cutoff=self.cutoff, sizes=context.sizes)
        matched = match_levels(student, teacher, self.match, pairs=self.pairs)
        return {key: self._level(str(key), s, t, context, frequency) for key, s, t in matched}

    def _level(
        self, key: str, student: Tensor, teacher: Tensor, context: Context, frequency: Tensor | None
    ) -> Level:
        teacher = teacher.detach()
        valid = context.padding_mask(teacher)
        adapted = self.adapters[key](student)
        z_s, z_t = standardise(adapted, valid), standardise(teacher, valid)
        raw = self.target == "raw"
        level = Level(adapted if raw else z_s, teacher if raw else z_t, valid)
        if "reconstruction" in self.weights:
            if self.spatial:
                seen = teacher if self.attention_on == "raw" else z_t
                self._hide_cells(level, seen, context, frequency)
            if self.channel:
                self._hide_channels(level, teacher)
            self._rebuild(level, key)
        if "alignment" in self.weights and self.align == "distribution":
            level.losses["alignment"] = channel_divergence(z_s, z_t, tau=1.0, valid=valid)
        elif "alignment" in self.weights:
            level.losses["alignment"] = mean_squared_error(z_s, z_t, valid) / 2
        return level

    def _hide_cells(
        self, level: Level, seen: Tensor, context: Context, frequency: Tensor | None
    ) -> None:
        scale, valid = self.temperature, level.valid
        level.attention = spatial_attention(seen, temperature=scale, valid=valid)
        level.enhanced = level.attention
        if frequency is not None:
            sizes = context.sizes if context.padded else None
            energy = pool_energy(frequency, tuple(seen.shape[-2:]), sizes=sizes)
            if self.regions == "boxes":
                given = context.candidates
                boxes = context.target_boxes() if given is None else given
                energy = region_energy(energy, boxes, tuple(context.images.shape[-2:]))
            level.energy = energy
            strength = self.strength
            level.enhanced = strengthen(level.attention, energy, strength=strength, valid=valid)
        hide = {"ratio": self.ratio_spatial, "select": self.select}
        level.keep_spatial = keep_mask(level.enhanced, **hide, valid=valid)

    def _hide_channels(self, level: Level, seen: Tensor) -> None:
        level.channels = channel_attention(seen, temperature=self.temperature, valid=level.valid)
        hide = {"ratio": self.ratio_channel, "select": self.select}
        level.keep_channel = keep_mask(level.channels, **hide)

    def _rebuild(self, level: Level, key: str) -> None:
        masks = (level.keep_spatial, level.keep_channel)
        level.reconstruction = self.generators[key](level.student, *masks, level.valid)
        keep = prod(mask for mask in masks if mask is not None) if self.masked_only else None
        level.losses["reconstruction"] = reconstruction_loss(
            level.reconstruction, level.teacher, valid=level.valid, keep=keep
        )
