"""AMD, our reading: hide the cells that the teacher attends, rebuild the teacher's feature."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from torch import Tensor, nn

from dfmsd.baselines.base import Level, Masked
from dfmsd.context import mean_of_cells
from dfmsd.masking import Select, keep_mask, spatial_attention
from dfmsd.ranges import Positive, Share


class AMD(Masked):
    """Our reading of adaptive masking distillation, of which only the abstract is known to us.

    Source: arXiv 2301.13538 states that the mask follows attention instead of chance, and that "a
    simple and efficient module" makes the student's channels adaptive. Choice: everything else. The
    attention is FGD's, of the raw teacher; the most attended share is hidden, an exact count; the
    module is a squeeze-and-excitation gate on the adapted student, before masking, see
    `ChannelGate`; generators and weight are MGD's, the arguments `Masked`'s.

    With select="random" and gate=False it is `MGD` with mask="count" and over="levels".
    """

    ratio: Share = 0.5
    select: Select = "high"
    temperature: Positive = 0.5
    gate: bool = True

    def __post_init__(self) -> None:
        """Check the settings, build the modules."""
        super().__post_init__()
        gated = self.channels.items() if self.gate else ()
        self.gates = nn.ModuleDict({key: ChannelGate(count) for key, count in gated})

    def compare(self, level: Level) -> dict[str, Tensor]:
        """{"reconstruction": unweighted scalar} of one level."""
        if self.gates:
            level = replace(level, student=self.gates[level.key](level.student, level.valid))
        return super().compare(level)

    def keep(self, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """The keep mask, (N, 1, H, W) of 0 (hidden) and 1, for a teacher's (N, C, H, W)."""
        attention = spatial_attention(teacher, temperature=self.temperature, valid=valid)
        return keep_mask(attention, ratio=self.ratio, select=self.select, valid=valid)


class ChannelGate(nn.Module):
    """Rescales each channel by a factor in 0..1 that it reads from all of them.

    `F · sigmoid(W_2 relu(W_1 mean_hw F))`. Source: squeeze-and-excitation (Hu et al., CVPR 2018),
    a sixteenth of the channels inside. Choice: the mean is over valid cells.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = ceil(channels / 16)
        self.block = nn.Sequential(
            nn.Conv2d(channels, inside, 1), nn.ReLU(), nn.Conv2d(inside, channels, 1), nn.Sigmoid()
        )

    def forward(self, feature: Tensor, valid: Tensor | None = None) -> Tensor:
        """The rescaled feature, (N, C, H, W); `valid` (N, 1, H, W) bool, None means everywhere."""
        return feature * self.block(mean_of_cells(feature, valid))
