"""Detections in a file, COCO's results format: read, and every entry checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfmsd.data.check import read_json
from dfmsd.data.fields import field_problem
from dfmsd.data.images import DataError


def read_detections(
    path: str | Path, truth: dict[str, Any], *, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections of a file, with category ids turned into labels 1..K.

    Args:
        path: COCO's results format, a JSON list; or an annotation file, whose boxes (crowds left
            out) then count as detections of score 1.
        truth: the COCO-format dict they are for.
        category_ids: the file's category id of each label, in order of the labels.

    Raises:
        DataError: not JSON, or an entry of an unknown image or category or with a bad box or
            score; the message names file, entry and value.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        entries = content["annotations"]
        plain = [a for a in entries if not (isinstance(a, dict) and a.get("iscrowd", 0))]
        content = [a | {"score": 1.0} if isinstance(a, dict) else a for a in plain]
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of detections, got {type(content).__name__}")
    images = {image["id"] for image in truth["images"]}
    labels = {category: label for label, category in enumerate(category_ids, start=1)}
    for number, entry in enumerate(content):
        problem = field_problem(entry, "detection") or _problem(entry, images, labels)
        if problem:
            raise DataError(f"{path}, entry {number}: {problem}")
    return [
        {"image_id": entry["image_id"], "category_id": labels[entry["category_id"]]}
        | {"bbox": entry["bbox"], "score": entry["score"]}
        for entry in content
    ]


def _problem(entry: dict[str, Any], images: set[int], labels: dict[int, int]) -> str | None:
    """An unknown image or category of a detection, or a negative side."""
    for key, known in (("image_id", images), ("category_id", labels)):
        if entry[key] not in known:
            return f"{key} {entry[key]!r} is not in the annotations"
    negative = min(entry["bbox"][2:]) < 0
    return f"bbox has a negative side, {entry['bbox']!r}" if negative else None
