"""Files that are nearly right end in success or in one line that names them, soon and in bounds."""

import io
import json
import random
import resource
import signal
import struct
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from coco_folder import box, content, picture, write
from mutations import mutate_bytes, mutate_json
from tiny import tiny_detector

from dfmsd.data.annotations import read_detections
from dfmsd.data.check import check
from dfmsd.data.coco import CocoDataset
from dfmsd.data.images import read_image
from dfmsd.detectors.checkpoints import read_tensors, save_state
from dfmsd.detectors.saved import load_detector, save_detector
from dfmsd.experiments.commands import table

RECORDS = Path(__file__).parent.parent / "data" / "results" / "scenes.jsonl"
SECONDS, MEMORY_KB = 5, 2 * 2**20
pytestmark = pytest.mark.slow


@contextmanager
def within_bounds(file, case):
    """Success, or an error of the kinds that the command line tells, which names the file."""

    def late(*_):
        raise AssertionError(f"{case}: longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    except (ValueError, OSError) as error:
        words = " ".join(str(error).split())
        assert Path(file).name in words, f"{case}: does not name the file: {words[:300]}"
        assert words.isprintable(), f"{case}: prints control characters: {words[:300]!r}"
        assert len(words) < 2000, f"{case}: {len(words)} characters"
    except (AssertionError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {str(error)[:300]}") from error
    finally:
        signal.alarm(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEMORY_KB, case


def cases(kind, count, mutate):
    """(name, what `mutate` makes) for as many seeds; the name repeats the case."""
    for seed in range(count):
        yield f"{kind}, seed {seed}", mutate(random.Random(f"{kind}-{seed}"))


def test_annotations(tmp_path):
    """6,000 files of annotations: checked, and read as a training does."""
    objects = [box(), box(2, 1, 2, (0, 0, 60, 40), iscrowd=1), box(3, 2, 1, (5, 5, 9, 9), area=81)]
    good = content(2, objects)
    root = write(tmp_path / "coco", good)
    file = root / "annotations" / "instances_train.json"
    for case, text in cases("annotations", 6000, lambda d: json.dumps(mutate_json(good, d))):
        file.write_text(text)
        with within_bounds("coco", case):
            check(root)
        with within_bounds("coco", case):
            data = CocoDataset(root, "train")
            for index in range(len(data)):
                data[index]


def test_bytes_of_annotations(tmp_path):
    """2,000 files of annotations that are damaged as text."""
    good = content(2, [box(), box(2, 2)])
    root = write(tmp_path / "coco", good)
    file = root / "annotations" / "instances_train.json"
    text = json.dumps(good).encode()
    for case, damaged in cases("bytes", 2000, lambda d: mutate_bytes(text, d)):
        file.write_bytes(damaged)
        with within_bounds("coco", case):
            check(root)


def test_detections(tmp_path):
    """2,000 files of detections."""
    root = write(tmp_path / "coco", content(2, [box(), box(2, 2)]))
    data, file = CocoDataset(root, "train"), tmp_path / "detections.json"
    good = [{"image_id": 1, "category_id": 1, "bbox": [1.0, 2, 3, 4], "score": 0.5}] * 3
    for case, text in cases("detections", 2000, lambda d: json.dumps(mutate_json(good, d))):
        file.write_text(text)
        with within_bounds(file, case):
            read_detections(file, data.truth(), category_ids=data.category_ids)


def safetensors_parts(raw):
    """(header as JSON, tensors as bytes) of a safetensors file."""
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def test_weights(tmp_path):
    """4,000 detectors of ours: the header and the recipe in it changed, or bytes."""
    file = tmp_path / "detector.safetensors"
    save_detector(tiny_detector(), file, classes=list("abcdef"))
    header, tensors = safetensors_parts(file.read_bytes())
    inside = json.loads(header["__metadata__"]["dfmsd"])

    def changed(draw):
        if draw.random() < 0.2:
            return mutate_bytes(file_content, draw)
        new = dict(header)
        if draw.random() < 0.75:
            new["__metadata__"] = {"dfmsd": json.dumps(mutate_json(inside, draw))}
        else:
            new = mutate_json(new, draw)
        text = json.dumps(new).encode()
        return struct.pack("<Q", len(text)) + text + tensors

    file_content = file.read_bytes()
    for case, damaged in cases("weights", 4000, changed):
        file.write_bytes(damaged)
        with within_bounds(file, case):
            load_detector(file, head=True)


def test_checkpoints(tmp_path):
    """2,000 files of torch.save, read as weights."""
    file = tmp_path / "weights.pth"
    save_state({"model": {"a": torch.ones(3), "b": torch.zeros(2, 2)}, "epoch": 3}, file)
    good = file.read_bytes()
    for case, damaged in cases("checkpoints", 2000, lambda d: mutate_bytes(good, d)):
        file.write_bytes(damaged)
        with within_bounds(file, case):
            read_tensors(file)


def test_records(tmp_path):
    """3,000 files of records, and the table that is printed of them."""
    file = tmp_path / "records.jsonl"
    good = [json.loads(line) for line in RECORDS.read_text().splitlines()[:3]]

    def changed(draw):
        if draw.random() < 0.3:
            return mutate_bytes("\n".join(map(json.dumps, good)).encode(), draw)
        lines = mutate_json(good, draw)
        lines = lines if isinstance(lines, list) else [lines]
        return "\n".join(map(json.dumps, lines)).encode()

    for case, text in cases("records", 3000, changed):
        file.write_bytes(text)
        with within_bounds(file, case):
            table(file)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_images(tmp_path, form):
    """600 images of each format."""
    stream = io.BytesIO()
    picture().save(stream, form)
    file = tmp_path / f"image.{form.lower()}"
    for case, damaged in cases(form, 600, lambda d: mutate_bytes(stream.getvalue(), d)):
        file.write_bytes(damaged)
        with within_bounds(file, case):
            pixels = read_image(file)
            assert pixels.shape[0] == 3
