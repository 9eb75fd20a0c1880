"""The library's COCO metrics over pycocotools, from the same dicts in memory.

    python benchmarks/evaluation.py --images 5000

Objects of every size, a hundredth of them crowds; per image 100 detections, of which a part are
objects with shaken boxes and the rest anything. All twelve numbers must be pycocotools' to
1e-10 before a time counts.
"""

from __future__ import annotations

import contextlib
import io
import math
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ratio import Measure, cpu_seconds, main, measure

from dfmsd.training.evaluation import coco_metrics

CLASSES, OBJECTS, DETECTIONS, SIZE = 80, 7, 100, (640, 480)
Entry = dict[str, Any]


def boxes(draw: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) boxes as x, y, width, height, log-uniform sides of 8 to 300 pixels."""
    sides = np.exp(draw.uniform(math.log(8), math.log(300), (count, 2)))
    return np.concatenate([draw.uniform(0, 1, (count, 2)) * (np.array(SIZE) - sides), sides], 1)


def problem(images: int) -> tuple[Entry, list[Entry]]:
    """A COCO-format dict, and detections in the results format."""
    draw = np.random.default_rng(0)
    truth, results = [], []
    for image in range(1, images + 1):
        places = boxes(draw, OBJECTS)
        labels = draw.integers(1, CLASSES + 1, OBJECTS)
        for box, label in zip(places.tolist(), labels.tolist(), strict=True):
            entry = {"id": len(truth) + 1, "image_id": image, "category_id": label, "bbox": box}
            crowd = int(draw.random() < 0.01)
            truth.append(entry | {"area": box[2] * box[3], "iscrowd": crowd})
        which = draw.integers(0, OBJECTS, DETECTIONS // 2)
        shaken = places[which] * draw.normal(1, 0.1, (len(which), 4))
        found = np.concatenate([shaken, boxes(draw, DETECTIONS - len(which))]).tolist()
        guesses = draw.integers(1, CLASSES + 1, DETECTIONS - len(which))
        scores = draw.random(DETECTIONS).tolist()
        names = np.concatenate([labels[which], guesses]).tolist()
        results += [
            {"image_id": image, "category_id": name, "bbox": box, "score": score}
            for name, box, score in zip(names, found, scores, strict=True)
        ]
    width, height = SIZE
    sizes = [{"id": i, "width": width, "height": height} for i in range(1, images + 1)]
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
    return {"images": sizes, "annotations": truth, "categories": categories}, results


def reference(truth: Entry, results: list[Entry]) -> np.ndarray:
    """pycocotools' twelve numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        run = COCOeval(known, known.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


def measures(options: Namespace) -> Iterator[Measure]:
    images = 100 if options.quick else options.images
    truth, results = problem(images)
    copies = [dict(entry) for entry in results]  # pycocotools writes into them
    reference({**truth, "images": truth["images"][:1]}, copies[:DETECTIONS])  # warm-up
    numbers: dict[str, list[float]] = {}

    def ours() -> None:
        numbers["ours"] = list(coco_metrics(truth, results).values())

    def peer() -> None:
        numbers["peer"] = reference(truth, copies).tolist()

    # once, for pycocotools needs two minutes; ours before and after it
    seconds = [cpu_seconds(ours), cpu_seconds(peer), cpu_seconds(ours)]
    values = [seconds[0] / seconds[1], seconds[2] / seconds[1]]
    np.testing.assert_allclose(numbers["ours"], numbers["peer"], rtol=0, atol=1e-10)
    name = f"evaluation / pycocotools, {images:,} images × {DETECTIONS} detections"
    yield measure(f"{name}; 12 numbers equal to 1e-10", values, 0.13)


if __name__ == "__main__":
    main(measures, __doc__)
