"""The entries of annotation and detection files: what is wrong with their fields."""

from __future__ import annotations

import os
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Entry = dict[str, Any]
Rule = Callable[[Entry], str]  # what is wrong with an entry, "" for nothing

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_HOPELESS = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # in no file name, and not printable


def shown(value: Any) -> str:
    """A value from a file as a message shows it: escaped, and cut where it is long or deep."""
    return _short.repr(value)


def _is_integer(value: Any) -> bool:
    """Whether `value` is an integer that a tensor can hold, and not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    """Whether `value` is a finite number of the size of pixels (an area: 1e9² of them)."""
    return type(value) in (int, float) and -1e18 < value < 1e18


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000 and not _HOPELESS.search(value)


_INTEGER = (_is_integer, "a 64-bit integer")
_TEXT = (_is_text, "a text of at most 1,000 letters")
_SIDE = (lambda value: _is_number(value) and 0 < value <= 1e6, "a number above 0, to 1e6")
_AREA = (lambda value: _is_number(value) and value >= 0, "a number from 0 up")
_REGION = {"image_id": _INTEGER, "category_id": _INTEGER, "bbox": (_is_box, "four finite numbers")}
_CROWD = (lambda value: value in (0, 1), "0 or 1")
_FIELDS = {
    "image": {"id": _INTEGER, "file_name": _TEXT, "width": _SIDE, "height": _SIDE},
    "category": {"id": _INTEGER, "name": _TEXT},
    "annotation": {"id": _INTEGER} | _REGION | {"area": _AREA, "iscrowd": _CROWD},
    "detection": _REGION | {"score": (_is_number, "a finite number")},
}
_OPTIONAL = {"area", "iscrowd"}


def examine(entries: list[Any], kind: str, rules: dict[str, Rule]) -> Iterator[tuple[Any, str]]:
    """Each entry with all that is wrong with it on one line, "" for nothing.

    `rules`, by field, judge the entries in which that field is of the right type.
    """
    for entry in entries:
        if not isinstance(entry, dict):
            yield entry, f"expected an object, got {shown(entry)}"
            continue
        wrong = {}
        for name, (is_right, words) in _FIELDS[kind].items():
            if name in entry:
                if not is_right(value := entry[name]):
                    wrong[name] = f"must be {words}, got {shown(value)}"
            elif name not in _OPTIONAL:
                wrong[name] = "missing"
        for name, rule in rules.items():
            if name not in wrong and (words := rule(entry)):
                wrong[name] = words
        yield entry, "; ".join(f"{name} {words}" for name, words in wrong.items())


def once(key: str) -> Rule:
    """The rule that no two entries have the same value of a field."""
    seen = Counter()

    def rule(entry: Entry) -> str:
        seen[entry[key]] += 1
        return "appears twice" if seen[entry[key]] > 1 else ""

    return rule


def one_of(key: str, values: Container[Any], words: str) -> Rule:
    """The rule that a field has one of the values; `words` say what another one is."""
    return lambda entry: "" if entry[key] in values else f"{entry[key]} {words}"


_SPELLINGS: dict[str, Callable[[str], str]] = {
    "backslashes": lambda name: name.replace("\\", "/"),
    "percent signs": unquote,
    "Unicode form (NFC, NFD)": partial(unicodedata.normalize, "NFC"),
    "case": str.casefold,
}


def _spelt(name: str, without: str = "") -> str:
    """A name as all are spelt that differ in nothing but the `_SPELLINGS`, save one of these."""
    for kind, change in _SPELLINGS.items():
        name = name if kind == without else change(name)
    return name


def names_file_in(images: Path) -> Rule:
    """The rule that `file_name` means a file in the folder `images`.

    It may lead out neither itself nor by a symbolic link.
    """
    with os.scandir(images) as listing:
        plain = {entry.name for entry in listing if entry.is_file(follow_symlinks=False)}
    inside = os.path.realpath(images) + os.sep

    @cache
    def spellings() -> dict[str, str]:
        files = (Path(folder, name) for folder, _, names in os.walk(images) for name in names)
        return {_spelt(path): path for path in (str(f.relative_to(images)) for f in files)}

    def rule(entry: Entry) -> str:
        if (name := entry["file_name"]) in plain:
            return ""
        path = os.path.realpath(images / name)
        if not path.startswith(inside):
            return f"{shown(name)} leads out of {images}"
        if os.path.isfile(path):
            return ""
        if (other := spellings().get(_spelt(name))) is None:
            return f"{shown(name)} is not in {images}"
        kinds = [kind for kind in _SPELLINGS if _spelt(name, kind) != _spelt(other, kind)]
        return f"{shown(name)} is not in {images}, but {shown(other)}: {', '.join(kinds)} differ"

    return rule
