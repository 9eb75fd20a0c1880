"""What every method adds to a training step: CPU time and memory, beside no distillation.

    python benchmarks/method_cost.py                                   # five rounds, prints a table
    python benchmarks/method_cost.py --records data/results/cost.jsonl # and records them

Each measurement is a process of its own, because a process never gives back all its memory: the
scenes' student takes some steps under the strong teacher, on one thread. A round measures every
method once, so that what else the machine does meanwhile is shared by all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from dfmsd.experiments.build import arm_stages, batches, datasets, detector
from dfmsd.experiments.grids_scenes import TITLES, chosen
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.records import append_record, environment
from dfmsd.experiments.tables import cost_table
from dfmsd.experiments.teachers import teacher
from dfmsd.experiments.train import optimizer_options
from dfmsd.stages import run_stages
from dfmsd.training.log import Logging

ROOT = Path(__file__).parent.parent
METHODS = {"none": "no distillation", **{k: v for k, v in TITLES.items() if "stages" not in v}}


def measure(name: str, steps: int) -> dict:
    """One method's steps in this process: milliseconds of CPU per step, peak memory, parameters."""
    torch.set_num_threads(1)
    arm = "none" if name == "none" else "one"
    own = () if name == "none" else chosen(name)
    settings = resolve("scenes", [f"train.steps={steps}", *own], scale="quick")
    data = datasets(settings.data)[0]
    torch.manual_seed(0)
    student = detector(settings.student, num_classes=len(data.classes), image_size=96)
    teachers = {"strong": teacher(settings, "strong")} if arm == "one" else {}
    stages = arm_stages(settings, arm, student, teachers)
    source = batches(data, settings.data, batch_size=settings.train.batch_size, seed=0)
    options = {"optimizer": optimizer_options(settings.train), "clip": settings.train.clip}
    began = time.process_time()
    run_stages(student, stages, source, log=Logging(show=False), **options)
    method = stages[0].method
    return {
        "cost_of": name,
        "step_ms": round(1000 * (time.process_time() - began) / steps, 2),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "parameters": sum(p.numel() for p in method.parameters()) if method else 0,
        "settings": asdict(settings),
        "environment": environment(),
    }


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.steps)))
        return
    found, names = [], list(METHODS)
    for number in range(options.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                "--one",
                name,
                "--steps",
                str(options.steps),
            ]
            place = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, env=place, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            record = {**json.loads(done.stdout), "round": number, "steps": [options.steps]}
            found.append(record | {"finished": finished})
            if options.records:
                append_record(options.records, found[-1])
            print(f"round {number}, {name}: {record['step_ms']} ms", file=sys.stderr)
    print(cost_table(found, METHODS))


if __name__ == "__main__":
    main()
