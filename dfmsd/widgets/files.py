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
    shipped teachers. LabError when these are not found.
    """
    files = list(detectors) or _shipped()
    names = {f"{path.stem} teacher" if not detectors else path.stem: path for path in files}
    found = {"detectors": {name: load_detector(path, head=True)[0] for name, path in names.items()}}
    if images:
        return found | {"images": {path.name: path for path in images}}
    scenes = SceneDataset(_SCENES, size=_SIZE, seed=_SEED)
    order = (1, *(index for index in range(_SCENES) if index != 1))  # three sizes in the first
    shown = {f"scene {index}": scenes[index] for index in order}
    found |= {"images": {name: image for name, (image, _) in shown.items()}}
    return found | {"targets": {name: t for name, (_, t) in shown.items()}, "limits": _LIMITS}


def _shipped() -> list[Path]:
    """The teachers of the project around the working directory, or around the library."""
    for folder in (Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents):
        paths = [folder / "data/teachers" / f"{name}.safetensors" for name in ("strong", "weak")]
        if all(path.is_file() for path in paths):
            return paths
    raise LabError("data/teachers: not found from here; name detectors that dfmsd saved")
