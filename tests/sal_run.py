"""A small two-stage run in a process of its own, for the tests that kill it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from tiny import TinyBatches, tiny_detector

from dfmsd.detectors.features import feature_channels
from dfmsd.loss import DFMSDLoss
from dfmsd.stages import Stage, run_stages
from dfmsd.training.checkpoint import Checkpointing
from dfmsd.training.log import Logging
from dfmsd.training.optim import Schedule


class Slow(TinyBatches):
    """Batches that take their time, so that a kill finds the run in the middle."""

    def iterate(self, start=0, rank=0, world=1):
        for batch in super().iterate(start, rank, world):
            time.sleep(0.05)
            yield batch


def main(folder: Path, batches: TinyBatches) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    student = tiny_detector(seed=0)
    stages = []
    for number in range(2):
        teacher = tiny_detector("faster_rcnn", seed=number + 1, channels=24, strides=(4, 8, 16, 32))
        method = DFMSDLoss(feature_channels(student), feature_channels(teacher), select="random")
        stages.append(Stage(str(number), Schedule(steps=10, lr=1e-3), teacher, method))
    options = {"checkpoints": Checkpointing(folder, every_steps=3), "log": Logging(show=False)}
    run_stages(student, stages, batches, optimizer={"name": "adamw"}, **options)
    torch.save(student.state_dict(), folder / "student.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Slow() if "--slow" in sys.argv else TinyBatches())
