"""What DFMSD costs on a GPU: correct there, images per second, the loss beside its convolutions.

    python benchmarks/gpu.py --out data/results/gpu.jsonl   # every part, within --seconds
    python benchmarks/gpu.py --smoke --out build/gpu.jsonl  # all of it reduced, without a GPU too

Needs no network and no files: weights are random, images are drawn. Every part is a process of its
own with a share of the time; what it measured is recorded at once, and so is what went wrong.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_job import Job, Marks
from gpu_steps import compiled, step, throughput, to_device
from torch import Tensor, nn

from dfmsd.baselines import BASELINES
from dfmsd.context import Context
from dfmsd.distill import Distiller
from dfmsd.experiments.build import batches, datasets, detector_for, method
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.records import append_record
from dfmsd.loss import DFMSDLoss
from dfmsd.training.optim import make_optimizer
from dfmsd.training.steps import total_loss

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"tests": 110, "throughput": 160, "loss": 45, "scenes": 35, "compile": 50}
"""Part → its share of the time; what one leaves over goes to those after it."""
GRACE = 10.0
"""Seconds that a part may take to notice that its time is over."""
PROCESSES = (1, 4, 8, 12)


def run_tests(job: Job) -> None:
    """The tests marked `gpu`: outcome, seconds, and what each notes with `record_property`."""
    import pytest

    class Reporter:
        def pytest_runtest_setup(self) -> None:
            if job.left() <= 0:
                pytest.skip("no time was left for it")

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                values = {"outcome": report.outcome, "seconds": report.duration}
                values |= dict(report.user_properties)
                if report.outcome != "passed":
                    values["words"] = report.longreprtext[-1500:]
                job.record(report.nodeid.split("::")[-1], values)

    arguments = [str(ROOT / "tests/test_gpu.py"), "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    pytest.main([*arguments, "--rootdir", str(ROOT)], plugins=[Reporter()])


def features(job: Job, count: int, dtype: torch.dtype) -> tuple[dict, dict, Context]:
    """Random features of 256 channels at strides 8 to 64 of 800 x 1333, and the batch behind."""
    draw = torch.Generator(job.device).manual_seed(0)
    own = {"device": job.device, "generator": draw}
    size = (64, 107) if job.smoke else (800, 1333)
    full = [-(-side // 32) * 32 for side in size]
    shapes = {s: (count, 256, *(-(-side // s) for side in full)) for s in (8, 16, 32, 64)}
    context = Context(
        images=torch.randn(count, 3, *full, **own),
        sizes=[size] * count,
        targets=[{"boxes": torch.tensor([[8.0, 8, 40, 50]], device=job.device)}] * count,
        scores={s: torch.rand(count, 1, *shape[2:], **own) for s, shape in shapes.items()},
    )
    student, teacher = (
        {s: torch.randn(*shape, **own).to(dtype) for s, shape in shapes.items()} for _ in range(2)
    )
    return {s: f.requires_grad_() for s, f in student.items()}, teacher, context


def convolutions(loss: DFMSDLoss, student: dict[int, Tensor]) -> list[Tensor]:
    """What only the convolutions of a DFMSD loss compute: per level an adapter, two generators."""
    outputs = []
    for stride, feature in student.items():
        parts = loss.generators[str(stride)].modules()
        convs = [part for part in parts if isinstance(part, nn.Conv2d)]
        adapted = loss.adapters[str(stride)](feature)
        outputs += [convs[1](convs[0](adapted)), convs[3](convs[2](adapted))]
    return outputs


def cost(job: Job, act: Callable[[], Any], seconds: float) -> tuple[float, float | None]:
    """Median milliseconds of `act`, and its peak GiB above what was there after a few times."""
    cuda, peak, times = job.device.type == "cuda", None, []
    warm, ends = 1 if job.smoke else 5, time.perf_counter() + seconds
    for number in range(warm + (2 if job.smoke else 40)):
        if number > warm + 2 and time.perf_counter() > ends:
            break
        if cuda and number == warm:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        marks = Marks(job.device)
        marks("start")
        act()
        marks("end")
        times += [ms for _, ms in marks.spans()] if number >= warm else []
    if cuda:
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    return statistics.median(times), peak


def loss_cost(job: Job) -> None:
    """DFMSD's loss as a multiple of its own convolutions, and the baselines beside it."""
    channels = dict.fromkeys((8, 16, 32, 64), 256)
    kinds = {"DFMSD": DFMSDLoss, **BASELINES}
    precisions = (False, True) if job.device.type == "cuda" else (False,)
    cases = list(itertools.product((2,) if job.smoke else (2, 16), precisions))
    for number, (count, half) in enumerate(cases):
        given = features(job, count, torch.bfloat16 if half else torch.float32)
        each = job.left() / (len(cases) - number) / (len(kinds) + 1)
        how = {"batch": count, "precision": "bf16" if half else "fp32", "channels": 256}
        how |= {"padded": True, "tf32_convolutions": torch.backends.cudnn.allow_tf32}
        for name, kind in kinds.items():
            what = f"{name}, batch {count}, {how['precision']}"
            act = beside_convolutions if name == "DFMSD" else alone
            loss = kind(channels, channels).to(job.device)
            with torch.autocast(job.device.type, torch.bfloat16, enabled=half):
                job.measure(what, partial(act, job, loss, given, each), method=name, **how)


def alone(job: Job, loss: nn.Module, given: tuple, seconds: float) -> dict[str, Any]:
    """Cost of a method's loss, forward and backward."""
    found = cost(job, lambda: total_loss(loss(*given), loss.weights).backward(), seconds)
    return dict(zip(("ms", "peak_gib"), found, strict=True))


def beside_convolutions(job: Job, loss: DFMSDLoss, given: tuple, seconds: float) -> dict[str, Any]:
    """The same for DFMSD, and as a multiple of what its convolutions alone cost."""
    values, student = alone(job, loss, given, seconds), given[0]
    gradients = [torch.randn_like(output) for output in convolutions(loss, student)]
    ms, peak = cost(
        job, lambda: torch.autograd.backward(convolutions(loss, student), gradients), seconds
    )
    values |= {"convolutions_ms": ms, "convolutions_peak_gib": peak}
    values["times_convolutions"] = values["ms"] / ms
    values["memory_times_convolutions"] = values["peak_gib"] / peak if peak else None
    return values


def scene_steps(job: Job) -> None:
    """Steps per second of small runs, one process alone and several side by side."""
    counts = (1, 2) if job.smoke else PROCESSES
    seconds = 0.5 if job.smoke else min(5.0, job.left() / 8)
    command = [sys.executable, __file__, "--scene-worker", *(["--smoke"] if job.smoke else [])]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    crew = [subprocess.Popen(command, cwd=ROOT, env=env, **pipes) for _ in range(counts[-1])]
    try:
        for worker in crew:
            if worker.stdout.readline() != "ready\n":
                raise ChildProcessError("a worker did not start; see its words above")
        for count in counts:
            how = {"preset": "scenes", "scale": "quick", "batch": 8, "precision": "no"}
            act = partial(rates, crew[:count], seconds)
            job.measure(f"{count} processes", act, **how, teacher="strong", processes=count)
    finally:
        for worker in crew:
            worker.kill()


def rates(crew: list[subprocess.Popen], seconds: float) -> dict[str, Any]:
    """Steps per second of the workers, together and each."""
    for worker in crew:
        worker.stdin.write(f"{seconds}\n")
        worker.stdin.flush()
    each = [float(worker.stdout.readline()) for worker in crew]
    return {"steps_s": sum(each), "each": each}


def scene_worker(smoke: bool) -> None:
    """Read seconds from standard input, line by line; train so long, print steps per second."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = resolve("scenes", ["data.train_images=64"], scale="quick")
    data = datasets(settings.data)[0]
    torch.manual_seed(0)
    student, teacher = (
        detector_for(kind, settings.data, num_classes=len(data.classes))
        for kind in (settings.student, settings.strong)
    )
    model = Distiller(student, teacher, method(settings, student, teacher)).to(device).train()
    optimizer = make_optimizer(model, name="adamw", lr=1e-5, weight_decay=0.05)
    source = batches(data, settings.data, batch_size=settings.train.batch_size, seed=0).iterate()
    loaded = [next(source) for _ in range(2 if smoke else 8)]
    for batch in loaded:
        step(model, optimizer, to_device(batch, device), half=False)
    print("ready", flush=True)
    for line in sys.stdin:
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < float(line):
            step(model, optimizer, to_device(loaded[steps % len(loaded)], device), half=False)
            steps += 1
        print(steps / (time.perf_counter() - began), flush=True)


PARTS: dict[str, Callable[[Job], None]] = {
    "tests": run_tests,
    "throughput": throughput,
    "loss": loss_cost,
    "scenes": scene_steps,
    "compile": compiled,
}


def whole(job: Job, part: Callable[[Job], None]) -> dict[str, float]:
    """Seconds of a part."""
    began = time.time()
    part(job)
    return {"seconds": time.time() - began}


def start(parts: list[str], until: float, options: argparse.Namespace) -> None:
    """Parts in a process of their own, which ends when their time is over."""
    command = [sys.executable, __file__, "--out", str(options.out.resolve())]
    command += ["--commit", options.commit, "--parts", *parts, "--until", str(until)]
    command += ["--smoke"] if options.smoke else []
    env = os.environ | ({"OMP_NUM_THREADS": "1"} if options.smoke else {})
    child = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    problem = "it was killed: its time was over"
    with suppress(subprocess.TimeoutExpired):
        child.wait(max(0.0, until + GRACE - time.time()))
        problem = f"its process ended with {child.returncode}" if child.returncode else ""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # the part's own processes too
    child.wait()
    if problem:
        what = ", ".join(parts)
        append_record(options.out, {"part": what, "what": "the whole part", "error": problem})
        print(f"{what}: {problem}", flush=True)


def main() -> None:
    """Measure, part after part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data/results/gpu.jsonl")
    parser.add_argument("--seconds", type=float, default=400, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--smoke", action="store_true", help="reduced, to see that it runs")
    parser.add_argument("--commit", default="", help="of the code, where git cannot say it")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--scene-worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scene_worker:
        return scene_worker(options.smoke)
    if options.until:
        for part in options.parts:
            job = Job(part, options.out, options.until, options.smoke, options.commit)
            job.measure("the whole part", partial(whole, job, PARTS[part]))
        return None
    ends = time.time() + options.seconds - GRACE
    if options.smoke:  # in one process, which loads torch once
        return start(options.parts, ends, options)
    for number, part in enumerate(options.parts):
        rest = sum(SHARES[name] for name in options.parts[number:])
        start([part], time.time() + (ends - time.time()) * SHARES[part] / rest, options)
    return None


if __name__ == "__main__":
    main()
