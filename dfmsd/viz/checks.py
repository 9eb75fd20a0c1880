"""Checks of what is to be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

Limits = tuple[float | None, float | None]  # of a colour scale; None: of what is drawn


def check_entries(name: str, values: Mapping) -> None:
    """Nothing; raises ValueError naming the argument when it holds no entry."""
    if not values:
        raise ValueError(f"{name}: got no entry, expected at least one")


def check_lengths(**lists: Sequence | None) -> None:
    """Nothing; raises ValueError unless all lists that are not None have one length above 0."""
    sizes = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(f"{', '.join(sizes)}: got lengths {sizes}, expected equal ones above 0")


def value_range(maps: Sequence[Tensor], name: str = "map") -> tuple[float, float]:
    """Lowest and highest value of all maps; ValueError when one is empty, NaN or infinite."""
    if any(values.numel() == 0 for values in maps):
        raise ValueError(f"{name}: got a tensor without values, expected at least one")
    ends = [float(end) for values in maps for end in values.detach().cpu().double().aminmax()]
    if bad := [end for end in ends if not math.isfinite(end)]:
        raise ValueError(f"{name}: got values such as {bad[0]}, expected finite ones")
    return min(ends), max(ends)


def to_array(values: Tensor, name: str = "map", shape: str = "(h, w)") -> np.ndarray:
    """Finite float array of shape "(h, w)" or "(n,)"; ValueError naming it otherwise."""
    if values.ndim != (1 if shape == "(n,)" else 2):
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected {shape}")
    value_range([values], name)
    return values.detach().cpu().double().numpy()


def visible(keep: Tensor, name: str = "keep", shape: str = "(h, w)") -> np.ndarray:
    """Bool array of a keep mask, 1 = visible; see `to_array`, and ValueError for other values."""
    values = to_array(keep, name, shape)
    if not np.isin(values, (0, 1)).all():
        ends = f"from {values.min():g} to {values.max():g}"
        raise ValueError(f"{name}: got values {ends}, expected only 0 and 1")
    return values == 1
