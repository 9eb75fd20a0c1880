"""What the controls of the laboratory may be set to, and the scenes that their values need."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from dfmsd.data.images import read_image
from dfmsd.detectors.features import strided_levels
from dfmsd.widgets.lab import LabError, MaskSettings, Scene, capture_scene

NOTHING, PINNED, LEVELS = "nothing", "pinned state A", "all levels"
_MOST_SCENES = 64


class State:
    """Pictures as detectors see them, and the present value of every control.

    Each pair of picture and detector is computed once, at its first visit. LabError without image
    or detector, or for an image that cannot be shown.

    Args:
        images: name → float tensor (3, H, W) in 0..1, or the path of a picture.
        detectors: name → torchvision detector.
        targets: name of an image → its true `boxes`, (n, 4) xyxy in pixels of the image; of a
            picture from a file, as reduced to `size`.
        limits: sides in pixels of the image below which objects count as small and as medium.
        size: pixels to which the longer side of a picture from a file is reduced.
        paths: whether `set(image=…)` opens files of this machine later on.
    """

    def __init__(
        self,
        images: Mapping[str, Tensor | str | Path],
        detectors: Mapping[str, nn.Module],
        *,
        targets: Mapping[str, Mapping[str, Tensor]] | None = None,
        limits: tuple[float, float] = (32, 96),
        size: int = 416,
        paths: bool = True,
    ) -> None:
        for name, given in (("images", images), ("detectors", detectors)):
            if not given:
                raise LabError(f"{name} must hold at least one, got none")
        if not 0 <= limits[0] <= limits[1]:
            raise LabError(f"limits must be two sides in increasing order, got {limits!r}")
        for name, target in (targets or {}).items():
            if name not in images or target["boxes"].dim() != 2 or target["boxes"].shape[1] != 4:
                raise LabError(f"targets[{name!r}] must be boxes (n, 4) of one of the images")
        self.paths, self._size, self._limits, self._images = True, size, limits, {}
        self._images = {name: self._open(image) for name, image in images.items()}
        self.paths = paths
        self._detectors, self._targets = dict(detectors), dict(targets or {})
        self._levels = {name: strided_levels(model) for name, model in detectors.items()}
        self._scenes: dict[tuple[str, str], Scene] = {}
        self._pinned: dict[str, Any] | None = None
        first = next(iter(detectors))
        settings = asdict(MaskSettings(nearest(8, self._levels[first])))
        self._values = {"image": next(iter(images)), "detector": first, **settings}
        self._values |= {"student": first, "beside": NOTHING, "channel": 0}
        self._start = self._values = self._plan({})

    def values(self) -> dict[str, Any]:
        """Name → value of every control: image, detector, the fields of `MaskSettings`, the rest.

        `student` names the detector whose feature is masked, `beside` what stands beside the masks
        (see `options`), `channel` the one whose map is shown.
        """
        return dict(self._values)

    def settings(self, values: Mapping[str, Any] | None = None) -> MaskSettings:
        """The level and the settings of the loss; its `text()` is for the command line."""
        values = values or self._values
        return MaskSettings(**{field.name: values[field.name] for field in fields(MaskSettings)})

    def options(self) -> dict[str, list[Any]]:
        """What those controls offer that depend on pictures, detectors and a pinned state."""
        return {"image": list(self._images), **self._offers(self._values)}

    def set(self, **values: Any) -> None:
        """Change controls by their names in `values()`, all or none.

        `image` may also be the path of a picture, or a `BytesIO`. A detector without the present
        level brings its nearest one, unless `stride` is given. LabError for an unknown name, or a
        value that its control cannot take.
        """
        self._values = self._plan(values)

    def pin(self) -> None:
        """Keep the present state as A, and show it beside what comes."""
        self._pinned = self.values()
        self._values = self._plan({"beside": PINNED})

    def reset(self) -> None:
        """All controls as at the beginning; the pinned state is forgotten, pictures stay."""
        self._values, self._pinned = dict(self._start), None

    def visit(self) -> Self:
        """A laboratory of the same pictures for a visitor, who opens no file of this machine."""
        other = copy(self)
        other._scenes, other.paths = dict(self._scenes), False
        other.reset()
        return other

    def _plan(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The values after these changes; what they need is computed, or nothing is kept."""
        if unknown := changes.keys() - self._values.keys():
            there = ", ".join(self._values)
            raise LabError(f"no control {named(sorted(unknown))}; there are {there}")
        before = self._images, self._scenes, self._targets
        values = self._values | changes
        self._follow(values, changes)
        self.settings(values)
        try:
            if not isinstance(values["image"], str) or values["image"] not in self._images:
                values["image"] = self._take(values["image"])
            self._match_student(values)
        except Exception:
            self._images, self._scenes, self._targets = before
            raise
        return values

    def _follow(self, values: dict[str, Any], changes: Mapping[str, Any]) -> None:
        """What a change of the detector brings, unless it is given: level, student, neighbour."""
        for name in ("detector", "student"):
            _check(name, values[name], list(self._detectors))
        levels = self._levels[values["detector"]]
        if "stride" not in changes:
            values["stride"] = nearest(values["stride"], levels)
        if "student" not in changes and values["student"] == self._values["detector"]:
            values["student"] = values["detector"]
        offers = self._offers(values)
        _check("stride", values["stride"], offers["stride"])
        if values["beside"] not in offers["beside"]:
            if "beside" in changes:
                lacks = "has no such level; " * (values["beside"] in list(self._detectors))
                known = named(offers["beside"])
                raise LabError(f"beside={values['beside']!r}: {lacks}must be one of {known}")
            values["beside"] = NOTHING
        last = levels[values["stride"]][1] - 1
        if "channel" not in changes:
            values["channel"] = min(values["channel"], last)
        if type(values["channel"]) is not int or values["channel"] not in range(last + 1):
            raise LabError(f"channel must lie in 0..{last}, got {values['channel']!r}")

    def _offers(self, values: Mapping[str, Any]) -> dict[str, list[Any]]:
        """What detectors, levels and what stands beside may be, given these values."""
        shown, stride = values["detector"], values["stride"]
        others = [k for k, levels in self._levels.items() if k != shown and stride in levels]
        pinned = [PINNED] * (self._pinned is not None)
        return {
            "detector": list(self._detectors),
            "stride": sorted(self._levels[shown]),
            "student": list(self._detectors),
            "beside": [NOTHING, *pinned, *others, LEVELS],
        }

    def _match_student(self, values: dict[str, Any]) -> None:
        """Run both detectors; a student without such a feature is refused, or replaced."""
        scene, student = self._seen(values), self._student(values)
        shape = scene.features[values["stride"]].shape
        feature = student.features.get(values["stride"])
        if feature is not None and (feature.shape, student.window) == (shape, scene.window):
            return
        if values["student"] != self._values["student"]:
            raise LabError(f"student={values['student']!r}: has no feature {tuple(shape[1:])} here")
        values["student"] = values["detector"]

    def _take(self, image: Any) -> str:
        """The name of a picture that is opened now; another of that name may have been seen."""
        picture, name = self._open(image), Path(str(image)).name
        self._scenes = {pair: seen for pair, seen in self._scenes.items() if pair[0] != name}
        self._targets = {key: boxes for key, boxes in self._targets.items() if key != name}
        self._images = {**self._images, name: picture}
        return name

    def _open(self, image: Any) -> Tensor:
        if isinstance(image, Tensor):
            if image.dim() != 3 or image.shape[0] != 3:
                raise LabError(f"images must have shape (3, H, W), got {tuple(image.shape)}")
            if not (image.is_floating_point() and image.amin() >= -0.01 and image.amax() <= 1.01):
                raise LabError(
                    f"images must be floats in 0..1, got {image.dtype} up to {image.max()}"
                )
            return image
        known = f", or one of {named(self._images)}" if self._images else ""
        if not isinstance(image, str | Path | BytesIO):
            raise LabError(f"image must be a name or the path of a picture, got {image!r}")
        if not self.paths and not isinstance(image, BytesIO):
            raise LabError(f"this app opens no file of its computer; drop your picture here{known}")
        try:
            file = image if isinstance(image, BytesIO) else Path(image).expanduser()
            return read_image(file, max_size=self._size)
        except (ValueError, RuntimeError) as error:  # RuntimeError: ~ of nobody
            raise LabError(f"{error}; give the path of a picture{known}") from None

    def _seen(self, values: Mapping[str, Any]) -> Scene:
        pair = values["image"], values["detector"]
        if pair not in self._scenes:
            boxes = self._targets.get(pair[0], {}).get("boxes")
            model, levels = self._detectors[pair[1]], self._levels[pair[1]]
            scene = capture_scene(model, self._images[pair[0]], boxes, levels=levels)
            while len(self._scenes) >= _MOST_SCENES:
                del self._scenes[next(iter(self._scenes))]
            self._scenes[pair] = scene
        return self._scenes[pair]

    def _student(self, values: Mapping[str, Any]) -> Scene:
        return self._seen(values | {"detector": values["student"]})


def _check(name: str, value: Any, offered: list[Any]) -> None:
    if value not in offered:
        known = named(offered) if isinstance(offered[0], str) else offered
        raise LabError(f"{name} must be one of {known}, got {value!r}")


def named(names: Collection[str]) -> str:
    """Names in quotes."""
    return ", ".join(map(repr, names))


def nearest(stride: int, levels: Collection[int]) -> int:
    """The level whose stride is nearest."""
    return min(levels, key=lambda level: abs(math.log2(level / stride)))
