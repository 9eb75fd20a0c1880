"""Detectors in files of ours: weights, recipe and class names together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from dfmsd.detectors.build import rebuild
from dfmsd.detectors.checkpoints import CheckpointError, load_weights, read_metadata, save_weights
from dfmsd.detectors.mmdet.teacher import build_teacher


def load_detector(path: str | Path, *, head: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """A detector or a teacher of features that dfmsd saved, in eval mode, and its file's metadata.

    `head` refuses a teacher of features, which finds no boxes. Raises CheckpointError for a file
    that is not ours, or of another model.
    """
    metadata = read_metadata(path)
    if not {"recipe", "classes"} <= metadata.keys():
        raise CheckpointError(f"{path}: names no recipe and classes; it was not saved by dfmsd")
    if head and "mmdet" in metadata["recipe"]:
        raise CheckpointError(f"{path}: a teacher of features; without a head it finds no boxes")
    recipe = metadata["recipe"]
    try:
        model = build_teacher(recipe["mmdet"]) if "mmdet" in recipe else rebuild(recipe)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its recipe makes no detector ({error})") from error
    load_weights(model, path)
    return model.eval(), metadata


def save_detector(
    model: nn.Module, path: Path, *, classes: list[str], half: bool = False, **extra: Any
) -> None:
    """Weights, recipe and class names in one safetensors file."""
    metadata = {"recipe": model.recipe, "classes": list(classes), **extra}
    save_weights(model, path, metadata, half=half)
