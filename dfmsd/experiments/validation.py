"""The range of every number among the settings, and the words in which mistakes are named."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Annotated, Any, get_args, get_type_hints


class SettingsError(ValueError):
    """A setting that does not exist, or a value it cannot take; names the nearest valid one."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, or those above `low` up to `high`."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, number: float) -> bool:
        """Whether a number is in the range; NaN is in none."""
        return self.low <= number <= self.high and not (self.above and number == self.low)

    def __str__(self) -> str:
        """The range in words."""
        words = "above {:g}, at most {:g}" if self.above else "{:g} to {:g}"
        return words.format(self.low, self.high)


Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
Weight = Annotated[float, Range(0, 1e6)]
Side = Annotated[float, Range(0, 1e5, above=True)]
Stride = Annotated[int, Range(1, 256)]
Count = Annotated[int, Range(1, 10**9)]
CountOrNone = Annotated[int, Range(0, 10**9)]  # where 0 has a meaning of its own


def as_text(value: Any) -> str:
    """A setting's value as in `key=value`."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@functools.cache
def ranges(section: type) -> dict[str, Range]:
    """Field → range of its numbers, for the fields of a section that hold numbers."""

    def of(kind: Any) -> Range | None:
        parts = (part if isinstance(part, Range) else of(part) for part in get_args(kind))
        return next((part for part in parts if part is not None), None)

    found = {name: of(kind) for name, kind in get_type_hints(section, include_extras=True).items()}
    return {name: part for name, part in found.items() if part is not None}


def check_ranges(section: Any, prefix: str = "") -> None:
    """Raise SettingsError for the first number of a section, or of one in it, out of its range."""
    for name, value in vars(section).items():
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{name}.")
        parts = value if isinstance(value, tuple) else (value,)
        for number in (part for part in parts if type(part) in (int, float)):
            if number not in (expected := ranges(type(section))[name]):
                raise SettingsError(f"{prefix}{name}={as_text(value)}: expected {expected}")


_OTHER_NAMES = {
    "learningrate": "lr",
    "batch": "batch_size",
    "iterations": "steps",
    "epochs": "steps",
    "backbone": "trunk",
    "gradclip": "clip",
    "wd": "weight_decay",
    "imagesize": "size",
    "numworkers": "workers",
    "seed": "seeds",
    "amp": "precision",
    "output": "out",
}
"""What else the field calls a setting, without underscores → the last word of its name here."""


def nearest(word: str, valid: Sequence[str]) -> str:
    """`; did you mean X?` or `; one of A, B, C`, to end an error message with.

    Of dotted names the last word counts, then the section.
    """
    section, _, last = word.rpartition(".")
    last = _OTHER_NAMES.get(last.replace("_", "").lower(), last)

    def likeness(name: str) -> tuple[float, float]:
        of, _, end = name.rpartition(".")
        return SequenceMatcher(a=last, b=end).ratio(), SequenceMatcher(a=section, b=of).ratio()

    best = max(valid, key=likeness)
    if likeness(best)[0] >= 0.6:
        return f"; did you mean {best!r}?"
    beside = [name for name in valid if name.rpartition(".")[0] == section]
    return f"; one of {', '.join(beside or valid)}"
