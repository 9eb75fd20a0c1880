"""Published weights: a trunk's from a file or the hub, a torchvision detector's from the hub."""

from __future__ import annotations

import os

import safetensors.torch
import timm
import torchvision
from torch import Tensor, nn

from dfmsd.detectors.strict import load_state

HUB = "hub"
"""In place of a file: fetch the published weights."""


def hub_state(model: str) -> dict[str, Tensor]:
    """Return the published state dict of "torchvision:NAME" or "timm:NAME", fetched once.

    Choice: the first that torchvision published (IMAGENET1K_V1), which the detectors of the
    literature start from; timm's names carry their own tag ("timm:resnet50.a1_in1k").

    Raises:
        ValueError: another name, or the hub cannot be reached.
    """
    family, _, name = model.partition(":")
    try:
        if family == "timm":
            return timm.create_model(name, pretrained=True).state_dict()
        if family == "torchvision":
            weights = next(iter(torchvision.models.get_model_weights(name)))
            return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # every hub has failures of its own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "fetch the file elsewhere and name it"
        raise ValueError(f"{model}: not to be had from the hub ({reason}); {advice}") from error
    raise ValueError(f"{model}: on no hub; expected torchvision:NAME or timm:NAME")


def load_trunk(body: nn.Module, weights: str | os.PathLike[str], trunk: str = "") -> None:
    """Load into `body` its part of a whole classifier's state dict.

    Every tensor of `body` must be found with its shape, ValueError otherwise; the rest is left out.

    Args:
        body: the trunk.
        weights: file, `.safetensors` or else of `torch.save`; "hub" fetches those of `trunk`.
        trunk: "torchvision:NAME" or "timm:NAME".
    """
    if weights == HUB:
        state = hub_state(trunk)
    elif os.fspath(weights).endswith(".safetensors"):
        state = safetensors.torch.load_file(weights)
    else:
        state = load_state(weights)
        state = state.get("state_dict", state.get("model", state))
    # timm flattens "layers.0" to "layers_0", torchvision's trunks sit under "features."
    found = {key.removeprefix("features.").replace(".", "_"): value for key, value in state.items()}
    wanted, missing = body.state_dict(), []
    for key, value in wanted.items():
        tensor = found.get(key.removeprefix("model.").replace(".", "_"))
        if tensor is not None and tensor.shape == value.shape:
            wanted[key] = tensor
        elif not key.endswith("num_batches_tracked"):
            shape = None if tensor is None else tuple(tensor.shape)
            missing.append(f"{key} (expected {tuple(value.shape)}, found {shape})")
    if missing:
        raise ValueError(f"weights={weights}: {len(missing)} missing, first {missing[:3]}")
    body.load_state_dict(wanted, strict=True)
