"""Parts of figures: boxes on a picture, their tags, the colours of classes and their legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import Tensor

# Okabe and Ito's colours without black, which shadows on a picture hide.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
WRONG, CROSS = "#B00000", "\N{BALLOT X} "
Colour = str | tuple[float, ...]
Target = Mapping[str, Tensor]  # `boxes` (n, 4), `labels` (n,) in 1..K, perhaps `scores` (n,)


def draw_boxes(
    axes: Axes, target: Target, classes: Sequence[str], wrong: Tensor | None = None
) -> None:
    """Draw boxes in their classes' colours, with names if there are scores.

    A name stands at the corner of its box where it covers least of other names, then of other
    boxes. The name of a box that is `wrong`, (n,) bool, is red and has a cross.
    """
    boxes, labels = corners(target["boxes"]), target["labels"].tolist()
    for box, label in zip(boxes, labels, strict=True):
        if not 1 <= label <= len(classes):
            raise ValueError(f"labels: got {label}, expected 1..{len(classes)} (the classes)")
        outline(axes, box, class_colour(label))
    bad = [False] * len(boxes) if wrong is None else wrong.tolist()
    tags: list[Text] = []
    for index, score in enumerate(target["scores"].tolist() if "scores" in target else ()):
        text = f"{CROSS * bad[index]}{classes[labels[index] - 1]} {score:.2f}"
        name = tag(axes, boxes[index], text, WRONG if bad[index] else class_colour(labels[index]))
        _make_room(name, boxes[index], tags, [box for box in boxes if box != boxes[index]])
        tags.append(name)


def _make_room(
    name: Text, box: Sequence[float], tags: Sequence[Text], boxes: Sequence[Sequence[float]]
) -> None:
    """Move `name` to the corner of its `box` where it covers least of `tags`, then of `boxes`."""
    axes, (left, top, right, bottom) = name.axes, box
    names = [one.get_window_extent() for one in tags]
    others = [Bbox(axes.transData.transform([other[:2], other[2:]])) for other in boxes]
    places = [{"position": name.get_position(), "ha": name.get_ha(), "va": name.get_va()}]
    for (x, ha), (y, va) in product(
        ((left, "left"), (right, "right")), ((top, "bottom"), (bottom, "top"))
    ):
        places.append({"position": (x, y), "ha": ha, "va": va})

    def cost(place: Mapping[str, Any]) -> tuple[float, float]:
        name.set(**place)
        own = name.get_window_extent()
        cut = own.width * own.height - _shared(own, [axes.bbox])
        return cut + _shared(own, names), _shared(own, others)

    name.set(**min(places, key=cost))


def _shared(box: Bbox, others: Sequence[Bbox]) -> float:
    """Area that `box` shares with others, in pixels."""
    parts = [Bbox.intersection(box, other) for other in others]
    return sum(part.width * part.height for part in parts if part)


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
