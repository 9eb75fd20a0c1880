"""The students that the notebooks load at the default scale, each with the record of its training.

    python data/students.py jobs=2

trains what is missing (25 minutes on two cores) and writes `data/students/`: a folder a student
with its weights after every stage as fp16 and its log, and `records.jsonl`. Arguments are settings
on top.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dfmsd.detectors.saved import load_detector, save_detector
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.runs import Run, execute_all, runs

STUDENTS = {
    "none-long": ("none-long",),
    "one-long": ("one-long",),
    "two-long": ("two-long",),
    "retinanet": ("none-long", "student.kind=retinanet", "student.strides=8,16,32"),
}
"""Folder → its arm, and what differs from the preset `scenes` at quick scale."""


def queue(overrides: Sequence[str] = ()) -> dict[str, Run]:
    """Folder → run."""
    return {
        name: runs(resolve("scenes", [f"arms={arm}", *own, *overrides], scale="quick"))[0]
        for name, (arm, *own) in STUDENTS.items()
    }


def main(overrides: Sequence[str]) -> None:
    """Train what is missing, and write the shipped folder."""
    folder, lines = Path(__file__).with_suffix(""), []
    students = queue(overrides)
    records = execute_all(list(students.values()), retrain=True)
    for (name, run), record in zip(students.items(), records, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in sorted(run.folder.glob("stage*.safetensors")):
            student, metadata = load_detector(file)
            kept = {key: metadata[key] for key in ("classes", "metrics")}
            save_detector(student, folder / name / file.name, half=True, **kept)
        shutil.copy(run.folder / "log.jsonl", folder / name)
        lines.append(json.dumps(record | {"shipped": name}))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
