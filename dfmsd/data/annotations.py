"""COCO-format folders: splits, annotation files, the list of classes, and what is wrong in them."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from dfmsd.data.fields import field_problems, is_integer, sentence, shown
from dfmsd.data.names import name_rule
from dfmsd.data.pixels import DataError

Entry = dict[str, Any]
Rule = Callable[[Entry], "str | None"]

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


def read_annotations(path: str | Path) -> dict[str, Any]:
    """The content of an annotation file, its three lists present.

    Raises:
        DataError: not JSON, or a list is missing.
    """
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        _require_list(content, key, path)
    _CATEGORIES[file_state(Path(path))] = content["categories"]
    return content


def _require_list(content: Any, key: str, path: str | Path) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{path}: no list {key!r}")
    return content[key]


def _read_categories(file: Path) -> list[Any]:
    """The categories of an annotation file, which is parsed from where they begin."""
    state = file_state(file)
    if state not in _CATEGORIES:
        content = read_json(file, _parse_end)
        _CATEGORIES[state] = _require_list(content, "categories", file)
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
            name, number = entry["name"], entry["id"]
            other, where = names.setdefault(number, (name, split))
            if other != name:
                named = f"{shown(other)} in {where} and {shown(name)} in {split}"
                wrong.append(f"category {number} is {named}")
            other, where = ids.setdefault(name, (number, split))
            if other != number:
                text = f"has the id {other} in {where} and {number} in {split}"
                wrong.append(f"category {shown(name)} {text}")
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
    sizes: dict[int, tuple[float, float] | None] = {}
    for image in content["images"]:
        wrong = field_problems(image, "image")
        if not wrong.keys() & {"", "id"}:
            # an image that is wrong itself is no reason to complain about its boxes too
            sizes.setdefault(image["id"], None if wrong else (image["width"], image["height"]))
    categories = {c["id"] for c in content["categories"] if not field_problems(c, "category")}
    name_problem = name_rule(images)
    rules = {
        "image": {"file_name": lambda entry: name_problem(entry["file_name"])},
        "category": {},
        "annotation": {
            "image_id": _known("image_id", sizes),
            "category_id": _known("category_id", categories),
            "bbox": lambda entry: _box_problem(entry, sizes),
        },
    }
    lines, sound = [], {}
    for kind, key in (
        ("image", "images"),
        ("category", "categories"),
        ("annotation", "annotations"),
    ):
        sound[key], found = _sift(kind, content[key], rules[kind])
        lines += found
    return [*lines, *_split_problems(sound["annotations"], split)], sound


def _known(key: str, ids: Container[int]) -> Rule:
    kind = key.removesuffix("_id")
    return lambda entry: None if entry[key] in ids else f"{entry[key]} is no {kind}"


def _sift(kind: str, entries: list[Any], rules: dict[str, Rule]) -> tuple[list[Entry], list[str]]:
    """The sound entries of a kind, and a line for each of the others; `rules` are by field."""
    sound: list[Entry] = []
    lines: list[str] = []
    seen: set[int] = set()
    rules = {"id": lambda entry: "appears twice" if entry["id"] in seen else None} | rules
    for number, entry in enumerate(entries):
        wrong = field_problems(entry, kind)
        if "" not in wrong:
            for field, rule in rules.items():
                if field not in wrong and (words := rule(entry)):
                    wrong[field] = words
            if "id" not in wrong:
                seen.add(entry["id"])
        if not wrong:
            sound.append(entry)
            continue
        known = isinstance(entry, dict) and "id" in entry
        name = shown(entry["id"]) if known else f"number {number}"
        lines.append(f"{kind} {name}: {sentence(wrong)}")
    return sound, lines


def _split_problems(annotations: list[Entry], split: str) -> Iterator[str]:
    """What makes annotations useless though each is sound."""
    if annotations and all(max(entry["bbox"]) <= 1 for entry in annotations):
        yield "every box lies in 0..1: COCO's boxes are pixels, not shares of the image"
    if all(entry.get("iscrowd", 0) for entry in annotations) and (annotations or split == "train"):
        yield "not one box to learn from or to find; a crowd region (iscrowd 1) is none"


def _box_problem(entry: Entry, sizes: dict[int, tuple[float, float] | None]) -> str | None:
    """What is wrong with a box of one of the images of `sizes` (width, height; None: not known)."""
    box, image = entry["bbox"], entry.get("image_id")
    size = sizes.get(image) if is_integer(image) else None
    if size is None or (entry.get("id"), box) in _OFFICIAL_FLAT:
        return None
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"{box} has no size"
    if not (_overlaps(x, x + width, size[0]) and _overlaps(y, y + height, size[1])):
        return f"{box} lies outside image {image} of {size[0]} x {size[1]}"
    return None


def _overlaps(low: float, high: float, side: float) -> bool:
    """Whether low..high meets 0..side and sticks out by a pixel at most."""
    return -_OVERHANG <= low < high <= side + _OVERHANG and low < side and high > 0
