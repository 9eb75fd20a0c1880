"""What a mask hides, counted: of the picture, of its objects, of objects by size."""

from __future__ import annotations

import torch
from torch import Tensor

from dfmsd.widgets.lab import Scene


def cells_inside(scene: Scene, size: tuple[int, int]) -> Tensor:
    """(n, h, w) bool: True where the centre of a cell lies in a box, on a level of `size` cells."""
    inside = []
    for axis, start in ((0, 1), (1, 0)):
        pixels, cells = scene.context.images.shape[2 + axis], size[axis]
        centre = (torch.arange(cells) + 0.5) * pixels / cells
        low, high = scene.context.candidates[0][:, start::2].unbind(1)
        inside.append((low[:, None] <= centre) & (centre < high[:, None]))  # (n, cells)
    return inside[0][:, :, None] & inside[1][:, None, :]


def shares(scene: Scene, keep: Tensor, limits: tuple[float, float]) -> dict[str, tuple[int, int]]:
    """Name → (part, whole), in cells, of a mask (h, w).

    `masked`: hidden cells of all; `objects`: cells inside boxes of all; `masked in objects`: cells
    inside boxes of the hidden ones; `small`, `medium`, `large`: hidden ones of the cells inside
    boxes of that size, missing when the picture has no such box.

    Args:
        scene: the picture and its boxes.
        keep: from `maps`.
        limits: boxes below the first side are small, below the second medium; square root of the
            area, pixels of the picture.
    """
    valid = scene.context.valid(keep[None, None])[0, 0]
    hidden, inside = (keep == 0) & valid, cells_inside(scene, tuple(keep.shape)) & valid
    covered = inside.any(0)
    counted = {
        "masked": (hidden, valid),
        "objects": (covered, valid),
        "masked in objects": (covered & hidden, hidden),
    }
    side = (scene.boxes[:, 2:] - scene.boxes[:, :2]).clamp_min(0).prod(1).sqrt()
    kinds = {
        "small": side < limits[0],
        "medium": (side >= limits[0]) & (side < limits[1]),
        "large": side >= limits[1],
    }
    for name, chosen in kinds.items():
        if chosen.any():
            area = inside[chosen].any(0)
            counted[name] = (hidden & area, area)
    return {name: (int(part.sum()), int(whole.sum())) for name, (part, whole) in counted.items()}


def report(scene: Scene, keep: Tensor, limits: tuple[float, float]) -> list[str]:
    """The numbers of `shares` as lines of text; arguments as there."""
    found = shares(scene, keep, limits)
    (masked, cells), (covered, _) = found["masked"], found["objects"]
    lines = [f"masked cells: {masked} of {cells} ({masked / cells:.0%})"]
    if not len(scene.boxes):
        return [*lines, "no true boxes are known here, and the detector finds none"]
    whose = "the detector's own, no true ones are known" if scene.found else "true ones"
    boxes = f"{len(scene.boxes)} boxes ({whose})"
    if masked:
        within = f"{found['masked in objects'][0] / masked:.0%} of the masked cells"
        lines.append(f"inside objects: {within}, {covered / cells:.0%} of all cells · {boxes}")
    else:
        lines.append(f"inside objects: {covered / cells:.0%} of all cells · {boxes}")
    small, medium = limits
    sides = {
        "small": f"side < {small:g} px",
        "medium": f"{small:g} to {medium:g} px",
        "large": f"≥ {medium:g} px",
    }
    words = [f"{name} ({side}) {_share(found.get(name))}" for name, side in sides.items()]
    return [*lines, "masked share of their cells: " + " · ".join(words)]


def _share(counted: tuple[int, int] | None) -> str:
    if counted is None:
        return "no such objects here"
    part, whole = counted
    return f"{part / whole:.0%} of {whole}" if whole else "no cell has its centre in one"
