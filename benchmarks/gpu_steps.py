"""Whole training steps of figure 3's job: images per second, by part of a step, compiled."""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_job import Job, Marks
from random_coco import SIZES, swin_teacher, write_coco, write_trunk
from torch import Tensor, nn

from dfmsd.context import Context
from dfmsd.distill import Distiller
from dfmsd.experiments.build import batches, datasets, detector_for, method
from dfmsd.experiments.presets import resolve
from dfmsd.training.optim import make_optimizer
from dfmsd.training.steps import total_loss

PRESET = "faster_rcnn_r50_swin_sal"
BATCH = 16
"""Images per step of the preset."""
Batch = tuple[list[Tensor], list[dict[str, Any]]]


@contextmanager
def figure_3(job: Job, batch: int = BATCH) -> Iterator[Any]:
    """The settings of figure 3's preset at full scale, on drawn images that go again."""
    with tempfile.TemporaryDirectory() as folder:
        root, trunk = Path(folder) / "coco", Path(folder) / "trunk.pth"
        if job.smoke:
            write_coco(root, count=8, shrink=10)
            own = ["data.short=64", "data.size=107", "data.workers=1", "train.batch_size=2"]
            own += ["student.trunk=torchvision:resnet18", "student.weights="]
            own += ["student.fpn_channels=32"]
        else:
            write_coco(root)
            own = ["data.workers=12", f"student.weights={write_trunk(trunk)}"]
            own += [f"train.batch_size={batch}"]
        yield resolve(PRESET, [*own, f"data.root={root}"], scale="full")


def build(settings: Any, name: str | None, *, wrap: Callable | None = None) -> Distiller:
    """The preset's student on the CPU; a teacher of `DEPTHS` and DFMSD unless `name` is None."""
    torch.manual_seed(0)
    student = detector_for(settings.student, settings.data, num_classes=80)
    if name is None:
        return Distiller(student)
    teacher = swin_teacher(name, tiny=settings.data.short < 800)
    loss = method(settings, student, teacher)
    return Distiller(student, teacher, wrap(loss) if wrap else loss)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    images, targets = batch
    move = {"device": device, "non_blocking": True}
    boxes = [{k: t[k].to(**move) for k in ("boxes", "labels")} for t in targets]
    return [image.to(**move) for image in images], boxes


def sampled(settings: Any, *, count: int = 8) -> list[Batch]:
    """The first batches of a training, decoded, on the CPU."""
    train = datasets(settings.data)[0]
    source = batches(train, settings.data, batch_size=settings.train.batch_size, seed=0)
    source.workers = 0
    return list(itertools.islice(source.iterate(), count))


def forward(model: Distiller, batch: Batch, *, half: bool = True) -> dict[str, Tensor]:
    """The losses of a batch, on a GPU under bf16 autocast (on CPUs it is slow) where `half`."""
    device = batch[0][0].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=half and device == "cuda"):
        return model(*batch)


def descend(model: Distiller, optimizer: torch.optim.Optimizer) -> None:
    """Clip and step, as a training does."""
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 35.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def step(
    model: Distiller, optimizer: torch.optim.Optimizer, batch: Batch, *, half: bool = True
) -> None:
    """One training step. The loss is read before the backward pass, as `fit` does."""
    loss = total_loss(forward(model, batch, half=half), model.weights)
    if not math.isfinite(float(loss.detach())):
        raise FloatingPointError("the loss is not finite: the time would mean nothing")
    loss.backward()
    descend(model, optimizer)


def sgd(model: Distiller) -> torch.optim.Optimizer:
    """The preset's optimiser, with a rate at which random weights stay where they are."""
    return make_optimizer(model, name="sgd", lr=1e-5, weight_decay=1e-4)


def speed(
    job: Job, model: Distiller, source: Iterator[Batch], *, seconds: float, steps: int = 100
) -> dict[str, float]:
    """Images per second, milliseconds per step, peak memory and the share of time waiting for data.

    At most `steps` steps after ten that warm up, fewer when the time is over.
    """
    cuda = job.device.type == "cuda"
    model.to(job.device).train()
    optimizer, warm, steps = sgd(model), 1 if job.smoke else 10, 2 if job.smoke else steps
    first, done, images, waited, began = time.perf_counter(), 0, 0, 0.0, 0.0
    while done < warm + steps:
        if done == warm:
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began, images, waited = time.perf_counter(), 0, 0.0
        if done > warm + 1 and time.perf_counter() - first > seconds:
            break
        asked = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - asked
        step(model, optimizer, to_device(batch, job.device))
        images, done = images + len(batch[0]), done + 1
    if cuda:
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    found = {"images_s": images / took, "step_ms": 1000 * took / (done - warm)}
    return found | {"waiting": waited / took, "peak_gib": peak, "steps": done - warm}


def how_measured(job: Job, settings: Any, **more: Any) -> dict[str, Any]:
    """What a record says about the job whose steps it measured."""
    how = {"preset": PRESET, "batch": settings.train.batch_size, "images": str(SIZES)}
    how |= {"short": settings.data.short, "size": settings.data.size}
    return how | {"precision": "bf16" if job.device.type == "cuda" else "no"} | more


def throughput(job: Job) -> None:
    """Figure 3's job, at half the batch where the whole does not fit the GPU's memory."""
    if not measure_job(job, BATCH):
        measure_job(job, BATCH // 2)


def measure_job(job: Job, batch: int) -> bool:
    """Images per second of its rows, by part of a step, and fed from files; False: does not fit."""
    with figure_3(job, batch) as settings:
        there = [to_device(batch, job.device) for batch in sampled(settings)]
        how = how_measured(job, settings)
        rows = {
            "DFMSD, Swin-S": ("swin_s", False),
            "no distillation": (None, False),
            "DFMSD, Swin-T": ("swin_t", False),
            "DFMSD, Swin-S, channels_last": ("swin_s", True),
        }

        def row(name: str | None, last: bool, share: float) -> dict[str, Any]:
            model = build(settings, name)
            for detector in (model.student, model.teacher) if last else ():
                detector.to(memory_format=torch.channels_last)
            return speed(job, model, itertools.cycle(there), seconds=share)

        found = {}
        for number, (what, how_built) in enumerate(rows.items()):
            act = partial(row, *how_built, job.left() / (len(rows) - number + 2))  # two come after
            found[what] = job.measure(what, act, **how, pixels="on the device before the step")
            if batch == BATCH and "OutOfMemory" in found[what].get("error", ""):
                return False
        act = partial(by_part, job, settings, itertools.cycle(there))
        job.measure("share of time by part, per cent", act, **how, teacher="swin_s")
        workers = settings.data.workers
        job.measure("fed from JPEG files", partial(fed, job, settings), **how, workers=workers)
        words = "eight GPUs: an eighth, if nothing is lost between them (not measured)"
        act = partial(days, settings, [found["DFMSD, Swin-T"], found["DFMSD, Swin-S"]])
        job.measure("days for two-long", act, **how, assumption=words)
    return True


def fed(job: Job, settings: Any) -> dict[str, float]:
    """Speed of DFMSD from Swin-S when loader processes decode the images."""
    train = datasets(settings.data)[0]
    source = batches(train, settings.data, batch_size=settings.train.batch_size, seed=0)
    return speed(job, build(settings, "swin_s"), source.iterate(), seconds=0.7 * job.left())


def days(settings: Any, stages: list[dict[str, float]]) -> dict[str, float]:
    """Days of an arm whose stages run at these speeds, `train.steps` steps of `BATCH` each."""
    images = settings.train.steps * BATCH
    whole = sum(images / stage["images_s"] / 86_400 for stage in stages)
    return {"days_1_gpu": whole, "days_8_gpus_ideal": whole / 8}


class Boundary(nn.Module):
    """A method on copies of the student's features, so that its backward pass can run alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.weights = inner, inner.weights

    def forward(self, student: dict, teacher: dict, context: Context) -> dict[str, Tensor]:
        self.copies = {k: f.detach().requires_grad_() for k, f in student.items()}
        self.pairs = [(f, self.copies[k]) for k, f in student.items()]
        return self.inner(self.copies, teacher, context)


def by_part(job: Job, settings: Any, source: Iterator[Batch]) -> dict[str, float]:
    """Share of a step's time by part, in per cent, and milliseconds of the whole."""
    model = build(settings, "swin_s", wrap=Boundary).to(job.device).train()
    optimizer, spans = sgd(model), []
    for number in range(2 if job.smoke else 25):
        marks, batch = Marks(job.device), next(source)
        ends = {"transform": model.student.transform, "student forward": model.student}
        ends |= {"teacher forward": model.teacher.backbone, "loss forward": model.method}
        hooks = [marks.after(part, name) for name, part in ends.items()]
        marks("start")
        losses = forward(model, batch)
        for hook in hooks:
            hook.remove()
        named = {name: losses.pop(name) for name in model.weights}
        total_loss(named, model.weights).backward()
        marks("loss backward")
        pairs = [(f, copy.grad) for f, copy in model.method.pairs if copy.grad is not None]
        roots = [(sum(losses.values()), None), *pairs]
        torch.autograd.backward(*map(list, zip(*roots, strict=True)))
        marks("student backward")
        descend(model, optimizer)
        marks("clipping and optimiser")
        spans += [] if number < (1 if job.smoke else 5) else [dict(marks.spans())]
    means = {name: statistics.mean(span[name] for span in spans) for name in spans[0]}
    whole = sum(means.values())
    return {name: 100 * mean / whole for name, mean in means.items()} | {"step_ms": whole}


def compiled(job: Job) -> None:
    """The same step on one shape, trunk and pyramid compiled: the student's, the teacher's too."""
    options = {"backend": "eager"} if job.smoke else {}
    with figure_3(job) as settings:
        batch = to_device(sampled(settings, count=1)[0], job.device)
        model = build(settings, "swin_s").to(job.device).train()

        def row(detector: nn.Module | None) -> dict[str, float]:
            for part in detector.backbone.children() if detector else ():
                part.compile(**options)
            began = time.perf_counter()
            step(model, sgd(model), batch)
            first = {"first_step_s": time.perf_counter() - began}
            return first | speed(job, model, itertools.repeat(batch), seconds=8, steps=20)

        rows = {"nothing": None, "student": model.student, "student and teacher": model.teacher}
        for what, detector in rows.items():
            how = how_measured(job, settings, teacher="swin_s", shape=list(batch[0][0].shape))
            job.measure(f"compiled: {what}", partial(row, detector), **how)
