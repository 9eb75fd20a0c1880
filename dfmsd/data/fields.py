"""The fields of annotations and detections, and what is wrong with those of an entry."""

from __future__ import annotations

from typing import Any


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer that a tensor can hold, and not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number of the size of pixels (an area: 1e9² of them)."""
    return type(value) in (int, float) and -1e18 < value < 1e18


def is_box(value: Any) -> bool:
    """Whether `value` is a list of four numbers."""
    return type(value) is list and len(value) == 4 and all(map(is_number, value))


_INTEGER = (is_integer, "an integer")
_TEXT = (lambda value: isinstance(value, str), "a text")
_SIDE = (lambda value: is_number(value) and value > 0, "a number above 0")
_AREA = (lambda value: is_number(value) and value >= 0, "a number from 0 up")
_REGION = {"image_id": _INTEGER, "category_id": _INTEGER, "bbox": (is_box, "four finite numbers")}
_CROWD = (lambda value: value in (0, 1), "0 or 1")
_FIELDS = {
    "image": {"id": _INTEGER, "file_name": _TEXT, "width": _SIDE, "height": _SIDE},
    "category": {"id": _INTEGER, "name": _TEXT},
    "annotation": {"id": _INTEGER} | _REGION | {"area": _AREA, "iscrowd": _CROWD},
    "detection": _REGION | {"score": (is_number, "a finite number")},
}
_REQUIRED = {k: [n for n in f if n not in ("area", "iscrowd")] for k, f in _FIELDS.items()}


def field_problem(entry: Any, kind: str) -> str | None:
    """No object, a missing field, or a value of another kind than a `kind` should have."""
    fields = _FIELDS[kind]
    if not isinstance(entry, dict):
        return f"expected an object, got {entry!r}"
    missing = [name for name in _REQUIRED[kind] if name not in entry]
    if missing:
        return f"{', '.join(missing)} missing"
    for name, (is_right, words) in fields.items():
        if name in entry and not is_right(entry[name]):
            return f"{name} must be {words}, got {entry[name]!r}"
    return None
