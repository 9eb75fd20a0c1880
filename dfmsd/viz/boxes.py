"""Parts of figures: boxes on a picture, their tags, the colours of classes and their legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from torch import Tensor

# Okabe and Ito's colours without black, which shadows on a picture hide.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
Colour = str | tuple[float, ...]
Target = Mapping[str, Tensor]  # `boxes` (n, 4), `labels` (n,) in 1..K, perhaps `scores` (n,)


def draw_boxes(axes: Axes, target: Target, classes: Sequence[str]) -> None:
    """Draw boxes in their classes' colours, with names if there are scores.

    A name stands above its box, or below it if it would cover another one there.
    """
    boxes, labels = corners(target["boxes"]), target["labels"].tolist()
    scores = target["scores"].tolist() if "scores" in target else [None] * len(boxes)
    tags: list[Text] = []
    for box, label, score in zip(boxes, labels, scores, strict=True):
        if not 1 <= label <= len(classes):
            raise ValueError(f"labels: got {label}, expected 1..{len(classes)} (the classes)")
        outline(axes, box, class_colour(label))
        if score is not None:
            name = tag(axes, box, f"{classes[label - 1]} {score:.2f}", class_colour(label))
            if any(name.get_window_extent().overlaps(t.get_window_extent()) for t in tags):
                name.set(y=box[3], va="top")
            tags.append(name)


def dash_boxes(axes: Axes, boxes: Tensor | None) -> None:
    """Draw boxes (n, 4), if any, thin, dashed and white."""
    for box in [] if boxes is None else corners(boxes):
        outline(axes, box, "white", dashed=True)


def corners(boxes: Tensor) -> list[list[float]]:
    """Boxes (n, 4) as n lists of left, top, right, bottom; n may be 0; ValueError otherwise."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: got shape {tuple(boxes.shape)}, expected (n, 4)")
    return boxes.detach().cpu().tolist()


def outline(axes: Axes, box: Sequence[float], colour: Colour, *, dashed: bool = False) -> None:
    """Draw the edge of a box: left, top, right, bottom."""
    left, top, right, bottom = box
    frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour)
    frame.set(linestyle=(0, (3, 2)) if dashed else "-", linewidth=1.0 if dashed else 1.6)
    # A dark rim keeps every colour visible on every background.
    frame.set_path_effects([withStroke(linewidth=2.2 if dashed else 3.0, foreground="#202020")])
    axes.add_patch(frame)


def tag(axes: Axes, box: Sequence[float], text: str, colour: Colour) -> Text:
    """Write `text` above a box, inside it at the image's upper edge; leftwards at its right."""
    left, top, right, _ = box
    width, height = max(axes.get_xlim()), max(axes.get_ylim())
    above, rightwards = top > 0.09 * height, left < 0.55 * width
    return axes.text(
        max(left, 0) if rightwards else min(right, width),
        top if above else max(top, 0),
        text,
        fontsize=7,
        color=ink(colour),
        ha="left" if rightwards else "right",
        va="bottom" if above else "top",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
        clip_on=True,
    )


def ink(colour: Colour) -> str:
    """White or black, whichever has the higher contrast to `colour`.

    Source: WCAG 2: contrast is (L + 0.05) / (L' + 0.05) with the relative luminance L; black and
    white are even at L = 0.179.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "black" if luminance > 0.179 else "white"


def class_colour(label: int) -> str:
    """Colour of class `label` (1..K), as #rrggbb; more than seven classes share colours."""
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def class_legend(figure: Figure, classes: Sequence[str], title: str | None = None) -> None:
    """Write a line of words and the classes' names and colours below all panels."""
    handles = [Patch(color=class_colour(k), label=name) for k, name in enumerate(classes, start=1)]
    columns = min(len(classes), 6)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)
