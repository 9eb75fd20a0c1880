"""Generated scenes with boxes: textured shapes on noise, small enough to train on two CPU cores."""

from __future__ import annotations

import functools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfmsd.data.images import to_float

TEXTURES, SHAPES = ("striped", "checked"), ("disc", "square", "triangle")
CLASSES = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)


@functools.lru_cache(maxsize=32)
def _upsample(size: int, cells: int) -> np.ndarray:
    """Bilinear weights (size, cells + 1) from grid nodes to pixels."""
    position = (np.arange(size) + 0.5) / size * cells
    distance = np.abs(position[:, None] - np.arange(cells + 1)[None])
    return np.clip(1 - distance, 0, None).astype(np.float32)


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Float32 (3, size, size) around 0.2..0.8: value noise in three octaves, 0-2 Gabor patches."""
    canvas = np.full((3, size, size), rng.uniform(0.3, 0.7, (3, 1, 1)), np.float32)
    for cells, strength in ((3, 0.16), (6, 0.09), (12, 0.05)):
        weights = _upsample(size, cells)
        nodes = rng.uniform(-1, 1, (4, cells + 1, cells + 1)).astype(np.float32)
        # a shared grey part keeps the background natural, the rest tints it
        canvas += strength * weights @ (0.7 * nodes[:1] + 0.5 * nodes[1:]) @ weights.T
    for _ in range(rng.integers(0, 3)):
        canvas += _gabor(size, rng)
    return canvas


def _gabor(size: int, rng: np.random.Generator) -> np.ndarray:
    """Float32 (3, size, size): one windowed grating without an edge, clutter like a texture."""
    x0, y0 = rng.uniform(0, size, 2)
    angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    sigma, period = size * rng.uniform(0.05, 0.12), size * rng.uniform(0.04, 0.12)
    pixels = np.arange(size, dtype=np.float32)
    x, y = pixels[None] - x0, pixels[:, None] - y0
    window = np.exp(-(y**2) / (2 * sigma**2)) * np.exp(-(x**2) / (2 * sigma**2))
    along = math.cos(angle) * x + math.sin(angle) * y
    wave = window * np.cos(2 * math.pi / period * along + phase)
    return (rng.uniform(0.1, 0.25, (3, 1, 1)) * wave).astype(np.float32)


def _edge(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the outline of a shape of radius about 1, positive inside."""
    if shape == "disc":
        return 1 - np.hypot(u, v)
    if shape == "square":
        return 0.85 - np.maximum(np.abs(u), np.abs(v))
    slanted = 0.5 * v + math.sqrt(0.75) * np.abs(u)
    return 0.6 - np.maximum(slanted, -v)


def _wave(texture: str, u: np.ndarray, v: np.ndarray, rate: float, phase: np.ndarray) -> np.ndarray:
    """Texture in -1..1 with softened edges; `rate` is radians per unit of u."""
    wave = np.sin(rate * u + phase[0])
    if texture == "checked":
        wave = wave * np.sin(rate * v + phase[1]) * 2
    return np.clip(2 * wave, -1, 1)


def draw_object(
    label: int, extent: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """Colours (3, k, k), alpha (k, k) in 0..1 and tight box (xyxy, window pixels) of one object.

    `label` is 1..6, in the order of `CLASSES`; `extent` is the diameter in pixels, before the
    aspect (0.75-1) squeezes one axis.
    """
    texture, shape = CLASSES[label - 1].split()
    radius, angle, aspect = extent / 2, rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1)
    half = math.ceil(1.25 * radius) + 1
    grid = np.arange(-half, half + 1, dtype=np.float32)
    x, y = grid[None] - rng.uniform(-0.5, 0.5), grid[:, None] - rng.uniform(-0.5, 0.5)
    u = (math.cos(angle) * x + math.sin(angle) * y) / radius
    v = (math.cos(angle) * y - math.sin(angle) * x) / (radius * aspect)
    alpha = np.clip(_edge(shape, u, v) * radius + 0.5, 0, 1)
    rows, columns = np.flatnonzero((alpha >= 0.5).any(1)), np.flatnonzero((alpha >= 0.5).any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    period = max(3.0, extent / rng.uniform(3, 6))
    # v is squeezed by the aspect: undo it, so that a check stays square
    phase = rng.uniform(0, 2 * math.pi, 2)
    wave = _wave(texture, u, v * aspect, 2 * math.pi * radius / period, phase)
    middle, tint = rng.uniform(0.35, 0.65, (3, 1, 1)), rng.uniform(0.5, 1, (3, 1, 1))
    colours = middle + 0.5 * rng.uniform(0.5, 1) * tint * wave
    return colours.astype(np.float32), alpha.astype(np.float32), tuple(int(c) for c in box)


def _free_corner(
    width: int, height: int, size: int, boxes: list[list[int]], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Top left corner (x, y) at which the box overlaps no other by over 25 % of the smaller."""
    xs, ys = (rng.integers(0, size - side + 1, 24) for side in (width, height))
    x1, y1, x2, y2 = np.array(boxes, int).reshape(-1, 4).T[:, :, None]
    wide = np.clip(np.minimum(xs + width, x2) - np.maximum(xs, x1), 0, None)
    high = np.clip(np.minimum(ys + height, y2) - np.maximum(ys, y1), 0, None)
    smaller = np.minimum(width * height, (x2 - x1) * (y2 - y1))
    fits = np.flatnonzero((wide * high <= 0.25 * smaller).all(0))
    return (int(xs[fits[0]]), int(ys[fits[0]])) if len(fits) else None


def render(
    size: int, rng: np.random.Generator, *, max_objects: int = 5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene: image uint8 (3, size, size), boxes float32 (n, 4) xyxy pixels, labels int64 (n,).

    Objects are 8-44 px (log-uniform) at 96 px and grow with the image. They are drawn large to
    small, so a small one is never hidden; n is 1..max_objects.
    Choice: neither trivial nor impossible for tiny detectors.
    """
    canvas = background(size, rng)
    count = int(rng.integers(1, max_objects + 1))
    extents = np.sort(np.exp(rng.uniform(math.log(8), math.log(44), count)))[::-1] * size / 96
    boxes, labels = [], []
    for extent in extents:
        label = int(rng.integers(1, len(CLASSES) + 1))
        colours, alpha, (left, top, right, bottom) = draw_object(label, float(extent), rng)
        width, height = right - left, bottom - top
        if (corner := _free_corner(width, height, size, boxes, rng)) is None:
            continue
        x, y = corner
        region = canvas[:, y : y + height, x : x + width]
        region += alpha[top:bottom, left:right] * (colours[:, top:bottom, left:right] - region)
        boxes.append([x, y, x + width, y + height])
        labels.append(label)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope = rng.uniform(-0.3, 0.3, 2).astype(np.float32)
    tilt = 1 + slope[0] * ramp[None] + slope[1] * ramp[:, None]
    light = np.float32(rng.uniform(0.65, 1.15)) * tilt
    noise = rng.standard_normal((3, size, size), np.float32) * np.float32(rng.uniform(1, 6))
    image = np.clip(255 * canvas * light + noise, 0, 255).astype(np.uint8)
    return image, np.array(boxes, np.float32), np.array(labels, np.int64)


class SceneDataset(torch.utils.data.Dataset):
    """Scenes rendered once into memory; item i is `(image float32 (3, H, W) in 0..1, target)`.

    The target holds `boxes` (n, 4) xyxy absolute pixels, `labels` (n,) 1..6 and `image_id` = i.
    Scene i of a seed is the same whatever `count` is. `classes` are six names, `sizes` (H, W).

    Args:
        count: number of scenes, from 0.
        size: height and width in pixels, from 32.
        seed: of the scenes, from 0.

    Raises:
        ValueError: an argument is too small.
    """

    def __init__(self, count: int, *, size: int = 96, seed: int = 0) -> None:
        for name, value, least in (("count", count, 0), ("size", size, 32), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.classes = list(CLASSES)
        self.sizes = [(size, size)] * count
        self.images = torch.empty(count, 3, size, size, dtype=torch.uint8)
        self._objects: list[list[Tensor]] = []
        for index in range(count):
            rng = np.random.Generator(np.random.PCG64([seed, index]))
            self.images[index], *objects = map(torch.from_numpy, render(size, rng))
            self._objects.append(objects)

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.images)

    def read(self, index: int) -> tuple[Tensor, dict]:
        """Scene `index` as rendered: uint8 (3, H, W), not to be written to, and target."""
        boxes, labels = self._objects[index]
        target = {"boxes": boxes.clone(), "labels": labels.clone(), "image_id": index % len(self)}
        return self.images[index], target

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        """`(image, target)` of scene `index`."""
        pixels, target = self.read(index)
        return to_float(pixels), target

    def truth(self) -> dict:
        """All boxes as a COCO-format dict; category ids are labels, annotation ids start at 1."""
        images, annotations = [], []
        for index, (height, width) in enumerate(self.sizes):
            name = f"{index:06d}.png"
            images.append({"id": index, "file_name": name, "height": height, "width": width})
            boxes, labels = (values.tolist() for values in self._objects[index])
            for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                entry = {"id": len(annotations) + 1, "image_id": index, "category_id": label}
                annotations.append(entry | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, 1)]
        return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: str | Path, *, train: int, val: int, size: int = 96, seed: int = 0) -> None:
    """Write scenes as a COCO-format folder: train/, val/ and annotations/instances_*.json.

    Train scenes come from `seed`, val scenes from `seed + 1_000_000`. The folder appears whole or
    not at all: it is written to a temporary one near `root` and then moved.

    Raises:
        FileExistsError: `root` exists and is not an empty folder.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        wrong = "exists and is not an empty folder; choose another or remove it"
        raise FileExistsError(f"{root} {wrong}")
    # in the nearest folder there is: a failure shall not leave the new parents behind either
    near = next(parent for parent in root.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=near) as temporary:
        build = Path(temporary, "scenes")
        for split, count, offset in (("train", train, 0), ("val", val, 1_000_000)):
            scenes = SceneDataset(count, size=size, seed=seed + offset)
            file = build / "annotations" / f"instances_{split}.json"
            for folder in (file.parent, build / split):
                folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(truth := scenes.truth()))
            for entry, image in zip(
                truth["images"], scenes.images.permute(0, 2, 3, 1), strict=True
            ):
                picture = Image.fromarray(image.contiguous().numpy())
                picture.save(build / split / entry["file_name"])
        root.parent.mkdir(parents=True, exist_ok=True)
        build.replace(root)
