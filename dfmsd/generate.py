"""The blocks that rebuild a masked feature, and how well they did.

Features are (N, C, H, W). `valid` is (N, 1, H, W) bool, True inside the images; None means
everywhere. Choice: padding is 0 before either convolution of a generator, so that what an image
gets does not depend on the batch around it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfmsd.context import mean_squared_error, widen
from dfmsd.ranges import Count, Share, check, check_value

Mix = Literal["learned"] | Share


class Generator(nn.Module):
    """Rebuilds a masked feature: conv3x3 – ReLU – conv3x3, (N, C, H, W) → (N, C, H, W).

    `width` channels, at least 1, are between the convolutions; None means C, as in MGD's block.
    Source: MGD, with torch's default initialisation and no norm.
    """

    def __init__(self, channels: Count, width: Count | None = None) -> None:
        super().__init__()
        width = channels if width is None else width
        check_value("channels", channels, Count)
        check_value("width", width, Count)
        self.block = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, kernel_size=3, padding=1),
        )

    def forward(self, feature: Tensor, valid: Tensor | None = None) -> Tensor:
        """The rebuilt feature, (N, C, H, W), of a masked one of the same shape."""
        first, activation, second = self.block
        if valid is None:
            return second(activation(first(feature)))
        # masked before the activation, whose output alone is then kept for the backward pass
        return second(activation(first(feature * valid) * valid))


class DualGenerator(nn.Module):
    """Rebuilds a feature from its spatially and from its channel-masked copy, and fuses both.

    Each branch has a `Generator` of its own; with one branch there is nothing to fuse.
    Source: DMKD's two branches.

    Args:
        channels, width: of each `Generator`.
        spatial, channel: have the branch, at least one; else ValueError.
        share: of the spatial branch, 0..1, or "learned": the sigmoid of a parameter, at first 0.5.
    """

    def __init__(
        self,
        channels: Count,
        width: Count | None = None,
        *,
        spatial: bool = True,
        channel: bool = True,
        share: Mix = "learned",
    ) -> None:
        super().__init__()
        check("spatial or channel", "neither", spatial or channel, "True")
        check_value("share", share, Mix)
        self.spatial = Generator(channels, width) if spatial else None
        self.channel = Generator(channels, width) if channel else None
        learned = spatial and channel and share == "learned"
        self.mix = nn.Parameter(torch.zeros(())) if learned else None
        self.fixed = share

    @property
    def share(self) -> Tensor | float:
        """Share of the spatial branch in what `forward` returns, 0..1."""
        if self.spatial is None or self.channel is None:
            return 0.0 if self.spatial is None else 1.0
        return float(self.fixed) if self.mix is None else self.mix.sigmoid()

    def forward(
        self,
        feature: Tensor,
        keep_spatial: Tensor | None,
        keep_channel: Tensor | None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The rebuilt feature, (N, C, H, W), of one that is not masked yet.

        The keep masks are (N, 1, H, W) and (N, C, 1, 1), 0 hidden; one of a branch that is off is
        not read.
        """
        if self.channel is None:
            return self.spatial(feature * keep_spatial, valid)
        if self.spatial is None:
            return self.channel(feature * keep_channel, valid)
        if valid is not None:
            feature = feature * valid
        first_s, activation, second_s = self.spatial.block
        first_c, _, second_c = self.channel.block
        # one activation over both hidden maps, whose output alone is kept for the backward pass
        hidden = torch.cat([first_s(feature * keep_spatial), first_c(feature * keep_channel)], 1)
        hidden = activation(hidden if valid is None else hidden * valid)
        # the second convolutions and the fusion are linear: one convolution
        share = self.share
        weight = torch.cat([share * second_s.weight, (1 - share) * second_c.weight], dim=1)
        return F.conv2d(hidden, weight, fuse(second_s.bias, second_c.bias, share), padding=1)


def fuse(spatial: Tensor, channel: Tensor, share: Tensor | float) -> Tensor:
    """`share · spatial + (1 − share) · channel`, (N, C, H, W): two reconstructions as one.

    Source: DMKD's "self-adjustable weighting"; Choice: one share in 0..1 per level.
    """
    return share * spatial + (1 - share) * channel


def reconstruction_loss(
    reconstruction: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Scalar mean squared error over the counted elements, in float32 or better; 0 if none counts.

    With `keep`, broadcastable to (N, C, H, W), 0 hidden, 1 visible, only hidden elements count.
    Source: MGD, on the whole map; its sum / N is this times C · H · W.
    """
    counted = valid
    if keep is not None:
        counted = 1 - keep if valid is None else (1 - keep) * valid
    return mean_squared_error(widen(reconstruction), widen(target), counted)
