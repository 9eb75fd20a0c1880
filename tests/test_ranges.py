"""Numbers and words that a constructor or function of the method takes, read off its signature."""

from __future__ import annotations

import dataclasses
import inspect
from math import inf, nan
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from dfmsd import enhance, masking
from dfmsd.align import Adapter, channel_divergence, pair_strides
from dfmsd.baselines import BASELINES, PseudoLabels
from dfmsd.baselines.mgd import bernoulli_keep
from dfmsd.generate import DualGenerator, Generator
from dfmsd.loss import DFMSDLoss

ONES = torch.ones(1, 2, 4, 4)
# What is called, and the arguments that it needs.
TAKERS = {
    **{name: (kind, ({8: 4}, {8: 4}), {}) for name, kind in BASELINES.items()},
    "dfmsd": (DFMSDLoss, ({8: 4}, {8: 4}), {}),
    "pseudo_labels": (PseudoLabels, (), {}),
    "adapter": (Adapter, (4, 4), {}),
    "generator": (Generator, (4,), {}),
    "dual generator": (DualGenerator, (4,), {}),
    "pairs": (pair_strides, ([8], [8]), {}),
    "divergence": (channel_divergence, (ONES, ONES), {"tau": 1.0}),
    "bernoulli": (bernoulli_keep, (ONES,), {"ratio": 0.5}),
    "keep": (masking.keep_mask, (ONES,), {"ratio": 0.5}),
    "cells": (masking.spatial_attention, (ONES,), {"temperature": 1.0}),
    "channels": (masking.channel_attention, (ONES,), {"temperature": 1.0}),
    "high pass": (enhance.high_pass, (ONES,), {"cutoff": 0.5}),
    "low pass": (enhance.low_pass, (ONES,), {"cutoff": 0.5}),
    "gain": (enhance.radial_gain, ((4, 4),), {"cutoff": 0.5}),
    "frequency": (enhance.high_frequency, (ONES,), {"cutoff": 0.5}),
    "energy": (enhance.frequency_energy, (ONES, (2, 2)), {"cutoff": 0.5}),
    "strengthen": (enhance.strengthen, (ONES[:, :1], ONES[:, :1]), {"strength": 1.0}),
}
# By the last word of an argument's name: values just outside its range, and its ends, if inside.
ENDS = {
    **dict.fromkeys(("ratio", "threshold", "overlap", "softness"), ((-1e-9, 1.001), (0, 1))),
    **dict.fromkeys(("share", "fusion"), ((-1e-9, 1.001, "mean", ""), (0, 1, "learned"))),
    **dict.fromkeys(("temperature", "tau"), ((0, -1.0), (1e-3, 1e3))),
    "width": ((0, -1), (1,)),
    "cutoff": ((0, 1.001, -0.5), (1e-3, 1)),
    **dict.fromkeys(("strength", "weight"), ((-1e-9,), (1e-9, 1e9))),
}


def arguments(wanted):
    """(taker, argument) of all whose type has a part that is `wanted`."""
    for taker, (called, required, _) in TAKERS.items():
        plain = inspect.isclass(called) and not dataclasses.is_dataclass(called)
        hints = get_type_hints(called.__init__ if plain else called)
        for name in list(inspect.signature(called).parameters)[len(required) :]:
            if any(wanted(part) for part in (hints[name], *get_args(hints[name]))):
                yield taker, name


def ends(name):
    """The entry of `ENDS`; the ratio's argument is `ratio_spatial`, say."""
    return next(ENDS[word] for word in (*reversed(name.split("_")), name) if word in ENDS)


def call(taker, **changes):
    called, required, settings = TAKERS[taker]
    return called(*required, **(settings | changes))


def is_number(part):
    return part in (int, float)


NUMBERS = [*arguments(is_number)]
NUMBERS.remove(("keep", "threshold"))  # of an attention, any finite number
WORDS = [*arguments(lambda part: get_origin(part) is Literal)]


def test_the_signatures_are_read():
    assert {("dfmsd", "strength"), ("fgd", "relation_weight"), ("keep", "ratio")} <= {*NUMBERS}
    assert {("mgd", "over"), ("dfmsd", "fusion"), ("keep", "select")} <= {*WORDS}
    assert len(NUMBERS) > 50
    assert len(WORDS) > 30


@pytest.mark.parametrize(("taker", "name"), NUMBERS)
def test_a_number_beyond_its_range_is_refused_by_its_name(taker, name):
    for value in (nan, inf, -inf, *ends(name)[0]):
        with pytest.raises(ValueError, match=rf"{name} must be .*, got {value!r}$"):
            call(taker, **{name: value})


@pytest.mark.parametrize(("taker", "name"), NUMBERS)
def test_the_ends_of_a_range_belong_to_it(taker, name):
    for value in ends(name)[1]:
        call(taker, **{name: value})


@pytest.mark.parametrize(("taker", "name"), WORDS)
def test_a_word_that_is_not_of_its_list_is_refused_with_the_list(taker, name):
    with pytest.raises(ValueError, match=rf"{name} must be '.* or .*, got 'no such'$"):
        call(taker, **{name: "no such"})


@pytest.mark.parametrize("value", [nan, inf])
def test_a_threshold_is_finite(value):
    with pytest.raises(ValueError, match="threshold must be finite, got"):
        masking.keep_mask(ONES, threshold=value)
