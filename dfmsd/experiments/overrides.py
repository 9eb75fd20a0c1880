"""`key=value` texts → typed settings, and settings → the fingerprint of a run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dfmsd.experiments.settings import Settings, flat
from dfmsd.experiments.validation import check_name

NOT_HASHED = {"out", "records", "jobs", "arms", "seeds", "device", "data.cache", "data.workers"}
NOT_HASHED |= {"engine.save_minutes", "engine.tensorboard"}  # settings that change no result
FILES = ("_file", "weights", "root")  # how settings end that say where a file or folder is
PLACES = (*FILES, "out", "records")


def split_override(text: str) -> tuple[str, str]:
    """Key and value of a `key=value` text; ValueError for anything else."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: expected key=value")
    return key.strip(), value.strip()


def change(settings: Settings, changes: dict[str, str]) -> Settings:
    """Settings with the dotted keys of `changes` set to the parsed values."""
    valid = flat(settings)
    sections: dict[str, dict[str, Any]] = {}
    for key, text in changes.items():
        check_name("setting", key, list(valid))
        section, _, name = key.rpartition(".")
        owner = getattr(settings, section) if section else settings
        kind = _hints(type(owner))[name]
        sections.setdefault(section, {})[name] = _parse(kind, key, text)
    top = sections.pop("", {})
    top |= {name: replace(getattr(settings, name), **sections[name]) for name in sections}
    return replace(settings, **top)


def _parse(kind: Any, key: str, text: str) -> Any:
    """`text` as a value of the type `kind`; ValueError naming `key` for anything else."""
    choices = [str(choice) for choice in typing.get_args(kind)]
    if typing.get_origin(kind) is Literal:
        check_name("value", text, choices, key)
    if kind is str:
        return os.path.expanduser(text) if key.endswith(PLACES) else text
    if kind is bool:
        text = {"true": "True", "false": "False"}.get(text, text)
    parts = [p for p in text.split(",") if p] if typing.get_origin(kind) is tuple else [text]
    try:
        return _parse_parts(kind, tuple(parts))
    except SystemExit:
        raise ValueError(f"{key}={text}: expected {kind if choices else kind.__name__}") from None


_hints = functools.cache(typing.get_type_hints)


@functools.lru_cache(maxsize=1024)  # a table of experiments parses the same texts again and again
def _parse_parts(kind: Any, parts: tuple[str, ...]) -> Any:
    import tyro

    with contextlib.redirect_stderr(io.StringIO()):
        return tyro.cli(kind, args=parts, config=(tyro.conf.FlagConversionOff,))


def same_result(one: Settings, other: Settings) -> bool:
    """Whether nothing that changes a result differs; a file or folder may lie somewhere else."""
    first, second = flat(one), flat(other)
    return all(_same(key, first[key], second[key]) for key in first.keys() - NOT_HASHED)


def _same(key: str, *values: Any) -> bool:
    """Whether two values of a setting mean the same; of two files, the content counts."""
    if key.endswith("_file") and all(Path(value).is_file() for value in values):
        return _content(values[0]) == _content(values[1])
    return values[0] == values[1] or key.endswith(FILES)


def fingerprint(settings: Settings, *sections: str) -> str:
    """Twelve digits of the settings that can change a result: all, or those of some sections.

    Files count by their content. Data in COCO format add a dash and the twelve digits of
    `content_hash`, wherever their folder lies; if it is not there, nothing. Choice: a setting at
    its default is left out, so that finished runs are still known when a setting is added.
    """
    defaults = flat(Settings())
    kept = {
        key: value
        for key, value in flat(settings).items()
        if key not in NOT_HASHED and value != defaults[key]
        if not sections or key.split(".")[0] in sections
    }
    root = kept.pop("data.root", "") if settings.data.kind == "coco" else ""
    for key, value in kept.items():
        if value and key.endswith(("_file", "weights")) and Path(value).is_file():
            kept[key] = _content(value)
    digits = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
    with contextlib.suppress(FileNotFoundError):
        if root:
            from dfmsd.data.annotations import content_hash

            digits += f"-{content_hash(root)}"
    return digits


def _content(file: str) -> str:
    """The hash of a file's content, computed once while the file does not change."""
    return _content_at(file, Path(file).stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _content_at(file: str, _changed: int) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
