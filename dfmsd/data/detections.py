"""Detections in a file, COCO's results format: read, and every entry checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfmsd.data.annotations import read_json
from dfmsd.data.fields import field_problems, sentence, shown
from dfmsd.data.pixels import DataError


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
        if wrong := field_problems(entry, "detection") or _problems(entry, images, labels):
            raise DataError(f"{path}, entry {number}: {sentence(wrong)}")
    return [
        {"image_id": entry["image_id"], "category_id": labels[entry["category_id"]]}
        | {"bbox": entry["bbox"], "score": entry["score"]}
        for entry in content
    ]


def _problems(entry: dict[str, Any], images: set[int], labels: dict[int, int]) -> dict[str, str]:
    """An unknown image or category of a detection, or a negative side."""
    known = {"image_id": images, "category_id": labels}
    wrong = {
        key: f"{entry[key]} is not in the annotations"
        for key, values in known.items()
        if entry[key] not in values
    }
    if min(entry["bbox"][2:]) < 0:
        wrong["bbox"] = f"has a negative side, {shown(entry['bbox'])}"
    return wrong
