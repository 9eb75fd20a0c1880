"""What a setting may be, said once in its type: a `Literal` of words, or a `Range` of numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True, repr=False)
class Range:
    """The finite numbers from `low`, if it is not left out, to `high`; NaN lies in no range."""

    low: float
    high: float = inf
    open: bool = False  # `low` is left out

    def __contains__(self, value: float | str) -> bool:
        """Whether a number lies in the range; a word does not."""
        inside = not isinstance(value, str) and self.low <= value <= self.high and value < inf
        return inside and not (self.open and value == self.low)

    def __repr__(self) -> str:
        """The range in words."""
        if self.high == inf:
            return f"{'more than' if self.open else 'at least'} {self.low:g} and finite"
        return (
            f"in ({self.low:g}, {self.high:g}]" if self.open else f"in {self.low:g}..{self.high:g}"
        )


Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Cutoff = Annotated[float, Range(0, 1, open=True)]
Count = Annotated[int, Range(1)]


def check(name: str, value: object, fits: bool, expected: str) -> None:
    """ValueError that names argument, value and expectation, unless the value `fits`."""
    if not fits:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_value(name: str, value: Any, kind: Any) -> None:
    """ValueError unless a value is among the words or in a range of its type; others will do."""
    options = _options(kind)
    inside = any(value in option for option in options if isinstance(option, Range))
    if options and not inside and value not in options:
        check(name, value, False, " or ".join(map(repr, options)))


def check_fields(owner: Any) -> None:
    """ValueError unless every field of a dataclass is what its type says, see `check_value`."""
    kinds = get_type_hints(type(owner), include_extras=True)
    for field in fields(owner):
        check_value(field.name, getattr(owner, field.name), kinds[field.name])


def positive_weights(**weights: float) -> dict[str, float]:
    """The weights above 0, by the name of the term; ValueError when all are 0."""
    kept = {name: float(value) for name, value in weights.items() if value > 0}
    check("weights", weights, bool(kept), "above 0 for a term that has a branch")
    return kept


def _options(kind: Any) -> list[str | Range]:
    """The words and ranges of a type, or of the parts of a union; empty: everything will do."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) is Annotated:
        return [kind.__metadata__[0]]
    return [option for part in get_args(kind) for option in _options(part)]
