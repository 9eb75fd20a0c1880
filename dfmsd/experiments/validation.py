"""The words in which mistakes among the settings are named."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

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
