"""What a detector starts from: published weights (file or hub), or a teacher's neck and head."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import torch
import torchvision
from torch import Tensor, nn

from dfmsd.detectors.checkpoints import PathLike, load_tensors, read_selected
from dfmsd.detectors.features import strided_levels
from dfmsd.detectors.files import printable

_log = logging.getLogger(__name__)


def hub_state(model: str) -> dict[str, Tensor]:
    """The published state dict of "torchvision:NAME" or "timm:NAME", fetched once.

    Choice: the first that torchvision published (IMAGENET1K_V1), which the detectors of the
    literature start from; timm's names carry their own tag ("timm:resnet50.a1_in1k"). Raises
    ValueError for another name, or when the hub cannot be reached.
    """
    family, _, name = model.partition(":")
    try:
        if family == "timm":
            import timm

            return timm.create_model(name, pretrained=True).state_dict()
        if family == "torchvision":
            weights = next(iter(torchvision.models.get_model_weights(name)))
            return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # every hub has failures of its own kinds
        reason = printable((str(error).splitlines() or [type(error).__name__])[0])
        advice = "fetch the file elsewhere and name it"
        raise ValueError(f"{model}: not to be had from the hub ({reason}); {advice}") from error
    raise ValueError(f"{model}: on no hub; expected torchvision:NAME or timm:NAME")


def load_trunk(body: nn.Module, weights: PathLike, trunk: str = "") -> None:
    """Load into trunk `body` its part of a whole classifier's state dict; the rest is left out.

    `weights` is a file for `read_selected`, whose line goes to the log, or "hub" for
    `hub_state(trunk)`. Raises ValueError when a tensor of `body` is not there in its shape or not
    finite, or the file cannot be read.
    """

    def plain(name: str) -> str:
        """Timm flattens "layers.0" to "layers_0", torchvision's trunks sit under "features."."""
        return name.removeprefix("features.").replace(".", "_")

    tensors = body.state_dict()
    names = {plain(name.removeprefix("model.")): name for name in tensors}
    if weights == "hub":
        found, line = hub_state(trunk), ""
    else:
        found, line = read_selected(weights, lambda name: plain(name) in names)
    taken = {n: value for n, value in tensors.items() if n.endswith("num_batches_tracked")}
    taken |= {names[plain(n)]: value for n, value in found.items() if plain(n) in names}
    load_tensors(body, taken, weights)
    if line:
        _log.warning("%s: %s", weights, line)


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module, parts: Iterable[str]) -> list[str]:
    """Names of the tensors of `student` that now hold the values of `teacher`'s.

    A tensor of `parts` ("neck", the feature pyramid, and "head") is copied when both have it under
    one name and in one shape; convolutions of the neck pair by the stride of their level. Raises
    ValueError for a part of which no tensor fits.

    Source: the "inheriting strategy" of Kang et al. 2021 (arXiv 2110.12724); FGD and MGD copy all
    but the trunk when both heads are alike.
    """
    tensors, source = student.state_dict(), teacher.state_dict()
    strides, of_teacher = (list(strided_levels(detector)) for detector in (student, teacher))

    def counterpart(name: str) -> str:
        """The teacher's name of a tensor: its neck counts levels from another stride, perhaps."""
        if level := re.match(r"(backbone\.fpn\.(?:inner|layer)_blocks\.)(\d+)(.*)", name):
            stride = strides[int(level[2])]
            index = of_teacher.index(stride) if stride in of_teacher else "none"
            return f"{level[1]}{index}{level[3]}"
        return name

    pairs = {name: counterpart(name) for name in tensors}
    fitting = [
        name
        for name, other in pairs.items()
        if other in source and source[other].shape == tensors[name].shape
    ]
    fitting_parts = {
        "neck": [name for name in fitting if name.startswith("backbone.fpn.")],
        "head": [name for name in fitting if not name.startswith("backbone.")],
    }
    copied: list[str] = []
    for part in parts:
        if not fitting_parts[part]:
            kinds = f"a {type(teacher).__name__} to a {type(student).__name__}"
            raise ValueError(f"no tensor of the {part} fits from {kinds}; try another `inherit`")
        copied += fitting_parts[part]
    for name in copied:
        tensors[name].copy_(source[pairs[name]])
    return copied
