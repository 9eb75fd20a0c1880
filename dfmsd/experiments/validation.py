"""A wrong name among the settings is answered with the nearest right one."""

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


def check_name(kind: str, word: str, valid: Sequence[str], setting: str = "") -> None:
    """ValueError unless a word is one of the `valid`: names the nearest, or those of its section.

    Of dotted names the last word counts, then the section. `setting` stands before the word.
    """
    if word in valid:
        return
    section, _, last = word.rpartition(".")
    last = _OTHER_NAMES.get(last.replace("_", "").lower(), last)

    def likeness(name: str) -> tuple[float, float]:
        of, _, end = name.rpartition(".")
        return SequenceMatcher(a=last, b=end).ratio(), SequenceMatcher(a=section, b=of).ratio()

    best = max(valid, key=likeness)
    beside = [name for name in valid if name.rpartition(".")[0] == section]
    hint = f"did you mean {best!r}?" if likeness(best)[0] >= 0.6 else ""
    hint = hint or f"one of {', '.join(beside or valid)}"
    raise ValueError(f"{setting and setting + '='}{word}: no such {kind}; {hint}")
