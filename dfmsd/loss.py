"""`DFMSDLoss`: one level, then the pyramid → named scalars, and the masks to look at.

Per level the student's feature is adapted, hidden where the teacher attends (dual masks, the
spatial one strengthened by the image's high frequencies), rebuilt by generators and compared with
the teacher's; beside that, both features are aligned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Literal

import torch
from torch import Tensor, nn

from dfmsd import masking
from dfmsd.align import (
    Adapter,
    Context,
    Match,
    check,
    match_levels,
    mean_squared_error,
    pair_strides,
    positive_weights,
    standardise,
)
from dfmsd.divergence import channel_divergence
from dfmsd.enhance import check_filter, high_frequency, pool_energy, region_energy, strengthen
from dfmsd.generate import DualGenerator, reconstruction_loss

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


class DFMSDLoss(nn.Module):
    """Dual feature masking with enhancement, and semantic alignment: one stage of DFMSD.

    Called with features by stride and a `Context`, it returns {"reconstruction", "alignment"},
    unweighted means over the levels; a term without weight or branch is left out. `weights` holds
    the weights. Levels that it was not built for are ignored. No gradient reaches the teacher.
    `torch.compile(method, dynamic=False)` takes it as one graph, anew for other image sizes.
    Source: the paper names the parts; Choice: their forms, see the functions.

    Args:
        student_channels: stride → C_s.
        teacher_channels: stride → C_t.
        spatial: use the spatial branch.
        channel: use the channel branch.
        ratio_spatial: share of cells to hide, 0..1.
        ratio_channel: share of channels to hide, 0..1.
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
        adapter: "conv" or "identity", see `Adapter`.
        generator_width: of both branches as a fraction of C_t, rounded up, > 0.
        match: "stride" or "index", see `pair_strides`.
        align: "pearson", half the mean squared difference of the standardised features; or
            "distribution", their `channel_divergence` at temperature 1, CWD's. Both are half the
            variance of a small difference, so that a weight means about the same for both.
        reconstruction_weight: on the mean squared error; 0 is off.
        alignment_weight: 10 on "pearson" is 5 on the whole mean squared difference; 0 is off.

    Raises:
        ValueError: when an argument is out of range, no level is in common, or every term is off.
    """

    def __init__(
        self,
        student_channels: dict[int, int],
        teacher_channels: dict[int, int],
        *,
        spatial: bool = True,
        channel: bool = True,
        ratio_spatial: float = 0.5,
        ratio_channel: float = 0.5,
        temperature: float = 0.5,
        select: masking.Select = "high",
        attention_on: Form = "standardised",
        target: Form = "standardised",
        masked_only: bool = False,
        fusion: Literal["learned"] | float = "learned",
        cutoff: float = 0.25,
        strength: float = 1.0,
        regions: Literal["cells", "boxes"] = "cells",
        adapter: Literal["conv", "identity"] = "conv",
        generator_width: float = 0.5,
        match: Match = "stride",
        align: Literal["pearson", "distribution"] = "pearson",
        reconstruction_weight: float = 1.0,
        alignment_weight: float = 10.0,
    ) -> None:
        """See the class."""
        super().__init__()
        forms = ("standardised", "raw")
        for name, form in (("attention_on", attention_on), ("target", target)):
            check(name, form, form in forms, f"one of {forms}")
        check("align", align, align in ("pearson", "distribution"), "'pearson' or 'distribution'")
        check("regions", regions, regions in ("cells", "boxes"), "'cells' or 'boxes'")
        check("temperature", temperature, temperature > 0, "more than 0")
        check("strength", strength, strength >= 0, "at least 0")
        check("generator_width", generator_width, generator_width > 0, "more than 0")
        check_filter(cutoff)
        for ratio in (ratio_spatial, ratio_channel):
            masking.check_selection(ratio, None, select)
        rebuild = reconstruction_weight if spatial or channel else 0.0
        self.weights = positive_weights(reconstruction=rebuild, alignment=alignment_weight)
        self.spatial, self.channel = spatial, channel
        self.ratio_spatial, self.ratio_channel, self.select = ratio_spatial, ratio_channel, select
        self.temperature, self.attention_on = temperature, attention_on
        self.target, self.masked_only, self.match = target, masked_only, match
        self.cutoff, self.strength, self.regions, self.align = cutoff, strength, regions, align

        self.pairs = pair_strides(student_channels, teacher_channels, match)
        self.adapters, self.generators = nn.ModuleDict(), nn.ModuleDict()
        branches = {"spatial": spatial, "channel": channel, "share": fusion}
        for stride, teacher_stride in self.pairs:
            count = teacher_channels[teacher_stride]
            self.adapters[str(stride)] = Adapter(student_channels[stride], count, adapter)
            if "reconstruction" in self.weights:
                width = ceil(generator_width * count)
                self.generators[str(stride)] = DualGenerator(count, width, **branches)

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
        return {
            stride: self._level(str(stride), s, t, context, frequency) for stride, s, t in matched
        }

    def _level(
        self, key: str, student: Tensor, teacher: Tensor, context: Context, frequency: Tensor | None
    ) -> Level:
        teacher = teacher.detach()
        valid = context.valid(teacher) if context.padded else None
        adapted = self.adapters[key](student)
        z_s, z_t = standardise(adapted, valid), standardise(teacher, valid)
        raw = self.target == "raw"
        level = Level(adapted if raw else z_s, teacher if raw else z_t, valid)
        if "reconstruction" in self.weights:
            if self.spatial:
                seen = teacher if self.attention_on == "raw" else z_t
                self._hide_cells(level, seen, context, frequency)
            if self.channel:
                scale = self.temperature
                level.channels = masking.channel_attention(teacher, temperature=scale, valid=valid)
                level.keep_channel = masking.keep_mask(
                    level.channels, ratio=self.ratio_channel, select=self.select
                )
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
        level.attention = masking.spatial_attention(seen, temperature=scale, valid=valid)
        level.enhanced = level.attention
        if frequency is not None:
            sizes = context.sizes if context.padded else None
            energy = pool_energy(frequency, tuple(seen.shape[-2:]), sizes=sizes)
            if self.regions == "boxes":
                energy = region_energy(energy, _boxes(context), tuple(context.images.shape[-2:]))
            level.energy = energy
            level.enhanced = strengthen(
                level.attention, energy, strength=self.strength, valid=valid
            )
        level.keep_spatial = masking.keep_mask(
            level.enhanced, ratio=self.ratio_spatial, select=self.select, valid=valid
        )

    def _rebuild(self, level: Level, key: str) -> None:
        masks = (level.keep_spatial, level.keep_channel)
        level.reconstruction = self.generators[key](level.student, *masks, level.valid)
        keep = prod(mask for mask in masks if mask is not None) if self.masked_only else None
        level.losses["reconstruction"] = reconstruction_loss(
            level.reconstruction, level.teacher, valid=level.valid, keep=keep
        )


def _boxes(context: Context) -> list[Tensor]:
    if context.candidates is not None:
        return context.candidates
    if context.targets is None:
        raise ValueError("regions='boxes' needs candidates or targets in the context, got neither")
    return [target["boxes"] for target in context.targets]
