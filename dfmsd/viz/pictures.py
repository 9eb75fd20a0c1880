"""Pictures side by side, with boxes: scenes, detections, filtered images, scored regions.

`dfmsd.viz` is the way in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from dfmsd.viz.boxes import class_legend, corners, draw_boxes, outline, tag
from dfmsd.viz.panels import (
    SIGNED,
    STYLE,
    extent,
    filled,
    grid_of,
    panels,
    picture_ranges,
    same_length,
    show_image,
    show_picture,
    value_range,
)

PRINTED_BOXES = 12


@plt.rc_context(STYLE)
def detections_figure(
    images: Sequence[Tensor],
    predictions: Sequence[Mapping[str, Tensor]],
    truths: Sequence[Mapping[str, Tensor]] | None = None,
    *,
    classes: Sequence[str],
    score: float = 0.4,
    columns: int = 4,
    title: str | None = None,
) -> Figure:
    """Figure with one panel per image: found boxes in class colours, true ones thin and dashed.

    Args:
        images: N tensors (3, H, W) or (1, H, W) in 0..1.
        predictions: N dicts of `boxes` (n, 4) xyxy absolute pixels, `labels` (n,) in 1..K and
            `scores` (n,).
        truths: N dicts of `boxes` and `labels`, or None.
        classes: the K names; `classes[0]` belongs to label 1.
        score: boxes that score lower are left out.
        columns: panels in a row.
        title: a line above all panels.

    Raises:
        ValueError: if the lengths differ, an image has another shape, or a label is outside 1..K.
    """
    same_length(images=images, predictions=predictions, truths=truths)
    names = ("boxes", "labels", "scores")
    sure = [{name: one[name][one["scores"] >= score] for name in names} for one in predictions]
    heads = [f"{len(found['boxes'])} found" for found in sure]
    if truths is not None:
        known = [f" · {len(truth['boxes'])} true" for truth in truths]
        heads = [head + more for head, more in zip(heads, known, strict=True)]
    figure, frames = panels(images, columns, title, heads=heads, below=0.6)
    for index, (axes, image, found) in enumerate(zip(frames, images, sure, strict=True)):
        show_image(axes, image)
        if truths is not None:
            draw_boxes(axes, truths[index], classes, dashed=True)
        draw_boxes(axes, found, classes)
    dashed = "; dashed white: true boxes" if truths is not None else ""
    class_legend(figure, classes, f"found at score ≥ {score:g}{dashed}")
    return figure


@plt.rc_context(STYLE)
def scene_sheet(
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
    *,
    columns: int = 4,
    title: str | None = None,
) -> Figure:
    """Figure with one panel per image and its true boxes in their classes' colours.

    Args:
        images: N tensors (3, H, W) or (1, H, W) in 0..1.
        targets: N dicts of `boxes` (n, 4) xyxy absolute pixels and `labels` (n,) in 1..K.
        classes: the K names; `classes[0]` belongs to label 1.
        columns: panels in a row.
        title: a line above all panels.

    Raises:
        ValueError: if the lengths differ, an image has another shape, or a label is outside 1..K.
    """
    same_length(images=images, targets=targets)
    heads = []
    for index, target in enumerate(targets):
        many = len(target["boxes"])
        heads.append(f"{target.get('image_id', index)}: {many} object{'s' * (many != 1)}")
    figure, frames = panels(images, columns, title, heads=heads, below=0.4)
    for axes, image, target in zip(frames, images, targets, strict=True):
        show_image(axes, image)
        draw_boxes(axes, target, classes)
    class_legend(figure, classes)
    return figure


@plt.rc_context(STYLE)
def pictures_figure(
    images: Mapping[str, Tensor],
    *,
    boxes: Tensor | None = None,
    columns: int = 4,
    title: str | None = None,
    signed: Collection[str] = (),
) -> Figure:
    """Figure of named pictures in a row: an image, its low and high frequencies, a map.

    An image in 0..1 is drawn as it is. Any other is scaled from its lowest to its highest value,
    all channels alike, and its title gives the two. A map (h, w) is drawn in viridis with a colour
    bar from its lowest to its highest value.

    Args:
        images: name → (3, H, W), (1, H, W) or (h, w).
        boxes: (n, 4) xyxy, pixels of the widest picture, drawn thin and dashed on every picture.
        columns: panels in a row.
        title: a line above all panels.
        signed: names drawn as the mean over channels in a diverging map: white is 0, orange below,
            purple above.

    Raises:
        ValueError: if `images` is empty, a name of `signed` is not in it, a shape is another, or a
            value is NaN or infinite.
    """
    ends = picture_ranges(images)
    if unknown := set(signed) - set(images):
        raise ValueError(f"signed: got {sorted(unknown)}, expected names of {list(images)}")
    barred = {name for name, image in images.items() if name in signed or image.ndim == 2}
    heads = [
        name if name in barred or (low >= 0 and high <= 1) else f"{name} ({low:.2g} to {high:.2g})"
        for name, (low, high) in ends.items()
    ]
    edges = extent(max(images.values(), key=lambda image: image.shape[-1]))
    bars = 0.55 * min(columns, len(images)) * bool(barred)
    figure, frames = panels(list(images.values()), columns, title, heads=heads, bars=bars)
    for axes, (name, image) in zip(frames, images.items(), strict=True):
        if name in signed:
            shown = _show_signed(axes, image, edges)
        else:
            shown = show_picture(axes, image, ends[name], edges=edges)
        if name in barred:
            figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02, aspect=15)
        if boxes is not None:
            draw_boxes(axes, {"boxes": boxes}, (), dashed=True)
    return figure


def _show_signed(axes: Axes, image: Tensor, edges: tuple[float, float, float, float]) -> AxesImage:
    mean = image.float().mean(0) if image.ndim == 3 else image
    far = max(map(abs, value_range([mean])))
    place = {"extent": edges, "interpolation": "nearest", "vmin": -far, "vmax": far}
    return axes.imshow(grid_of(mean, "map"), cmap=SIGNED, **place)


@plt.rc_context(STYLE)
def regions_figure(
    images: Mapping[str, Tensor],
    boxes: Tensor,
    scores: Mapping[str, Tensor],
    *,
    title: str | None = None,
    columns: int = 3,
) -> Figure:
    """Figure of candidate boxes on named pictures, each box coloured by its score there.

    All panels share one colour scale. Up to twelve boxes also carry their score in figures.

    Args:
        images: name → (3, H, W) or (1, H, W) in 0..1.
        boxes: (n, 4) xyxy absolute pixels, the same on every picture.
        scores: the same names → (n,), finite.
        title: a line above all panels.
        columns: panels in a row.

    Raises:
        ValueError: if `images` is empty, the names differ, or a shape or a score is wrong.
    """
    filled("images", images)
    if set(images) != set(scores):
        raise ValueError(f"scores: got names {list(scores)}, expected {list(images)} (images)")
    found = corners(boxes)
    for name, values in scores.items():
        if values.shape != (len(found),):
            got = tuple(values.shape)
            raise ValueError(f"scores[{name!r}]: got shape {got}, expected ({len(found)},)")
    colours = ScalarMappable(Normalize(*value_range(list(scores.values()), "scores")), "viridis")
    shown, heads = list(images.values()), list(images)
    figure, frames = panels(shown, columns, title, heads=heads, bars=0.6)
    for axes, (name, image) in zip(frames, images.items(), strict=True):
        show_image(axes, image, name=f"images[{name!r}]")
        pairs = zip(found, scores[name].tolist(), strict=True)
        for box, score in sorted(pairs, key=lambda pair: pair[1]):  # the highest on top
            outline(axes, box, colours.to_rgba(score))
            if len(found) <= PRINTED_BOXES:
                tag(axes, box, f"{score:.2f}", colours.to_rgba(score))
    figure.colorbar(colours, ax=frames, shrink=0.85, pad=0.01, aspect=25, label="score")
    return figure
