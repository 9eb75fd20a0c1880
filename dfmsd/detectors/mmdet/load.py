"""An mmdetection checkpoint file → a teacher with its weights, and a report of what was used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dfmsd.detectors.checkpoints import read_content, refuse_non_finite, select, state_dict_diff
from dfmsd.detectors.files import CheckpointError, PathLike, one_line_errors, sample
from dfmsd.detectors.mmdet.contents import describe, mmdet_name, read_config, settings, their_name
from dfmsd.detectors.mmdet.teacher import FeatureTeacher, build_teacher

_STEMS = ("backbone.conv1.weight", "backbone.patch_embed.projection.weight")
_RGB = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "order": "rgb"}
"""ImageNet's statistics, as nearly all of mmdetection's configs have them; 0..255."""


def load_mmdet(
    path: PathLike,
    *,
    style: Literal["pytorch", "caffe"] | None = None,
    source: Literal["input", "output"] | None = None,
    relu: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    order: Literal["rgb", "bgr"] | None = None,
    prefix: str = "",
) -> FeatureTeacher:
    """Trunk and pyramid of an mmdetection checkpoint; its attribute `report` says what was used.

    Detectors with Swin, ResNet or ResNeXt and FPN, of mmdetection 2 and 3 and of Swin's own
    repository. What shapes cannot tell comes from the config in the file, and only where that is
    absent from an argument; these are those of `dfmsd.detectors.commands.import_mmdet`. A teacher
    takes RGB whatever `order`. Raises CheckpointError when the file cannot be read, does not fit,
    or leaves a question open.
    """
    values = read_content(path)
    given = {"style": style, "source": source, "relu": relu, "order": order}
    given |= {name: v and [float(x) for x in v] for name, v in (("mean", mean), ("std", std))}
    with one_line_errors(path, "no detector of mmdetection"):
        state, original, line = _detector_tensors(values, prefix)
        texts = (values.get(f"meta.{key}") for key in ("config", "cfg"))  # of mmdetection 2 and 3
        text = next((text for text in texts if isinstance(text, str)), "")
        shapes, stored = describe(state), settings(read_config(text))
        if stored.get("other"):
            raise CheckpointError(f"its config has {', '.join(stored['other'])}: not supported")
        known = {"source": shapes["sources"][0]} if len(shapes["sources"]) == 1 else {}
        recipe, order = _complete(shapes, state, given, known | stored)
        names, teacher = _their_names(state, recipe), build_teacher(recipe)
        options = {"bgr": order == "bgr", "original": original}
        tensors = {key: _converted(name, state[name], **options) for key, name in names.items()}
        teacher.backbone.load_state_dict(teacher.backbone.state_dict() | tensors)
    left = Counter(key.split(".")[0] for key in state.keys() - set(names.values()))
    origin = "as the config says" if "mean" in stored else "assumed"
    teacher.report = {
        "used": len(names),
        "left": dict(left.most_common(10)),
        "config": "stored in the file" if stored else "none in the file",
        "order": order,
        "pixels": "given" if mean else origin,
        "file": line or "taken as it is",
    }
    return teacher


def _detector_tensors(values: dict[str, Any], prefix: str) -> tuple[dict[str, Tensor], bool, str]:
    """The tensors under mmdetection's names, whether Swin's repository wrote them, and a line."""
    state, line = select(values, lambda n: n.startswith(("backbone.", "neck.")), prefix)
    if any(key.startswith(("backbone.body.", "backbone.fpn.")) for key in state):
        advice = "`dfmsd import-torchvision NAME --weights FILE` takes it"
        raise CheckpointError(f"a detector of torchvision, not of mmdetection; {advice}")
    if not {"backbone", "neck"} <= {key.split(".")[0] for key in state}:
        expected = "expected a detector of mmdetection with keys backbone.… and neck.…"
        raise CheckpointError(f"{expected}, found {sample(state)}")
    original = any(key.startswith("backbone.layers.") for key in state)
    state = {mmdet_name(k) if original else k: v for k, v in state.items()}
    flat = {k: v.flatten() for k, v in state.items() if k.endswith("relative_position_index")}
    return state | flat, original, line


def _converted(name: str, value: Tensor, *, bgr: bool, original: bool) -> Tensor:
    """Tensor `name` of mmdetection as torchvision's modules read it.

    Choice: a stem trained on BGR pixels is turned to read RGB, so that every teacher takes RGB.
    """
    if name.startswith("backbone.stages.") and ".downsample." in name and not original:
        # the columns (..., 4C) of mmdetection's PatchMerging go channel by channel, row by row;
        # those of Swin's own repository and of torchvision neighbour by neighbour, (0, 0),
        # (1, 0), (0, 1), (1, 1) as row and column
        return value.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)
    return value.flip(1) if bgr and name in _STEMS else value


def _decide(given: dict[str, Any], stored: dict[str, Any], name: str, advice: str) -> Any:
    """The argument, or what the file says; CheckpointError when they differ or both lack."""
    said = [values[name] for values in (given, stored) if values.get(name) is not None]
    if not said:
        unknown = "shapes cannot tell, and it holds no config that does"
        raise CheckpointError(f"{name}: {unknown}; give {name}: {advice}")
    if said[0] != said[-1]:
        raise CheckpointError(f"{name}={said[0]}: the file itself says {said[1]}")
    return said[0]


def _complete(
    shapes: dict[str, Any], state: dict[str, Tensor], given: dict[str, Any], stored: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """The teacher's recipe and the channels' order; fills up `stored` from the shapes."""
    decide = partial(_decide, given, stored)
    recipe = {key: value for key, value in shapes.items() if key not in ("extras", "sources")}
    if shapes.get("bottleneck"):
        styles = "pytorch or caffe (stride in the 3x3 or in the first 1x1 convolution)"
        recipe["style"] = decide("style", styles)
    if recipe.get("style") != "caffe" and all(given[name] is None for name in _RGB):
        stored.update(_RGB | stored)  # caffe's weights come with statistics of their own
    pixels = {name: decide(name, "as in the img_norm_cfg it was trained with") for name in _RGB}
    if not len(pixels["mean"]) == len(pixels["std"]) == 3:
        raise CheckpointError(f"mean, std: expected three numbers each, got {pixels}")
    turn = -1 if pixels["order"] == "bgr" else 1
    recipe |= {name: [value / 255 for value in pixels[name][::turn]] for name in ("mean", "std")}
    if shapes["extras"]:
        recipe["extra"] = _extra(shapes, decide)
    else:  # choice: subsampled levels beyond the first carry nothing new and are left out
        rpn = any(key.startswith("rpn_head.") for key in state)
        more = stored["levels"] > len(shapes["stages"]) if "levels" in stored else rpn
        recipe["extra"] = {"kind": "pool", "count": int(more)}
    return recipe, pixels["order"]


def _extra(shapes: dict[str, Any], decide: Callable[[str, str], Any]) -> dict[str, Any]:
    source = decide("source", "input or output (the trunk's last map, or the pyramid's)")
    if source not in shapes["sources"]:
        reads = f"the shapes allow {' or '.join(shapes['sources']) or 'neither input nor output'}"
        raise CheckpointError(f"the first extra level reads {source}, but {reads}")
    kinds = "true or false (RetinaNet: false; FCOS and its kin: true)"
    relu = shapes["extras"] > 1 and decide("relu", kinds)
    return {"kind": "convs", "count": shapes["extras"], "source": source, "relu": relu}


def _their_names(state: dict[str, Tensor], recipe: dict[str, Any]) -> dict[str, str]:
    """Our name → theirs of a teacher's tensors; CheckpointError when `state` does not fit.

    Built without memory: shapes of a file may promise more than it holds.
    """
    with torch.device("meta"):
        tensors = build_teacher(recipe).backbone.state_dict()
    names = {key: their_name(key, recipe) for key in tensors}
    counter = "num_batches_tracked"  # absent from old files
    names = {k: name for k, name in names.items() if name in state or not name.endswith(counter)}
    unused = tuple(f"backbone.norm{n}." for n in range(8) if n not in recipe["stages"])
    read = {k: v for k, v in state.items() if k.startswith(("backbone.", "neck."))}
    read = {k: v for k, v in read.items() if not k.startswith(unused)}
    if difference := state_dict_diff({name: tensors[key] for key, name in names.items()}, read):
        kind = "Swin" if recipe["trunk"] == "swin" else "ResNet"
        raise CheckpointError(f"no {kind} with FPN as its shapes say: {difference}")
    refuse_non_finite(read)
    return names
