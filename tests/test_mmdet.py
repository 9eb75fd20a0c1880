"""Imported mmdetection weights reproduce mmdetection's features."""

from __future__ import annotations

import mmdet_reference as mm
import pytest
import torch

from dfmsd.checkpoints import load_mmdet

TINY = {"width": 8, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4), "window": 5}


def saved(path, state, config=None):
    """A checkpoint file as mmdetection writes it."""
    meta = {"mmdet_version": "2.25", "epoch": 12, "CLASSES": ("a", "b")}
    torch.save({"meta": meta | ({"config": config} if config else {}), "state_dict": state}, path)
    return path


def worst(found, expected):
    """Largest relative error of any level; the levels must agree in number and shape."""
    found = list(found.values())
    assert [level.shape for level in found] == [level.shape for level in expected]
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "size",
    [(160, 160), (97, 131), (64, 150), (33, 30)],
    ids=["even", "odd", "one side in a window", "all in a window"],
)
@torch.no_grad()
def test_swin_gives_the_levels_of_the_definitions(tmp_path, size):
    state = mm.random_state(mm.shapes("swin", channels=16, **TINY))
    teacher = load_mmdet(saved(tmp_path / "swin.pth", state))
    images = torch.randn(2, 3, *size)
    expected = mm.features(state, images, trunk="swin", **TINY)
    found = teacher(images)
    assert list(found) == [4, 8, 16, 32, 64]
    assert worst(found, expected) < 1e-5
