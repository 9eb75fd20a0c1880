"""An mmdetection checkpoint file → a teacher with its weights, and a report of what was used."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from dfmsd.detectors.mmdet.config_text import read_config, settings
from dfmsd.detectors.mmdet.shapes import as_mmdet, describe, our_value, their_name
from dfmsd.detectors.mmdet.teacher import FeatureTeacher, build_teacher
from dfmsd.detectors.strict import CheckpointError, load_state, mismatch

Style = Literal["pytorch", "caffe"]
Source = Literal["input", "output"]
Order = Literal["rgb", "bgr"]
# what mmdetection puts next to the weights; none of it is of use, all of it comes back empty
_IGNORED = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
)
_RGB = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "order": "rgb"}
"""ImageNet's statistics, as nearly all of mmdetection's configs have them; 0..255."""


def load_mmdet(
    path: str | os.PathLike[str],
    *,
    style: Style | None = None,
    source: Source | None = None,
    relu: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    order: Order | None = None,
) -> FeatureTeacher:
    """Return trunk and pyramid of an mmdetection checkpoint: normalised RGB batch → features.

    Mask and Faster R-CNN and RetinaNet (and detectors like them) with Swin, ResNet or ResNeXt, of
    mmdetection 2 and 3 and of Swin's own repository. Heads are left out. The attribute `report`
    says what was used and what was left, `transform.image_mean` and `.image_std` how the pixels are
    normalised. Shapes decide the configuration; what they cannot tell comes from the config that
    mmdetection stores in the file, and only where that is absent from an argument.

    Args:
        path: the `.pth` file.
        style: of a ResNet: stride in the 3x3 ("pytorch") or the first 1x1 convolution ("caffe").
        source: what the first extra level reads: the trunk's last map or the pyramid's.
        relu: ReLU before the second extra level.
        mean: of the pixels, 0..255, in `order`. ImageNet's when nothing says otherwise.
        std: the same.
        order: of the channels that the file was trained with; the teacher always takes RGB.

    Raises:
        CheckpointError: the file cannot be read, does not fit, or leaves a question open; one line
            with file, key and shape. Nothing in the file is run.
    """
    content = load_state(path, ignored=_IGNORED)
    state = _tensors(content, str(path))
    shapes = describe(state, str(path))
    stored = settings(read_config(_config(content)))
    if stored.get("other"):
        raise CheckpointError(f"{path}: its config has {', '.join(stored['other'])}: not supported")
    given = {"style": style, "source": source, "relu": relu}
    given |= {"mean": _listed(mean), "std": _listed(std), "order": order}
    recipe, order = _complete(shapes, stored, given, state, str(path))
    teacher = build_teacher(recipe)
    used = _fill(teacher, state, recipe, order == "bgr", str(path))
    left = Counter(key.split(".")[0] for key in state if key not in used)
    teacher.report = {
        "used": len(used),
        "left": dict(left),
        "config": "stored in the file" if stored else "none in the file",
        "order": order,
        "pixels": "given" if mean else "as the config says" if "mean" in stored else "assumed",
    }
    return teacher


def _tensors(content: dict[str, Any], path: str) -> dict[str, Tensor]:
    """Return the detector's tensors under mmdetection's names; CheckpointError for other files."""
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), dict):
            content = content[name]
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    foreign = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(f"{path}: expected tensors only, found other values {foreign[:3]}")
    starts = {key.split(".")[0] for key in state}
    if any(key.startswith(("backbone.body.", "backbone.fpn.")) for key in state):
        advice = "`dfmsd import-torchvision NAME --weights FILE` takes it"
        raise CheckpointError(f"{path}: a detector of torchvision, not of mmdetection; {advice}")
    if not {"backbone", "neck"} <= starts:
        named = ", ".join(sorted(starts)[:5]) or "nothing"
        expected = "expected a detector of mmdetection with keys backbone.… and neck.…"
        raise CheckpointError(f"{path}: {expected}, found {named}")
    return as_mmdet(state)


def _config(content: dict[str, Any]) -> str:
    """Return the config text of the file; mmdetection 2 calls it `config`, 3 `cfg`."""
    meta = content.get("meta")
    texts = [meta.get(name) for name in ("config", "cfg")] if isinstance(meta, dict) else []
    return next((text for text in texts if isinstance(text, str)), "")


def _listed(values: Sequence[float] | None) -> list[float] | None:
    """Return three numbers as a list."""
    return None if values is None else [float(value) for value in values]


def _decide(name: str, given: Any, stored: Any, path: str, advice: str) -> Any:
    """Return the argument, or what the file says; CheckpointError when they differ or lack."""
    if given is not None and stored is not None and given != stored:
        raise CheckpointError(f"{path}: {name}={given}: the file itself says {stored}")
    if given is None and stored is None:
        unknown = "shapes cannot tell, and it holds no config that does"
        raise CheckpointError(f"{path}: {name}: {unknown}; give {name}: {advice}")
    return stored if given is None else given


def _complete(
    shapes: dict[str, Any],
    stored: dict[str, Any],
    given: dict[str, Any],
    state: dict[str, Tensor],
    path: str,
) -> tuple[dict[str, Any], str]:
    """Return the teacher's recipe and the order of the channels, what shapes leave open decided."""
    recipe = {key: value for key, value in shapes.items() if key not in ("extras", "sources")}

    def decide(name: str, advice: str) -> Any:
        return _decide(name, given[name], stored.get(name), path, advice)

    if shapes.get("bottleneck"):
        styles = "pytorch or caffe (stride in the 3x3 or in the first 1x1 convolution)"
        recipe["style"] = decide("style", styles)
    usual = {} if recipe.get("style") == "caffe" else _RGB
    stored = usual | stored if all(given[name] is None for name in _RGB) else stored
    pixels = {name: decide(name, "as in the img_norm_cfg it was trained with") for name in _RGB}
    if not all(len(pixels[name]) == 3 for name in ("mean", "std")):
        raise CheckpointError(f"{path}: mean, std: expected three numbers each, got {pixels}")
    turn = -1 if pixels["order"] == "bgr" else 1
    recipe |= {name: [value / 255 for value in pixels[name][::turn]] for name in ("mean", "std")}
    recipe["extra"] = _extra(shapes, stored, given, state, path)
    return recipe, pixels["order"]


def _extra(
    shapes: dict[str, Any],
    stored: dict[str, Any],
    given: dict[str, Any],
    state: dict[str, Tensor],
    path: str,
) -> dict[str, Any]:
    """Return how the levels on top of the pyramid are made.

    Choice: subsampled levels beyond the first carry nothing new and are left out.
    """
    extras, sources = shapes["extras"], shapes["sources"]
    if not extras:
        rpn = any(key.startswith("rpn_head.") for key in state)
        levels = stored.get("levels", len(shapes["stages"]) + rpn)
        return {"kind": "pool", "count": min(1, max(0, levels - len(shapes["stages"])))}
    advice = "input or output (the trunk's last map, or the pyramid's)"
    seen = sources[0] if len(sources) == 1 else None
    source = _decide("source", given["source"], stored.get("source", seen), path, advice)
    if source not in sources:
        reads = f"the shapes allow {' or '.join(sources) or 'neither input nor output'}"
        raise CheckpointError(f"{path}: the first extra level reads {source}, but {reads}")
    relu = False
    if extras > 1:
        advice = "true or false (RetinaNet: false; FCOS and its kin: true)"
        relu = _decide("relu", given["relu"], stored.get("relu"), path, advice)
    return {"kind": "convs", "count": extras, "source": source, "relu": relu}


def _fill(
    teacher: FeatureTeacher, state: dict[str, Tensor], recipe: dict[str, Any], bgr: bool, path: str
) -> set[str]:
    """Load the teacher strictly and return the file's keys that it took."""
    ours = teacher.backbone.state_dict()
    names = {key: their_name(key, recipe) for key in ours}
    unused = {f"backbone.norm{stage}." for stage in range(8) if stage not in recipe["stages"]}
    found = {
        key: value
        for key, value in state.items()
        if key.startswith(("backbone.", "neck.")) and not key.startswith(tuple(unused))
    }
    expected: dict[str, Tensor] = {}
    for key, name in names.items():
        # old files have no counters; a window's index is a square there and a line here
        if name in state or not name.endswith("num_batches_tracked"):
            square = key.endswith("relative_position_index")
            side = int(ours[key].numel() ** 0.5)
            expected[name] = ours[key].view(side, side) if square else ours[key]
    difference = mismatch(expected, found)
    if difference:
        kind = "Swin" if recipe["trunk"] == "swin" else "ResNet"
        raise CheckpointError(f"{path}: no {kind} with FPN as its shapes say: {difference}")
    for key, name in names.items():
        if name in found:
            ours[key] = our_value(key, found[name], bgr=bgr)
    teacher.backbone.load_state_dict(ours, strict=True)
    return set(expected)
