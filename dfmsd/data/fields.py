"""The fields of annotations and detections, and what is wrong with those of an entry."""

from __future__ import annotations

import re
import reprlib
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_HOPELESS = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # in no file name, and not printable


def shown(value: Any) -> str:
    """A value from a file as a message shows it: escaped, and cut where it is long or deep."""
    return _short.repr(value)


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer that a tensor can hold, and not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number of the size of pixels (an area: 1e9² of them)."""
    return type(value) in (int, float) and -1e18 < value < 1e18


def is_box(value: Any) -> bool:
    """Whether `value` is a list of four numbers."""
    return type(value) is list and len(value) == 4 and all(map(is_number, value))


def is_text(value: Any) -> bool:
    """Whether `value` is a text that can name a file and be printed, of at most 1,000 letters."""
    return isinstance(value, str) and len(value) <= 1000 and not _HOPELESS.search(value)


_INTEGER = (is_integer, "a 64-bit integer")
_TEXT = (is_text, "a text of at most 1,000 letters")
_SIDE = (lambda value: is_number(value) and 0 < value <= 1e6, "a number above 0, to 1e6")
_AREA = (lambda value: is_number(value) and value >= 0, "a number from 0 up")
_REGION = {"image_id": _INTEGER, "category_id": _INTEGER, "bbox": (is_box, "four finite numbers")}
_CROWD = (lambda value: value in (0, 1), "0 or 1")
_FIELDS = {
    "image": {"id": _INTEGER, "file_name": _TEXT, "width": _SIDE, "height": _SIDE},
    "category": {"id": _INTEGER, "name": _TEXT},
    "annotation": {"id": _INTEGER} | _REGION | {"area": _AREA, "iscrowd": _CROWD},
    "detection": _REGION | {"score": (is_number, "a finite number")},
}
_OPTIONAL = {"area", "iscrowd"}


def field_problems(entry: Any, kind: str) -> dict[str, str]:
    """Field → what is wrong with it, for all fields that a `kind` should have."""
    if not isinstance(entry, dict):
        return {"": f"expected an object, got {shown(entry)}"}
    wrong = {}
    for name, (is_right, words) in _FIELDS[kind].items():
        if name in entry:
            if not is_right(value := entry[name]):
                wrong[name] = f"must be {words}, got {shown(value)}"
        elif name not in _OPTIONAL:
            wrong[name] = "missing"
    return wrong


def sentence(wrong: dict[str, str]) -> str:
    """What is wrong with an entry, field by field, on one line."""
    return "; ".join(f"{name} {words}".strip() for name, words in wrong.items())
