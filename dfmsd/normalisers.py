"""A detector's losses as means over the whole batch, when it is spread over processes.

RetinaNet's losses are means over images and need nothing; nor do the RPN's, which samples the same
number of anchors in every image. But Faster R-CNN divides by the number of regions it sampled and
FCOS by the number of positive cells, and these differ from process to process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.roi_heads import RoIHeads

from dfmsd.together import average, processes

REGIONS = ("loss_classifier", "loss_box_reg")


@contextmanager
def counting(detector: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Context that fills a dict, loss → how many regions or cells this process divided it by.

    Args:
        detector: a torchvision detector, which runs once in the context.
    """
    counts: dict[str, Tensor] = {}
    heads = getattr(detector, "roi_heads", None)
    if isinstance(heads, RoIHeads):

        def regions(_module: nn.Module, _inputs: tuple, output: tuple) -> None:
            count = output[0].new_tensor(float(len(output[0])))
            counts.update(dict.fromkeys(REGIONS, count))

        hook = heads.box_predictor.register_forward_hook(regions)
        try:
            yield counts
        finally:
            hook.remove()
    elif isinstance(detector, FCOS):
        compute = detector.head.compute_loss

        def cells(targets: Any, outputs: Any, anchors: Any, matched: list[Tensor]) -> Any:
            count = torch.stack([(match >= 0).sum() for match in matched]).sum().float()
            losses = compute(targets, outputs, anchors, matched)
            counts.update(dict.fromkeys(losses, count))
            return losses

        detector.head.compute_loss = cells
        try:
            yield counts
        finally:
            del detector.head.compute_loss  # the class's own shows again
    else:
        yield counts


def whole_batch(losses: dict[str, Tensor], counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses as if divided by the counts of the whole batch, once averaged over processes.

    Choice: what one process would compute; plain data-parallel training (torchvision's) takes the
    mean of the processes' means.
    """
    if processes() == 1:
        return losses
    scaled = dict(losses)
    for name, count in counts.items():  # torchvision divides by at least 1
        scaled[name] = losses[name] * count.clamp_min(1) / average(count).clamp_min(1 / processes())
    return scaled
