"""What a mask hides, counted: of the picture, of its objects, of objects by size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dfmsd.widgets.lab import Scene

Counts = dict[str, tuple[int, int]]
"""Name → (part, whole), in cells."""


def cells_inside(scene: Scene, size: tuple[int, int]) -> Tensor:
    """(n, h, w) bool: True where the centre of a cell lies in a box, on a level of `size` cells."""
    height, width = scene.context.images.shape[2:]
    y = (torch.arange(size[0]) + 0.5)[:, None] * height / size[0]
    x = (torch.arange(size[1]) + 0.5) * width / size[1]
    left, top, right, bottom = scene.context.candidates[0].T[:, :, None, None]  # (n, 1, 1) each
    return (left <= x) & (x < right) & (top <= y) & (y < bottom)


def size_groups(scene: Scene, limits: tuple[float, float]) -> dict[str, Tensor]:
    """`small`, `medium`, `large` → (n,) bool, which boxes are; see `count_cells`."""
    side = (scene.boxes[:, 2:] - scene.boxes[:, :2]).clamp_min(0).prod(1).sqrt()
    small, large = side < limits[0], side >= limits[1]
    return {"small": small, "medium": ~small & ~large, "large": large}


def count_cells(scene: Scene, keep: Tensor, limits: tuple[float, float]) -> Counts:
    """What a mask (h, w) hides.

    `masked`: hidden cells of all; `objects`: cells inside boxes of all; `masked in objects`: cells
    inside boxes of the hidden ones; `small`, `medium`, `large`: hidden ones of the cells inside
    boxes of that size, missing when the picture has no such box. Boxes below the first of `limits`
    are small, below the second medium; square root of the area, pixels of the picture.
    """
    valid = scene.context.valid(keep[None, None])[0, 0]
    hidden, inside = (keep == 0) & valid, cells_inside(scene, tuple(keep.shape)) & valid
    covered = inside.any(0)
    cells = {
        "masked": (hidden, valid),
        "objects": (covered, valid),
        "masked in objects": (covered & hidden, hidden),
    }
    for name, chosen in size_groups(scene, limits).items():
        if chosen.any():
            area = inside[chosen].any(0)
            cells[name] = (hidden & area, area)
    return {name: (int(part.sum()), int(whole.sum())) for name, (part, whole) in cells.items()}


def sentence(scene: Scene, maps: Mapping[str, Tensor], limits: tuple[float, float]) -> str:
    """What both masks hide, in one sentence: the maps are those of `mask_maps`."""
    counts, groups = count_cells(scene, maps["keep"], limits), size_groups(scene, limits)
    objects = [
        f"{_amount(*counts[name])} the {name} object{'s' * bool(boxes.sum() > 1)}"
        for name, boxes in groups.items()
        if counts.get(name, (0, 0))[1]
    ]
    masked, cells = counts["masked"]
    words = ", ".join(objects[:-1]) + " and " * (len(objects) > 1) + "".join(objects[-1:])
    hidden, channels = int((maps["keep_channel"] == 0).sum()), len(maps["keep_channel"])
    what = words or f"{masked} of {cells} cells"
    share = f" ({_percent(masked, cells)} of the cells)" if words else ""
    return f"Hides {what}{share}, and {hidden} of {channels} channels."


def _amount(part: int, whole: int) -> str:
    """`all of`, `none of`, or a percentage that is neither."""
    if part in (0, whole):
        return "all of" if part else "none of"
    return f"{_percent(part, whole)} of"


def _percent(part: int, whole: int) -> str:
    """Rounded, but 0% and 100% only where that is exact."""
    exact = part in (0, whole)
    return f"{part / whole if exact else min(max(part / whole, 0.01), 0.99):.0%}"


def report(scene: Scene, keep: Tensor, limits: tuple[float, float]) -> list[str]:
    """The numbers of `count_cells` as lines of text; arguments as there."""
    counts = count_cells(scene, keep, limits)
    (masked, cells), (covered, _) = counts["masked"], counts["objects"]
    lines = [f"masked cells: {masked} of {cells} ({_percent(masked, cells)})"]
    if not len(scene.boxes):
        return [*lines, "no true boxes are known here, and the detector finds none"]
    whose = "the detector's own, no true ones are known" if scene.detected else "true ones"
    inside = counts["masked in objects"][0]
    hidden = f"{_percent(inside, masked)} of the masked cells, " if masked else ""
    boxes = f"{len(scene.boxes)} box{'es' * (len(scene.boxes) != 1)} ({whose})"
    objects = f"{_percent(covered, cells)} of all cells · {boxes}"
    low, high = (f"{limit:g}" for limit in limits)
    sides = {"small": f"side < {low} px", "medium": f"{low} to {high} px", "large": f"≥ {high} px"}
    sizes = [f"{name} ({side}) {_share(counts.get(name))}" for name, side in sides.items()]
    lines.append(f"inside objects: {hidden}{objects}")
    return [*lines, "masked share of their cells: " + " · ".join(sizes)]


def _share(count: tuple[int, int] | None) -> str:
    if count is None:
        return "no such objects here"
    part, whole = count
    return f"{_percent(part, whole)} of {whole}" if whole else "no cell has its centre in one"
