"""Trunks with a feature pyramid; CNNs name tensors as torchvision's `BackboneWithFPN` does."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import FeaturePyramidNetwork, Permute
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from dfmsd.detectors.checkpoints import load_tensors, read_selected
from dfmsd.detectors.features import frozen_modes
from dfmsd.detectors.files import PathLike, printable
from dfmsd.detectors.recipe import TRUNK
from dfmsd.ranges import check_value

_PROBE = 256  # pixels
_log = logging.getLogger(__name__)
Body = tuple[nn.Module, list[int]]  # a trunk that gives maps "0", "1", ..., and their channels


def conv_stem(embed_dim: int) -> nn.Sequential:
    """A stride-4 convolutional stem (N, 3, H, W) -> (N, H/4, W/4, embed_dim) for a Swin.

    Choice: with it a small Swin learns from scratch within a few hundred iterations (measured).
    """
    half = embed_dim // 2
    return nn.Sequential(
        nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.GELU(),
        nn.Conv2d(half, half, 3, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.GELU(),
        nn.Conv2d(half, embed_dim, 3, stride=2, padding=1),
        Permute([0, 2, 3, 1]),
        nn.LayerNorm(embed_dim),
    )


class SwinBody(nn.Module):
    """A torchvision Swin up to the last of `levels` (stride -> name, channels), channels first.

    Images are padded to whole patches of `patch` pixels; 1 leaves them as they are.
    Source: mmdetection's output norms (`norm0` .. `norm3`), as the blocks are pre-norm.
    """

    def __init__(
        self, features: nn.Sequential, levels: Mapping[int, tuple[str, int]], *, patch: int = 1
    ) -> None:
        super().__init__()
        self.returned, self.patch = [name for name, _ in levels.values()], patch
        self.features = features[: int(self.returned[-1]) + 1]
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _, channels in levels.values())

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Maps "0", "1", ... (N, C, H/stride, W/stride) of images (N, 3, H, W)."""
        outputs: OrderedDict[str, Tensor] = OrderedDict()
        height, width = images.shape[2:]
        images = pad(images, (0, -width % self.patch, 0, -height % self.patch))
        for name, layer in self.features.named_children():
            images = layer(images)
            if name in self.returned:
                index = self.returned.index(name)
                outputs[str(index)] = self.norms[index](images).permute(0, 3, 1, 2).contiguous()
        return outputs


class TimmBody(nn.Module):
    """A timm `features_only` trunk as channels-first maps."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Maps "0", "1", ... (N, C, H/stride, W/stride) of images (N, 3, H, W)."""
        maps = self.features(images)
        if getattr(self.features, "output_fmt", None) == "NHWC":
            maps = [level.permute(0, 3, 1, 2).contiguous() for level in maps]
        return OrderedDict((str(index), level) for index, level in enumerate(maps))


def measure_children(module: nn.Module, *, axis: int = 1) -> dict[int, tuple[str, int]]:
    """Stride -> (name, channels) of the last child of `module` at each stride, up to the pooling.

    `axis` is that of the channels in what the children give.
    """
    x = torch.zeros(1, 3, _PROBE, _PROBE)
    levels: dict[int, tuple[str, int]] = {}
    with frozen_modes(module):
        for name, child in module.named_children():
            x = child(x)
            if x.dim() != 4 or x.shape[2] == 1:
                break
            levels[_PROBE // x.shape[2]] = (name, x.shape[axis])
    return levels


def _select(levels: Mapping[int, Any], strides: Sequence[int], trunk: str) -> dict[int, Any]:
    if not strides or list(strides) != sorted(levels.keys() & set(strides)):
        offer = f"increasing strides out of {sorted(levels)}"
        raise ValueError(f"strides={tuple(strides)} of trunk {trunk!r}: expected {offer}")
    return {stride: levels[stride] for stride in strides}


def _swin(arguments: Mapping[str, Any]) -> SwinTransformer:
    settings = {"patch_size": [4, 4], "stochastic_depth_prob": 0.05, **arguments}
    stem = settings.pop("stem", "patch")
    check_value("stem", stem, TRUNK["stem"])
    window = settings.get("window_size", 6)
    settings["window_size"] = [window] * 2 if isinstance(window, int) else window
    model = SwinTransformer(**settings)
    if stem == "conv":
        model.features[0] = conv_stem(settings["embed_dim"])
    return model


def _timm_body(name: str, strides: Sequence[int], arguments: Mapping[str, Any]) -> Body:
    import timm

    settings = {"pretrained": False, "features_only": True, **arguments}
    try:  # timm's Swin takes other input sizes only when told so at its construction
        info = timm.create_model(name, strict_img_size=False, **settings).feature_info
        settings["strict_img_size"] = False
    except TypeError:
        info = timm.create_model(name, **settings).feature_info
    levels = zip(info.reduction(), zip(info.out_indices, info.channels(), strict=True), strict=True)
    indices, channels = zip(*_select(dict(levels), strides, f"timm:{name}").values(), strict=True)
    return TimmBody(timm.create_model(name, out_indices=indices, **settings)), list(channels)


def _body(trunk: str, strides: Sequence[int], arguments: Mapping[str, Any]) -> Body:
    family, _, name = trunk.partition(":")
    if family == "timm":
        import timm  # all its models: a second, which a trunk of torchvision need not wait for
    if trunk == "swin":
        model: nn.Module = _swin(arguments)
    elif family == "torchvision" and name in torchvision.models.list_models(torchvision.models):
        model = torchvision.models.get_model(name, weights=None, **arguments)
    elif family == "timm" and timm.is_model(name):
        if not timm.models.model_entrypoint(name).__module__.endswith(".resnet"):
            return _timm_body(name, strides, arguments)
        model = timm.create_model(name, pretrained=False, **arguments)
    else:
        raise ValueError(f"trunk={trunk!r}: expected 'swin', torchvision:NAME or timm:NAME, known")
    swin, layers = isinstance(model, SwinTransformer), getattr(model, "features", model)
    layers = layers if isinstance(layers, nn.Sequential) else model
    levels = _select(measure_children(layers, axis=-1 if swin else 1), strides, trunk)
    names = {name: str(index) for index, (name, _) in enumerate(levels.values())}
    body = SwinBody(layers, levels) if swin else IntermediateLayerGetter(layers, names)
    return body, [channels for _, channels in levels.values()]


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
        reason = printable(error) or type(error).__name__
        advice = "fetch the file elsewhere and name it"
        raise ValueError(f"{model}: not to be had from the hub ({reason}); {advice}") from error
    raise ValueError(f"{model}: on no hub; expected torchvision:NAME or timm:NAME")


def _plain(name: str) -> str:
    """Timm flattens "layers.0" to "layers_0", torchvision's trunks sit under "features."."""
    return name.removeprefix("features.").replace(".", "_")


def load_trunk(body: nn.Module, weights: PathLike, trunk: str = "") -> None:
    """Load into trunk `body` its part of a whole classifier's state dict; the rest is left out.

    `weights` is a file for `read_selected`, whose line goes to the log, or "hub" for
    `hub_state(trunk)`. Raises ValueError when a tensor of `body` is not there in its shape or not
    finite, or the file cannot be read.
    """
    tensors = body.state_dict()
    names = {_plain(name.removeprefix("model.")): name for name in tensors}
    if weights == "hub":
        found = hub_state(trunk)
    else:
        found, line = read_selected(weights, lambda name: _plain(name) in names)
        if line:
            _log.warning("%s: %s", weights, line)
    taken = {n: value for n, value in tensors.items() if n.endswith("num_batches_tracked")}
    taken |= {names[_plain(n)]: value for n, value in found.items() if _plain(n) in names}
    load_tensors(body, taken, weights)


def build_backbone(
    trunk: str,
    *,
    strides: Sequence[int] = (4, 8, 16, 32),
    channels: int = 64,
    extra: str | None = "pool",
    trunk_arguments: Mapping[str, Any] | None = None,
    weights: PathLike | None = None,
    frozen_norm: bool = False,
) -> nn.Module:
    """A backbone (N, 3, H, W) -> OrderedDict of maps (N, channels, H/stride, W/stride).

    `trunk` is "torchvision:NAME", "timm:NAME", or "swin" (torchvision's, from `trunk_arguments`:
    embed_dim, depths, num_heads, window_size, stem="patch"|"conv"); its increasing `strides` enter
    the pyramid. `extra` "pool" adds one level by subsampling, "p6p7" two by convolution of the
    last. `weights` is a file with the state dict of the trunk's classifier, or "hub" to fetch it.
    `frozen_norm` turns the trunk's batch norms into FrozenBatchNorm2d (small batches).

    Raises ValueError for an unknown trunk, stride or extra, or weights that leave a tensor open.
    """
    if extra not in (None, "pool", "p6p7"):
        raise ValueError(f"extra={extra!r}: expected 'pool', 'p6p7' or None")
    p6p7 = LastLevelP6P7(channels, channels) if extra == "p6p7" else None
    block = LastLevelMaxPool() if extra == "pool" else p6p7
    try:
        body, widths = _body(trunk, strides, trunk_arguments or {})
    except (TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError) as error:
        built = f"trunk {trunk!r} cannot be built from trunk_arguments={trunk_arguments}"
        raise ValueError(f"{built} ({printable(error)})") from error
    fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=block)
    if weights is not None:
        load_trunk(getattr(body, "features", body), weights, trunk)
    if frozen_norm:
        from timm.utils.model import freeze_batch_norm_2d

        freeze_batch_norm_2d(body)
    backbone = nn.Sequential(OrderedDict(body=body, fpn=fpn))
    backbone.out_channels = channels
    return backbone
