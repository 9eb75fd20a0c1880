"""What makes two runs the same run: a fingerprint of every setting that can change a result."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from dfmsd.experiments.settings import Settings, flat

PLACES = {"out", "records", "jobs", "arms", "seeds", "device", "data.cache", "data.workers"}
PLACES |= {"engine.save_minutes", "engine.tensorboard"}
"""Settings that change no result."""
YOUNGER = {
    "method.name": "dfmsd",
    "method.factor": 1.0,
    "method.strides": (),
    "data.short": 0,
    "inherit": "no",
    "inherit_from": "strong",
    **{f"{name}.frozen_stride": 0 for name in ("student", "weak", "strong")},
    "train.batch_of_lr": 0,
    "teach.batch_of_lr": 0,
    "train.trunk": 1.0,
    "teach.trunk": 1.0,
    "engine.accumulate": 1,
    "engine.channels_last": False,
    "engine.compile": False,
    "engine.sync_norm": False,
}
"""Settings younger than the first records, with the value that does what was done before them."""


@functools.lru_cache(maxsize=16)
def _content(file: str, _changed: int) -> str:
    """The hash of a file's content, computed once as long as the file does not change."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def without_younger(flat_settings: dict[str, Any]) -> dict[str, Any]:
    """The settings but for the younger ones that do what was done before them."""
    return {k: v for k, v in flat_settings.items() if k not in YOUNGER or v != YOUNGER[k]}


def fingerprint(settings: Settings) -> str:
    """Twelve digits of every setting that can change a result; files count by their content."""
    kept = {k: v for k, v in flat(settings).items() if k not in PLACES}
    kept = without_younger(kept)
    kept["data.root"] = Path(settings.data.root).name
    for key, value in kept.items():
        if value and key.endswith(("_file", "weights")) and Path(value).is_file():
            kept[key] = _content(value, Path(value).stat().st_mtime_ns)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
