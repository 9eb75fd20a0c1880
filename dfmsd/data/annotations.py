"""COCO-format folders and files: splits, annotations, list of classes, content, detections."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dfmsd.data.fields import examine, one_of, shown
from dfmsd.data.pixels import DataError

LISTS = {"images": "image", "categories": "category", "annotations": "annotation"}
# categories by annotation file, so that nobody parses a large one again for them alone
_CATEGORIES: dict[tuple[str, int, int], list[Any]] = {}


def find_split(root: str | Path, split: str) -> tuple[Path, Path]:
    """Image folder and annotation file of "train" or "val", in the official or the plain layout.

    Raises:
        FileNotFoundError: no such folder, or neither layout in it; the message names both.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    tried = []
    for name in (f"{split}2017", split):
        images, annotations = root / name, root / "annotations" / f"instances_{name}.json"
        if images.is_dir() and annotations.is_file():
            return images, annotations
        tried.append(f"{name}/ with annotations/instances_{name}.json")
    raise FileNotFoundError(f"{root}: no {split} split; looked for {' and for '.join(tried)}")


def find_splits(root: str | Path) -> dict[str, tuple[Path, Path]]:
    """Each split that a folder has, "train" and "val", with its image folder and annotation file.

    Raises:
        FileNotFoundError: it has neither.
    """
    found = {}
    for split in ("train", "val"):
        with contextlib.suppress(FileNotFoundError):
            found[split] = find_split(root, split)
    return found or {"val": find_split(root, "val")}


def file_state(file: Path) -> tuple[str, int, int]:
    """Path, time of the last change, and size: what tells that a file is still the same."""
    state = file.stat()
    return str(file), state.st_mtime_ns, state.st_size


def read_json(path: str | Path, parse: Callable[[str], Any] = json.loads) -> Any:
    """The content of a JSON file; DataError when it is none (cut off, say, or nested too deep)."""
    collecting = gc.isenabled()
    gc.disable()  # it would look through the growing content again and again, for half of the time
    try:
        return parse(Path(path).read_text(encoding="utf-8-sig"))
    except OSError:
        raise
    except Exception as error:
        where = f", line {error.lineno}, column {error.colno}" if hasattr(error, "lineno") else ""
        reason = str(getattr(error, "msg", error))[:200]
        raise DataError(f"{path}{where}: not JSON ({reason})") from error
    finally:
        if collecting:
            gc.enable()


def read_annotations(
    path: str | Path, lists: Iterable[str] = LISTS, parse: Callable[[str], Any] = json.loads
) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        DataError: not JSON, or one of the `lists` is missing.
    """
    content = read_json(path, parse)
    for key in lists:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: no list {key!r}")
    _CATEGORIES[file_state(Path(path))] = content["categories"]
    return content


def _read_categories(file: Path) -> list[Any]:
    """The categories of an annotation file, which is parsed from where they begin."""
    if (state := file_state(file)) not in _CATEGORIES:
        read_annotations(file, ["categories"], _parse_end)
    return _CATEGORIES[state]


def _parse_end(text: str) -> Any:
    """The keys of a JSON object from "categories" on, where most files have them; else all."""
    try:
        return json.loads("{" + text[text.rindex('"categories"') :])
    except (ValueError, RecursionError):
        return json.loads(text)


def class_names(root: str | Path) -> tuple[dict[int, str], list[str]]:
    """Category id → name over all splits of a folder, by id, and how they contradict each other.

    Contradictions, a line each, are an id with two names and a name with two ids.
    """
    names: dict[int, tuple[str, str]] = {}
    ids: dict[str, tuple[int, str]] = {}
    wrong = []
    for split, (_, file) in find_splits(root).items():
        for entry, problem in examine(_read_categories(file), "category", {}):
            if problem:
                continue
            number, name = entry["id"], entry["name"]
            for known, key, value, verb in (
                (names, number, name, "is"),
                (ids, name, number, "has the id"),
            ):
                other, where = known.setdefault(key, (value, split))
                if other != value:
                    places = f"{shown(other)} in {where} and {shown(value)} in {split}"
                    wrong.append(f"category {shown(key)} {verb} {places}")
    return {number: names[number][0] for number in sorted(names)}, wrong


def content_hash(root: str | Path) -> str:
    """Twelve hexadecimal digits that tell the content of a COCO-format folder, wherever it lies.

    The bytes of the annotation files and the names and sizes of the image files of all its splits
    enter; hidden files do not, nor do the pixels. A folder is hashed once per process, and again
    when an annotation file or an image folder has changed.

    Raises:
        FileNotFoundError: the folder has no split.
    """
    splits = find_splits(root).items()
    return _hash(*((split, *map(file_state, paths)) for split, paths in splits))


@functools.lru_cache(maxsize=32)
def _hash(*states: tuple) -> str:
    digest = hashlib.sha256()
    for split, (images, *_), (file, *_) in states:
        with open(file, "rb") as handle:
            digest.update(split.encode() + hashlib.file_digest(handle, "sha256").digest())
        for folder, below, names in os.walk(images):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                path = os.path.join(folder, name)
                size = os.path.getsize(path) if os.path.isfile(path) else -1  # a link to nowhere
                digest.update(os.fsencode(f"{os.path.relpath(path, images)}\0{size}\n"))
    return digest.hexdigest()[:12]


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
    names = {i: c["name"] for i, c in zip(category_ids, truth["categories"], strict=True)}
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        for entry, wrong in examine(content.get("categories") or [], "category", {}):
            if not wrong and names.get(entry["id"], entry["name"]) != entry["name"]:
                known = f"{shown(entry['name'])}, in the annotations {shown(names[entry['id']])}"
                raise DataError(f"{path}: category {entry['id']} is {known}")
        content = [a | {"score": 1.0} if isinstance(a, dict) else a for a in content["annotations"]]
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of detections, got {type(content).__name__}")
    crowds = [isinstance(a, dict) and bool(a.get("iscrowd", 0)) for a in content]
    numbers = [number for number, crowd in enumerate(crowds) if not crowd]
    content = [content[number] for number in numbers]
    labels = {category: label for label, category in enumerate(category_ids, start=1)}
    unknown, negative = "is not in the annotations", "has a negative side, {}"
    rules = {
        "image_id": one_of("image_id", {image["id"] for image in truth["images"]}, unknown),
        "category_id": one_of("category_id", labels, unknown),
        "bbox": lambda d: negative.format(shown(d["bbox"])) if min(d["bbox"][2:]) < 0 else "",
    }
    checked = examine(content, "detection", rules)
    for number, (_, wrong) in zip(numbers, checked, strict=True):
        if wrong:
            raise DataError(f"{path}, entry {number}: {wrong}")
    kept = ("image_id", "bbox", "score")
    return [{k: d[k] for k in kept} | {"category_id": labels[d["category_id"]]} for d in content]
