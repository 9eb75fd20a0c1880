"""File names of an annotation file, and the files that they mean."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from urllib.parse import unquote

from dfmsd.data.fields import shown

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


def name_rule(images: Path) -> Callable[[str], str | None]:
    """What is wrong with the name of an image in the folder `images`, as a function of the name.

    It must mean a file there, and may lead out neither itself nor by a symbolic link.
    """
    with os.scandir(images) as listing:
        plain = {entry.name for entry in listing if entry.is_file(follow_symlinks=False)}
    inside = os.path.realpath(images) + os.sep

    @lru_cache(maxsize=1)
    def spellings() -> dict[str, str]:
        files = (Path(folder, name) for folder, _, names in os.walk(images) for name in names)
        return {_spelt(path): path for path in (str(f.relative_to(images)) for f in files)}

    def problem(name: str) -> str | None:
        path = os.path.realpath(images / name)
        if not path.startswith(inside):
            return f"{shown(name)} leads out of {images}"
        if os.path.isfile(path):
            return None
        if (other := spellings().get(_spelt(name))) is None:
            return f"{shown(name)} is not in {images}"
        kinds = [kind for kind in _SPELLINGS if _spelt(name, kind) != _spelt(other, kind)]
        return f"{shown(name)} is not in {images}, but {shown(other)}: {', '.join(kinds)} differ"

    return lambda name: None if name in plain else problem(name)
