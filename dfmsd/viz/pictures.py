"""Pictures side by side, with boxes: scenes, detections, filtered images, scored regions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torchvision.ops import box_iou

from dfmsd.viz.boxes import (
    CROSS,
    Target,
    class_legend,
    corners,
    dash_boxes,
    draw_boxes,
    outline,
    tag,
)
from dfmsd.viz.checks import Limits, check_entries, check_lengths, to_array, value_range
from dfmsd.viz.panels import COLUMNS, SIGNED, STYLE, extent, panels, show_image

PRINTED_BOXES = 12


@plt.rc_context(STYLE)
def detections_figure(
    images: Sequence[Tensor],
    predictions: Sequence[Target],
    truths: Sequence[Target] | None = None,
    *,
    classes: Sequence[str],
    score: float = 0.4,
    title: str = "",
    names: Sequence[str] | None = None,
) -> Figure:
    """Figure with one panel per image: found boxes in class colours, true ones thin and dashed.

    The name of a found box is red with a cross, wrong, unless the true box that it overlaps most
    has its class and an IoU of 0.5 or more.

    Args:
        classes: K names, the first of label 1.
        score: found boxes below it are left out.
        names: of the panels, before their counts.
    """
    check_lengths(images=images, predictions=predictions, truths=truths, names=names)
    keys = ("boxes", "labels", "scores")
    sure = [{key: one[key][one["scores"] >= score] for key in keys} for one in predictions]
    heads = [f"{len(detections['boxes'])} found" for detections in sure]
    legend, wrong = f"found at score ≥ {score:g}", [None] * len(sure)
    if truths is not None:
        wrong = [_wrong(one, truth) for one, truth in zip(sure, truths, strict=True)]
        heads = [
            f"{head}, {bad.sum()} wrong · {len(truth['boxes'])} true"
            for head, bad, truth in zip(heads, wrong, truths, strict=True)
        ]
        legend += f"; {CROSS}on red: wrong class or place; dashed white: true boxes"
    heads = [":\n".join(pair) for pair in zip(names, heads, strict=True)] if names else heads
    figure, frames = panels(images, COLUMNS, title, heads=heads, below=0.6)
    for index, (axes, image, detections) in enumerate(zip(frames, images, sure, strict=True)):
        show_image(axes, image)
        dash_boxes(axes, truths[index]["boxes"] if truths is not None else None)
        draw_boxes(axes, detections, classes, wrong[index])
    class_legend(figure, classes, legend)
    return figure


def _wrong(found: Target, truth: Target) -> Tensor:
    """Which of the n boxes found hit no true box of their class, (n,) bool."""
    if not len(truth["boxes"]):
        return torch.ones(len(found["boxes"]), dtype=torch.bool)
    overlap, best = box_iou(found["boxes"], truth["boxes"]).max(1)
    return (overlap < 0.5) | (truth["labels"][best] != found["labels"])


@plt.rc_context(STYLE)
def scene_sheet(
    images: Sequence[Tensor], targets: Sequence[Target], classes: Sequence[str], *, title: str = ""
) -> Figure:
    """Figure with one panel per image and its true boxes in the colours of the K `classes`."""
    check_lengths(images=images, targets=targets)
    heads = []
    for index, target in enumerate(targets):
        many = len(target["boxes"])
        heads.append(f"{target.get('image_id', index)}: {many} object{'s' * (many != 1)}")
    figure, frames = panels(images, COLUMNS, title, heads=heads, below=0.4)
    for axes, image, target in zip(frames, images, targets, strict=True):
        show_image(axes, image)
        draw_boxes(axes, target, classes)
    class_legend(figure, classes)
    return figure


@plt.rc_context(STYLE)
def pictures_figure(
    images: Mapping[str, Tensor],
    *,
    boxes: Tensor | Mapping[str, Tensor] | None = None,
    columns: int = COLUMNS,
    title: str = "",
    signed: Collection[str] = (),
    bars: bool = True,
) -> Figure:
    """Figure of named pictures in a row: an image, its low and high frequencies, a map.

    An image in 0..1 is drawn as it is. Any other is scaled from its lowest to its highest value,
    all channels alike, and its title gives the two. A map (h, w) is drawn in viridis with a colour
    bar from its lowest to its highest value.

    Args:
        images: name → (3, H, W), (1, H, W) or (h, w), views of one scene: each is drawn as large as
            the widest.
        boxes: (n, 4) xyxy, pixels of the widest picture, drawn thin and dashed on every picture;
            or name → (n, 4), on the named ones alone.
        signed: names drawn as the mean over channels in a diverging map, white at 0.
        bars: whether maps have a colour bar; without them the pictures are larger.
    """
    check_entries("images", images)
    own = boxes if isinstance(boxes, Mapping) else dict.fromkeys(images, boxes)
    for argument, names in (("signed", signed), ("boxes", own)):
        if unknown := set(names) - set(images):
            raise ValueError(f"{argument}: got {sorted(unknown)}, expected names of {list(images)}")
    barred, heads, ranges = set(signed), [], []
    for name, image in images.items():
        if image.ndim == 2:
            barred.add(name)
        elif image.ndim != 3 or image.shape[0] not in (1, 3):
            shapes = "(3, H, W), (1, H, W) or (h, w)"
            raise ValueError(f"images[{name!r}]: got shape {tuple(image.shape)}, expected {shapes}")
        low, high = value_range([image], f"images[{name!r}]")
        as_given = name in barred or (low >= 0 and high <= 1)
        heads.append(name if as_given else f"{name} ({low:.2g} to {high:.2g})")
        ranges.append((low, high))
    room = 0.55 * min(columns, len(images)) * bool(barred and bars)
    figure, frames = panels(list(images.values()), columns, title, heads=heads, bars=room)
    widest = max(images.values(), key=lambda image: image.shape[-1])
    for axes, name, limits in zip(frames, images, ranges, strict=True):
        drawn = _show_picture(axes, images[name], limits, signed=name in signed)
        drawn.set_extent(extent(widest))
        if name in barred and bars:
            figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02, aspect=15)
        dash_boxes(axes, own.get(name))
    return figure


def _show_picture(axes: Axes, image: Tensor, limits: Limits, *, signed: bool) -> AxesImage:
    """Draw one picture of `pictures_figure`; `limits` are its lowest and highest value."""
    low, high = limits
    if signed:
        mean = image.float().mean(0) if image.ndim == 3 else image
        far = max(map(abs, value_range([mean])))
        return axes.imshow(to_array(mean), SIGNED, vmin=-far, vmax=far, interpolation="nearest")
    if image.ndim == 2:
        return axes.imshow(to_array(image), vmin=low, vmax=high, interpolation="nearest")
    if low < 0 or high > 1:
        image = (image.float() - low) / max(high - low, 1e-12)
    return show_image(axes, image)


@plt.rc_context(STYLE)
def regions_figure(
    images: Mapping[str, Tensor],
    boxes: Tensor,
    scores: Mapping[str, Tensor],
    *,
    title: str = "",
    columns: int = 3,
) -> Figure:
    """Figure of candidate boxes on named pictures, each box coloured by its score there.

    All panels share one colour scale. Up to twelve boxes also carry their score in figures.
    `images` are name → image, `scores` the same names → (n,), one for every box.
    """
    check_entries("images", images)
    if set(images) != set(scores):
        raise ValueError(f"scores: got names {list(scores)}, expected {list(images)} (images)")
    boxes = corners(boxes)
    for name, values in scores.items():
        if values.shape != (len(boxes),):
            shape = f"got shape {tuple(values.shape)}, expected ({len(boxes)},)"
            raise ValueError(f"scores[{name!r}]: {shape}")
    colours = ScalarMappable(Normalize(*value_range(list(scores.values()), "scores")), "viridis")
    figure, frames = panels(list(images.values()), columns, title, heads=list(images), bars=0.6)
    for axes, (name, image) in zip(frames, images.items(), strict=True):
        show_image(axes, image, f"images[{name!r}]")
        pairs = zip(boxes, scores[name].tolist(), strict=True)
        for box, score in sorted(pairs, key=lambda pair: pair[1]):  # the highest on top
            outline(axes, box, colours.to_rgba(score))
            if len(boxes) <= PRINTED_BOXES:
                tag(axes, box, f"{score:.2f}", colours.to_rgba(score))
    figure.colorbar(colours, ax=frames, shrink=0.85, pad=0.01, aspect=25, label="score")
    return figure
