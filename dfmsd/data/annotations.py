"""COCO-format folders: splits, annotations, detections, classes, and what is wrong in them."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dfmsd.data.fields import (
    Entry,
    Rule,
    examine,
    field_problems,
    is_integer,
    names_file_in,
    once,
    shown,
)
from dfmsd.data.pixels import DataError

LISTS = {"images": "image", "categories": "category", "annotations": "annotation"}
_OVERHANG = 1.0  # pixels; official COCO boxes stick out by fractions of one

# The two boxes without height in the official train2017 (and train2014), by annotation id; see
# github.com/cocodataset/cocoapi issue 355. Everybody drops them, nobody can mend the file.
_OFFICIAL_FLAT = ((918, [296.65, 388.33, 1.03, 0.0]), (2206849, [9.98, 188.56, 5.54, 0.0]))

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
        for entry in _read_categories(file):
            if field_problems(entry, "category"):
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


def validate(
    content: dict[str, Any], images: Path, split: str
) -> tuple[list[str], dict[str, list[Entry]]]:
    """What makes a split unusable, a line per entry with all its faults, and the sound entries.

    No image is opened.

    Args:
        content: of the annotation file, its three lists by name, as are the sound entries.
        images: the folder of the image files.
        split: "train" or "val"; the former must have boxes to learn from.
    """
    # an image that is wrong itself is no reason to complain about its boxes too
    sizes = {
        image["id"]: None if wrong else (image["width"], image["height"])
        for image in reversed(content["images"])  # of one id, the first counts
        if not (wrong := field_problems(image, "image")).keys() & {"", "id"}
    }
    categories = {c["id"] for c in content["categories"] if not field_problems(c, "category")}
    rules = {
        "image": {"file_name": names_file_in(images)},
        "category": {},
        "annotation": {
            "image_id": _known("image_id", sizes, "is no image"),
            "category_id": _known("category_id", categories, "is no category"),
            "bbox": lambda entry: _box_problem(entry, sizes),
        },
    }
    lines, sound = [], {}
    for key, kind in LISTS.items():
        sound[key] = []
        examined = examine(content[key], kind, {"id": once("id")} | rules[kind])
        for number, (entry, wrong) in enumerate(examined):
            if not wrong:
                sound[key].append(entry)
                continue
            known = isinstance(entry, dict) and "id" in entry
            name = shown(entry["id"]) if known else f"number {number}"
            lines.append(f"{kind} {name}: {wrong}")
    return [*lines, *_split_problems(sound["annotations"], split)], sound


def _known(key: str, ids: Container[int], words: str = "is not in the annotations") -> Rule:
    return lambda entry: "" if entry[key] in ids else f"{entry[key]} {words}"


def _split_problems(annotations: list[Entry], split: str) -> Iterator[str]:
    """What makes annotations useless though each is sound."""
    if annotations and all(max(entry["bbox"]) <= 1 for entry in annotations):
        yield "every box lies in 0..1: COCO's boxes are pixels, not shares of the image"
    if all(entry.get("iscrowd", 0) for entry in annotations) and (annotations or split == "train"):
        yield "not one box to learn from or to find; a crowd region (iscrowd 1) is none"


def _box_problem(entry: Entry, sizes: dict[int, tuple[float, float] | None]) -> str:
    """What is wrong with a box of one of the images of `sizes` (width, height; None: not known)."""
    box, image = entry["bbox"], entry.get("image_id")
    size = sizes.get(image) if is_integer(image) else None
    if size is None or (entry.get("id"), box) in _OFFICIAL_FLAT:
        return ""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"{box} has no size"
    if _overlaps(x, x + width, size[0]) and _overlaps(y, y + height, size[1]):
        return ""
    return f"{box} lies outside image {image} of {size[0]} x {size[1]}"


def _overlaps(low: float, high: float, side: float) -> bool:
    """Whether low..high meets 0..side and sticks out by a pixel at most."""
    return -_OVERHANG <= low < high <= side + _OVERHANG and low < side and high > 0


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
    labels = {category: label for label, category in enumerate(category_ids, start=1)}
    negative = "has a negative side, {}"
    rules = {
        "image_id": _known("image_id", {image["id"] for image in truth["images"]}),
        "category_id": _known("category_id", labels),
        "bbox": lambda d: negative.format(shown(d["bbox"])) if min(d["bbox"][2:]) < 0 else "",
    }
    for number, (_, wrong) in enumerate(examine(content, "detection", rules)):
        if wrong:
            raise DataError(f"{path}, entry {number}: {wrong}")
    kept = ("image_id", "bbox", "score")
    return [{k: d[k] for k in kept} | {"category_id": labels[d["category_id"]]} for d in content]
