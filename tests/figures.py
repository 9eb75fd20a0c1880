"""What the tests of figures share: random pictures, what was drawn, whether it can be read."""

from __future__ import annotations

import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from PIL import Image


def images(count, height=48, width=64):
    generator = torch.Generator().manual_seed(count)
    return [torch.rand(3, height, width, generator=generator) for _ in range(count)]


def frames(axes, *, dashed):
    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height())
        for patch in axes.patches
        if isinstance(patch, Rectangle) and (patch.get_linestyle() != "-") == dashed
    ]


def texts(figure):
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    inside = [text for axes in figure.axes for text in [axes.title, *axes.texts]]
    return [text for text in [*inside, *legends] if text.get_text()]


def assert_readable(figure):
    """At most 9.5 inches wide at 100 dpi, closed for pyplot, every text within the page."""
    assert figure.get_size_inches()[0] <= 9.5
    assert figure.dpi == 100
    assert not plt.get_fignums()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = np.asarray(Image.open(buffer).convert("L"))
    width, height = figure.get_size_inches() * 100
    assert abs(picture.shape[1] - width) <= 1
    assert picture.std() > 5
    for text in texts(figure):
        box = text.get_window_extent()
        assert box.x0 >= -1, text.get_text()
        assert box.x1 <= width + 1, text.get_text()
        assert box.y0 >= -1, text.get_text()
        assert box.y1 <= height + 1, text.get_text()
