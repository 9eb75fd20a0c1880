"""What a value may be, declared as a rule: an argument, a setting, an entry of a foreign file.

A rule is a `Range` of numbers, a `range` of integers, `bool`, `str` (a short text), `[rule, most]`
for a list, a dict for a table with some of its keys, a tuple of alternatives, or the value itself.
The type of an argument says its rule as `Literal`, as `Annotated[kind, rule]`, or as a union or
tuple of those; a field of any other type takes everything.
"""

from __future__ import annotations

import functools
import reprlib
from dataclasses import dataclass, fields, is_dataclass
from math import inf
from numbers import Real
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_LONGEST_TEXT, _LONGEST_TUPLE = 200, 1000


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low`, if it is not left out, to `high`; NaN lies in no range."""

    low: float
    high: float = inf
    open: bool = False  # `low` is left out

    def __contains__(self, value: object) -> bool:
        """Whether a number lies in the range; nothing else does, True and False neither."""
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        above = self.low < value if self.open else self.low <= value
        return above and value <= self.high and value < inf

    def __str__(self) -> str:
        """The range in words."""
        low = f"a number {'above' if self.open else 'from'} {self.low:g}"
        return f"{low}, finite" if self.high == inf else f"{low} to {self.high:g}"


Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Cutoff = Annotated[float, Range(0, 1, open=True)]
Count = Annotated[int, Range(1)]


def check(name: str, value: object, fits: bool, expected: str) -> None:
    """ValueError that names argument, value and expectation, unless the value `fits`."""
    if not fits:
        raise ValueError(f"{name} must be {expected}, got {reprlib.repr(value)}")


def check_value(name: str, value: Any, rule: Any) -> None:
    """ValueError that says name, value and what is expected, unless the value obeys the rule."""
    rule = _rule(rule)
    if isinstance(rule, dict) and isinstance(value, dict):
        for key, item in value.items():
            check(f"{name} keys", key, key in rule, f"among {', '.join(rule)}")
            check_value(f"{name}.{key}", item, rule[key])
    elif not _obeys(value, rule):
        check(name, value, False, _words(rule))


def check_fields(owner: Any, prefix: str = "") -> None:
    """ValueError unless every field of a dataclass, and of those in it, is what its type says."""
    for name, rule in _rules(type(owner)).items():
        value = getattr(owner, name)
        if is_dataclass(value):
            check_fields(value, f"{prefix}{name}.")
        else:
            check_value(prefix + name, value, rule)


def positive_weights(**weights: float) -> dict[str, float]:
    """The weights above 0, by the name of the term; ValueError when all are 0."""
    kept = {name: float(value) for name, value in weights.items() if value > 0}
    check("weights", weights, bool(kept), "above 0 for a term that has a branch")
    return kept


@functools.cache
def _rules(owner: type) -> dict[str, Any]:
    """Field of a dataclass → its rule, where it has one; a plain type takes everything."""
    kinds = get_type_hints(owner, include_extras=True)
    ruled = {field.name: kinds[field.name] for field in fields(owner)}
    return {n: _rule(k) for n, k in ruled.items() if get_origin(k) or is_dataclass(k)}


def _rule(kind: Any) -> Any:
    """The rule that the type of an argument stands for; a rule is itself."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return kind.__metadata__[0]
    if origin in (Union, UnionType):
        return tuple(map(_rule, parts))
    if origin is tuple:
        return [_rule(parts[0]), _LONGEST_TUPLE]
    return parts if origin is Literal else kind if origin is None else object


def _obeys(value: Any, rule: Any) -> bool:
    match rule:
        case range():
            return type(value) is int and value in rule
        case Range():
            return value in rule
        case type():
            return isinstance(value, rule) and (rule is not str or len(value) <= _LONGEST_TEXT)
        case [inner, most] if isinstance(rule, list):
            fits = isinstance(value, list | tuple) and len(value) <= most
            return fits and all(_obeys(item, inner) for item in value)
        case tuple():
            return any(_obeys(value, inner) for inner in rule)
    return type(value) is type(rule) and value == rule


def _words(rule: Any) -> str:
    match rule:
        case range():
            step = "an integer" if rule.step == 1 else f"a multiple of {rule.step}"
            return f"{step} from {rule[0]} to {rule[-1]}"
        case Range():
            return str(rule)
        case type():
            return {bool: "true or false"}.get(rule, f"a text of up to {_LONGEST_TEXT} characters")
        case [inner, most] if isinstance(rule, list):
            return f"at most {most} values, each {_words(inner)}"
        case tuple():
            return " or ".join(map(_words, rule))
        case dict():
            return f"a table with some of {', '.join(rule)}"
    return repr(rule)
