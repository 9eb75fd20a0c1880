"""Detectors in files of ours: weights, recipe and class names together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from dfmsd.detectors import checkpoints
from dfmsd.detectors.backbones import hub_state
from dfmsd.detectors.build import build_detector, stock_detector
from dfmsd.detectors.files import CheckpointError, PathLike, one_line_errors
from dfmsd.detectors.mmdet.teacher import build_teacher
from dfmsd.detectors.recipe import Recipe
from dfmsd.ranges import check_value


def rebuild(recipe: Mapping[str, Any]) -> nn.Module:
    """A fresh model from the attribute `recipe` of a detector, or of a teacher of features."""
    if "mmdet" in recipe:
        return build_teacher(recipe["mmdet"])
    if "stock" in recipe:
        return stock_detector(recipe["stock"], **{k: v for k, v in recipe.items() if k != "stock"})
    return build_detector(Recipe(**recipe))


def _filled(recipe: Mapping[str, Any], tensors: dict[str, Tensor], path: PathLike) -> nn.Module:
    """The model of a recipe, with `tensors` of file `path`, or CheckpointError.

    It is made without memory first (on the `meta` device), as a file may promise more than it has.
    """
    with one_line_errors(path, "its recipe makes no detector"):
        with torch.device("meta"):
            checkpoints.refuse_difference(rebuild(recipe), tensors)
        model = rebuild(recipe)
    checkpoints.load_tensors(model, tensors, path)
    return model


def load_detector(path: str | Path, *, head: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """A detector or a teacher of features that dfmsd saved, in eval mode, and its file's metadata.

    `head` refuses a teacher of features, which finds no boxes, and classes without names. Raises
    CheckpointError for a file that is not ours, or of another model.
    """
    metadata = checkpoints.read_metadata(path)
    if not {"recipe", "classes"} <= metadata.keys():
        raise CheckpointError(f"{path}: names no recipe and classes; it was not saved by dfmsd")
    recipe = metadata["recipe"]
    with one_line_errors(path, "its recipe makes no detector"):
        check_value("classes", metadata["classes"], [str, 10_000])
        if head and "mmdet" in recipe:
            raise CheckpointError("a teacher of features; without a head it finds no boxes")
        if head and not metadata["classes"]:
            raise CheckpointError("names no classes; import it again with --classes")
    return _filled(recipe, checkpoints.read_tensors(path), path).eval(), metadata


def shown_size(metadata: Mapping[str, Any]) -> int | None:
    """Pixels to which images are reduced for a detector of this file; None: it resizes itself."""
    recipe = metadata["recipe"]
    return None if recipe.get("resize", "stock" in recipe) else recipe.get("image_size")


def save_detector(
    model: nn.Module, path: Path, *, classes: list[str], half: bool = False, **extra: Any
) -> None:
    """Weights, recipe, class names and `extra` in one safetensors file, see `save_weights`."""
    checkpoints.save_weights(
        model, path, {"recipe": model.recipe, "classes": classes} | extra, half=half
    )


def load_stock(
    name: str, weights: str | Path | None = None, *, prefix: str = ""
) -> tuple[nn.Module, str]:
    """A detector of torchvision with the weights of a file or the hub, and a line on the file.

    It gets as many classes as its weights have; the recipe says how many where they are not COCO's.
    Raises CheckpointError when the file, of which `prefix` names a part, cannot be read or fit.
    """
    if weights is None:
        model = stock_detector(name)
        checkpoints.load_tensors(model, hub_state(f"torchvision:{name}"), name)
        return model, ""
    with torch.device("meta"):
        few, more = (stock_detector(name, num_classes=n).state_dict() for n in (2, 3))
    tensors, line = checkpoints.read_selected(weights, few.__contains__, prefix=prefix)
    head = next(key for key in few if few[key].shape != more[key].shape)
    slots = published = len(get_model_weights(name).DEFAULT.meta["categories"])
    if head in tensors and tensors[head].dim():
        slots = len(tensors[head]) // (len(more[head]) - len(few[head]))
    recipe = {"stock": name} | ({} if slots == published else {"num_classes": slots})
    return _filled(recipe, tensors, weights), line
