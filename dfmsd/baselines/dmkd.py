"""DMKD, our reading: hide attended cells and attended channels, rebuild both, fuse."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Literal

from torch import Tensor, nn

from dfmsd.align import Context, Match
from dfmsd.baselines.pyramid import (
    CHANNELS,
    ONE_STAGE_CELLS,
    Baseline,
    Fit,
    check,
    over_levels,
)
from dfmsd.generate import DualGenerator, reconstruction_loss
from dfmsd.masking import (
    Select,
    channel_attention,
    channel_keep,
    spatial_attention,
    spatial_keep,
)


class DMKD(Baseline):
    """Our reading of dual masked knowledge distillation, of which only the abstract is known to us.

    It returns {"reconstruction"}, the mean over the levels of the mean squared error of the
    rebuilt, raw features. Source: arXiv 2309.02719 states two branches, one hiding cells and one
    hiding channels, each guided by attention, and a "self-adjustable weighting strategy" that fuses
    what they rebuild. Choice: everything else. The attentions are FGD's, of the raw teacher; the
    most attended share is hidden, an exact count; the share of the spatial branch is one learned
    number in 0..1 per level; generators and weight are MGD's.

    With channel=False it is `AMD` without gate, and with share=1 so too (the channel branch is then
    computed and not used). `DFMSDLoss` with strength=0, alignment_weight=0, target="raw",
    attention_on="raw" and hidden=1 is DMKD. Their state dicts have the same names.

    Args:
        student_channels: stride → C_s.
        teacher_channels: stride → C_t.
        spatial: use the spatial branch.
        channel: use the channel branch.
        ratio_spatial: share of cells to hide, 0..1.
        ratio_channel: share of channels to hide, 0..1.
        select: hide the most attended ("high"), the least ("low") or any ("random", from torch's
            global generator, cells before channels).
        temperature: of both attentions, > 0.
        share: of the spatial branch, 0..1, or "learned" per level, starting at a half.
        hidden: width of the generators as a fraction of C_t, rounded up, > 0.
        adapter: "conv", "identity" or "auto", see `Baseline`.
        match: "stride" or "index", see `pair_strides`.
        weight: on the mean squared error, > 0.

    Raises:
        ValueError: when an argument is out of range, no level is in common, or neither branch is
            wanted.
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
        select: Select = "high",
        temperature: float = 0.5,
        share: Literal["learned"] | float = "learned",
        hidden: float = 1.0,
        adapter: Fit = "conv",
        match: Match = "stride",
        weight: float = 2e-5 * CHANNELS * ONE_STAGE_CELLS,  # MGD's
    ) -> None:
        """See the class."""
        super().__init__(
            student_channels,
            teacher_channels,
            adapter=adapter,
            match=match,
            weights={"reconstruction": weight},
        )
        check("ratio_spatial", ratio_spatial, 0 <= ratio_spatial <= 1, "in 0..1")
        check("ratio_channel", ratio_channel, 0 <= ratio_channel <= 1, "in 0..1")
        check("select", select, select in ("high", "low", "random"), "'high', 'low' or 'random'")
        check("temperature", temperature, temperature > 0, "more than 0")
        check("hidden", hidden, hidden > 0, "more than 0")
        self.spatial, self.channel = spatial, channel
        self.ratio_spatial, self.ratio_channel = ratio_spatial, ratio_channel
        self.select, self.temperature = select, temperature
        self.generators = nn.ModuleDict(
            {
                key: DualGenerator(
                    c, ceil(hidden * c), spatial=spatial, channel=channel, share=share
                )
                for key, c in self.channels.items()
            }
        )

    def forward(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], context: Context
    ) -> dict[str, Tensor]:
        """{"reconstruction": unweighted scalar}; arguments and errors of `Baseline.levels`."""
        losses = []
        for level in self.levels(student, teacher, context):
            keeps = self.keeps(level.teacher, level.valid)
            rebuilt = self.generators[level.key](level.student, *keeps, level.valid)
            losses.append(reconstruction_loss(rebuilt, level.teacher, valid=level.valid))
        return {"reconstruction": over_levels(losses)}

    def keeps(
        self, teacher: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Keep masks over cells (N, 1, H, W) and channels (N, C, 1, 1); None for a branch off."""
        cells = channels = None
        if self.spatial:
            attention = spatial_attention(teacher, temperature=self.temperature, valid=valid)
            cells = spatial_keep(
                attention, ratio=self.ratio_spatial, select=self.select, valid=valid
            )
        if self.channel:
            attention = channel_attention(teacher, temperature=self.temperature, valid=valid)
            channels = channel_keep(attention, ratio=self.ratio_channel, select=self.select)
        return cells, channels
