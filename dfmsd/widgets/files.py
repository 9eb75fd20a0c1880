"""The laboratory of files: pictures and detectors that somebody names, or the shipped ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfmsd.data.scenes import SceneDataset
from dfmsd.detectors.saved import load_detector
from dfmsd.widgets.lab import LabError

_SCENES, _SIZE, _SEED, _LIMITS = 12, 96, 2, (14.0, 28.0)  # the validation scenes of `scenes`


def lab_arguments(images: Sequence[Path] = (), detectors: Sequence[Path] = ()) -> dict[str, Any]:
    """The arguments of `Laboratory` for pictures, and detectors that dfmsd saved.

    Without pictures it is the generated scenes with their true boxes, without detectors the two
    shipped teachers. LabError when these are not found. Files of one name are told apart by their
    folders.
    """
    if detectors:
        names = {key.removesuffix(".safetensors"): path for key, path in _named(detectors).items()}
    else:
        names = {f"{path.stem} teacher": path for path in _shipped()}
    found = {"detectors": {name: load_detector(path, head=True)[0] for name, path in names.items()}}
    if images:
        return found | {"images": _named(images)}
    scenes = SceneDataset(_SCENES, size=_SIZE, seed=_SEED)
    order = (1, *(index for index in range(_SCENES) if index != 1))  # three sizes in the first
    shown = {f"scene {index}": scenes[index] for index in order}
    found |= {"images": {name: image for name, (image, _) in shown.items()}}
    return found | {"targets": {name: t for name, (_, t) in shown.items()}, "limits": _LIMITS}


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """The files by name, with as many folders before it as tell all of them apart."""
    parts = {path: path.absolute().parts for path in files}
    for depth in range(1, max(map(len, parts.values())) + 1):
        names = {"/".join(part[-depth:]): path for path, part in parts.items()}
        if len(names) == len(parts):
            break
    return names


def _shipped() -> list[Path]:
    """The teachers of the project around the working directory, or around the library."""
    for folder in (Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents):
        paths = [folder / "data/teachers" / f"{name}.safetensors" for name in ("strong", "weak")]
        if all(path.is_file() for path in paths):
            return paths
    raise LabError("data/teachers: not found from here; name detectors that dfmsd saved")
