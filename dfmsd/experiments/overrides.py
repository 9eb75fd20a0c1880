"""`key=value` texts → typed settings."""

from __future__ import annotations

import contextlib
import io
import typing
from dataclasses import replace
from typing import Any, Literal

from dfmsd.experiments.settings import Settings, SettingsError, flat, nearest


def split_override(text: str) -> tuple[str, str]:
    """Key and value of a `key=value` text; SettingsError for anything else."""
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"{text!r}: expected key=value")
    return key.strip(), value.strip()


def change(settings: Settings, changes: dict[str, str]) -> Settings:
    """Settings with the dotted keys of `changes` set to the parsed values."""
    valid = flat(settings)
    nested: dict[str, Any] = {}
    for key, text in changes.items():
        if key not in valid:
            raise SettingsError(f"{key}: no such setting{nearest(key, list(valid))}")
        section, _, name = key.rpartition(".")
        value = _parse(getattr(settings, section) if section else settings, name, key, text)
        (nested.setdefault(section, {}) if section else nested)[name] = value
    for section, values in nested.items():
        if isinstance(values, dict):
            nested[section] = replace(getattr(settings, section), **values)
    return replace(settings, **nested)


def _parse(owner: Any, name: str, key: str, text: str) -> Any:
    """`text` as the type that field `name` of `owner` declares."""
    import tyro

    kind = typing.get_type_hints(type(owner))[name]
    choices = [str(choice) for choice in typing.get_args(kind)]
    if typing.get_origin(kind) is Literal and text not in choices:
        raise SettingsError(f"{key}={text}: no such value{nearest(text, choices)}")
    if kind is str:
        return text
    if kind is bool:
        text = {"true": "True", "false": "False"}.get(text, text)
    parts = [p for p in text.split(",") if p] if typing.get_origin(kind) is tuple else [text]
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            # `--value X` rather than `X`, so that negative numbers are not taken for options
            return tyro.cli(kind, args=parts, config=(tyro.conf.FlagConversionOff,))
        except SystemExit:
            expected = getattr(kind, "__name__", "") if not choices else str(kind)
            raise SettingsError(f"{key}={text}: expected {expected or kind}") from None
