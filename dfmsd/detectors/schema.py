"""What values out of files and settings may be: declared as rules, checked by one function.

A rule is a `range` (integers), a `Real` (finite numbers), a type (`bool`, or `str`: short text),
`[rule]` or `[rule, most]` (lists), a dict (tables with some of its keys), a tuple (alternatives),
or the value itself.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

_LONGEST_TEXT, _LONGEST_LIST = 200, 16


@dataclass(frozen=True)
class Real:
    """The numbers from `low` to `high`, both finite."""

    low: float
    high: float


def check(value: Any, rule: Any, name: str) -> None:
    """Raise ValueError with name, value and what is expected, unless `value` obeys `rule`."""
    if isinstance(rule, dict) and isinstance(value, dict):
        for key, item in value.items():
            if key not in rule:
                known = ", ".join(rule)
                raise ValueError(f"{name}: unknown {reprlib.repr(key)}; expected some of {known}")
            check(item, rule[key], f"{name}.{key}")
    elif not _obeys(value, rule):
        raise ValueError(f"{name}={reprlib.repr(value)}: expected {_words(rule)}")


def _obeys(value: Any, rule: Any) -> bool:
    match rule:
        case range():
            return type(value) is int and value in rule
        case Real():
            return type(value) in (int, float) and rule.low <= value <= rule.high
        case type():
            return isinstance(value, rule) and (rule is not str or len(value) <= _LONGEST_TEXT)
        case [inner, *most] if isinstance(rule, list):
            length = (most or [_LONGEST_LIST])[0]
            fits = isinstance(value, list | tuple) and len(value) <= length
            return fits and all(_obeys(item, inner) for item in value)
        case tuple():
            return any(_obeys(value, inner) for inner in rule)
    return type(value) is type(rule) and value == rule


def _words(rule: Any) -> str:
    match rule:
        case range():
            step = "an integer" if rule.step == 1 else f"a multiple of {rule.step}"
            return f"{step} from {rule[0]} to {rule[-1]}"
        case Real():
            return f"a number from {rule.low:g} to {rule.high:g}"
        case type():
            return (
                "true or false" if rule is bool else f"text of at most {_LONGEST_TEXT} characters"
            )
        case [inner, *most] if isinstance(rule, list):
            return f"at most {(most or [_LONGEST_LIST])[0]} of: {_words(inner)}"
        case tuple():
            return " or ".join(map(_words, rule))
        case dict():
            return f"a table with some of {', '.join(rule)}"
    return repr(rule)
