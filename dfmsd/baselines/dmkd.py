"""DMKD, our reading: hide attended cells and attended channels, rebuild both, fuse."""

from __future__ import annotations

from torch import Tensor

from dfmsd.baselines.base import Keeps, Masked
from dfmsd.generate import Mix
from dfmsd.masking import Select, channel_attention, keep_mask, spatial_attention
from dfmsd.ranges import Positive, Share


class DMKD(Masked):
    """Our reading of dual masked knowledge distillation, of which only the abstract is known to us.

    Source: arXiv 2309.02719 states two branches, one hiding cells and one hiding channels, each
    guided by attention, and a "self-adjustable weighting strategy" that fuses what they rebuild.
    Choice: everything else. The attentions are FGD's, of the raw teacher; the most attended share
    is hidden, an exact count; the share of the spatial branch is one learned number in 0..1 per
    level; generators and weight are MGD's, see `Masked`.

    With channel=False it is `AMD` without gate, and with share=1 so too (the channel branch is then
    computed and not used). `DFMSDLoss` with strength=0, alignment_weight=0, target="raw",
    attention_on="raw" and generator_width=1 is DMKD. Their state dicts have the same names.

    Args:
        spatial, channel: use the branch, at least one.
        share: of the spatial branch, 0..1, or "learned" per level, starting at a half.
    """

    spatial: bool = True
    channel: bool = True
    ratio: Share = 0.5
    select: Select = "high"
    temperature: Positive = 0.5
    share: Mix = "learned"

    def branches(self) -> dict[str, bool | float | str]:
        """See `Masked.branches`."""
        return {"spatial": self.spatial, "channel": self.channel, "share": self.share}

    def keeps(self, teacher: Tensor, valid: Tensor | None = None) -> Keeps:
        """See `Masked.keeps`."""
        look = {"temperature": self.temperature, "valid": valid}
        hide, cells, channels = {"ratio": self.ratio, "select": self.select}, None, None
        if self.spatial:
            cells = keep_mask(spatial_attention(teacher, **look), **hide, valid=valid)
        if self.channel:
            channels = keep_mask(channel_attention(teacher, **look), **hide)
        return cells, channels
