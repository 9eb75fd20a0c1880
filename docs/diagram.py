"""Draws `docs/images/data_flow.png`: where the data of one training step go.

Run it with `python docs/diagram.py`; the README, notebook 00 and the site show the picture.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

IMAGES = Path(__file__).parent / "images"
INK = "#222222"
TEACHER, STUDENT, MASK, IMAGE, LOSS = "#cfe2f3", "#d9ead3", "#fde5b5", "#eeeeee", "#f4cccc"
# name: (x, y) of its centre, width, height, colour, text
BOXES = {
    "images": (1.1, 4.0, 1.7, 1.3, IMAGE, "images\nand true\nboxes"),
    "teacher": (4.0, 8.1, 2.4, 1.3, TEACHER, "teacher\nbackbone + FPN\n(frozen)"),
    "feature": (7.3, 8.1, 2.2, 1.3, TEACHER, "feature $F_t$\nof one level,\nstandardised $Z_t$"),
    "energy": (4.0, 6.6, 2.4, 1.0, MASK, "high-frequency\nenergy $E$"),
    "spatial": (7.3, 5.3, 1.9, 1.0, MASK, "spatial\nattention $S$"),
    "strengthen": (9.6, 5.95, 1.7, 1.0, MASK, "enhanced\n$S'$"),
    "cells": (11.9, 5.95, 1.7, 1.0, MASK, "hide cells\n$M_s$"),
    "channel": (7.3, 3.9, 1.9, 1.0, MASK, "channel\nattention $A$"),
    "channels": (9.75, 3.9, 2.0, 1.0, MASK, "hide channels\n$M_c$"),
    "student": (4.0, 2.0, 2.4, 1.3, STUDENT, "student\nbackbone + FPN\n(trained)"),
    "adapter": (7.3, 2.0, 1.9, 1.0, STUDENT, "adapter $a$,\nthen $Z_s$"),
    "rebuild_c": (13.9, 2.6, 1.9, 0.9, STUDENT, "generator $G_c$"),
    "rebuild_s": (13.9, 1.4, 1.9, 0.9, STUDENT, "generator $G_s$"),
    "heads": (7.3, -1.1, 1.9, 0.9, STUDENT, "own heads"),
    "reconstruction": (18.3, 2.0, 2.2, 1.0, LOSS, "reconstruction\nloss"),
    "alignment": (18.3, 0.3, 2.2, 1.0, LOSS, "alignment\nloss"),
    "task": (18.3, -1.1, 2.2, 0.9, LOSS, "task loss"),
}
# points of a path; its last one has the arrow's head
ARROWS = (
    [(1.1, 4.65), (1.1, 8.1), (2.8, 8.1)],
    [(1.1, 6.6), (2.8, 6.6)],
    [(1.1, 3.35), (1.1, 2.0), (2.8, 2.0)],
    [(5.2, 8.1), (6.2, 8.1)],
    [(8.4, 8.1), (18.3, 8.1), (18.3, 2.5)],
    [(18.3, 4.6), (20.0, 4.6), (20.0, 0.3), (19.4, 0.3)],
    [(5.2, 6.6), (9.6, 6.6), (9.6, 6.45)],
    [(7.0, 7.45), (7.0, 5.8)],
    [(7.0, 7.1), (5.9, 7.1), (5.9, 3.9), (6.35, 3.9)],
    [(8.25, 5.3), (8.5, 5.3), (8.5, 5.95), (8.75, 5.95)],
    [(10.45, 5.95), (11.05, 5.95)],
    [(8.25, 3.9), (8.75, 3.9)],
    [(5.2, 2.0), (6.35, 2.0)],
    [(8.25, 2.0), (8.7, 2.0), (8.7, 2.6), (12.95, 2.6)],
    [(8.7, 2.0), (8.7, 1.4), (12.95, 1.4)],
    [(9.75, 3.4), (9.75, 2.8)],
    [(11.9, 5.45), (11.9, 1.6)],
    [(14.85, 2.6), (15.9, 2.6), (15.9, 2.2)],
    [(14.85, 1.4), (15.9, 1.4), (15.9, 1.8)],
    [(16.1, 2.0), (17.2, 2.0)],
    [(7.3, 1.5), (7.3, 0.3), (17.2, 0.3)],
    [(4.0, 1.35), (4.0, -1.1), (6.35, -1.1)],
    [(8.25, -1.1), (17.2, -1.1)],
)
PRODUCTS = {(9.75, 2.6): "×", (11.9, 1.4): "×", (15.9, 2.0): "+"}
NOTES = {
    (4.0, 9.25): "stage 1: the weaker teacher, stage 2: the stronger",
    (16.55, 2.3): "$R$",
    (13.4, 8.1): "$Z_t$: what the student rebuilds and lines up with",
    (15.9, 3.1): "mixed by $w$",
    (3.1, 4.0): "the same pixels\nfor both",
    (10.4, -2.1): "loss = task + 1 · reconstruction + 10 · alignment,"
    " the last two as means over the levels",
}


def draw_box(
    axes: Axes, x: float, y: float, width: float, height: float, colour: str, text: str
) -> None:
    """A rounded box around its centre, with its text."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.15"
    box = FancyBboxPatch(corner, width, height, boxstyle=style, fc=colour, ec=INK, lw=1)
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", fontsize=10, color=INK, linespacing=1.15)


def draw_path(axes: Axes, points: list[tuple[float, float]]) -> None:
    """A path of straight pieces that ends in an arrow; a white border shows where paths cross."""
    border = [patheffects.withStroke(linewidth=4.5, foreground="white")]
    if len(points) > 2:
        x, y = zip(*points[:-1], strict=True)
        axes.plot(x, y, color=INK, lw=1.2, path_effects=border, solid_capstyle="butt", zorder=0.5)
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=arrow | {"mutation_scale": 12})


def draw() -> plt.Figure:
    """The whole diagram."""
    figure, axes = plt.subplots(figsize=(12.6, 7.2), layout="constrained")
    for box in BOXES.values():
        draw_box(axes, *box)
    for points in ARROWS:
        draw_path(axes, points)
    for (x, y), sign in PRODUCTS.items():
        circle = {"boxstyle": "circle,pad=0.12", "fc": "white", "ec": INK}
        axes.text(x, y, sign, ha="center", va="center", fontsize=11, bbox=circle, zorder=5)
    for (x, y), text in NOTES.items():
        blank = {"fc": "white", "ec": "none", "pad": 1}
        axes.text(x, y, text, ha="center", va="center", fontsize=9.5, color="#555555", bbox=blank)
    axes.set(xlim=(0, 20.4), ylim=(-2.5, 9.6), aspect="equal")
    axes.axis("off")
    return figure


if __name__ == "__main__":
    plt.switch_backend("agg")
    IMAGES.mkdir(exist_ok=True)
    draw().savefig(IMAGES / "data_flow.png", dpi=110, metadata={"Software": None})
