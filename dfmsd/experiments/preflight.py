"""Before a long job: does everything load, teach, fit into memory and finish in time?

Nothing is written and no teacher is trained; a fresh student takes a few real steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from dfmsd.detectors.build import parameter_count
from dfmsd.detectors.pretrained import inherit
from dfmsd.detectors.saved import load_detector
from dfmsd.distill import Distiller
from dfmsd.experiments.build import (
    batches,
    datasets,
    detector_for,
    evaluate,
    method,
    scaled_rate,
    schedule,
)
from dfmsd.experiments.presets_coco import require
from dfmsd.experiments.profile import collect_features, level_statistics, loss_balance, throughput
from dfmsd.experiments.records import markdown_table
from dfmsd.experiments.runs import runs
from dfmsd.experiments.settings import ARMS, Settings
from dfmsd.experiments.train import optimizer_options, prepare
from dfmsd.training.optim import make_optimizer
from dfmsd.training.steps import parts

LONG = 5000
"""Steps from which `dfmsd distill` makes the preflight by itself."""
BALANCE = 4.1
"""Weighted distillation over task loss at the first step, that of DFMSD on the scenes."""
CONSTANT = 0.9
"""Constant share from which a teacher's level has nothing to teach, see `level_statistics`."""

Verdict = Literal["ok", "note", "refused"]


@dataclass
class Preflight:
    """What was seen of a job: lines of (part, verdict, text), a table, and what was measured."""

    settings: Settings
    accelerator: Accelerator
    findings: list[tuple[str, Verdict, str]] = field(default_factory=list)
    levels: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, text: str, verdict: Verdict = "ok") -> None:
        """Add one finding."""
        self.findings.append((part, verdict, text))

    @property
    def reasons(self) -> list[str]:
        """Why the job should not start; empty when it may."""
        return [f"{part}: {text}" for part, verdict, text in self.findings if verdict == "refused"]

    def __str__(self) -> str:
        """The report for a terminal."""
        lines = [f"{verdict:9}{part}: {text}" for part, verdict, text in self.findings]
        return "\n".join([*lines, *(["", self.levels] if self.levels else [])])


def is_due(settings: Settings) -> bool:
    """Whether a job is long and has not begun, so that a preflight is due, on every process."""
    lengths = [sum(ARMS[arm].lengths) * settings.train.steps for arm in settings.arms]
    begun = any((run.folder / "log.jsonl").exists() for run in runs(settings))
    return max(lengths) >= LONG and not begun


def run_preflight(
    settings: Settings, *, images: int = 32, steps: int = 4, seed: int = 0
) -> Preflight:
    """The preflight of a job: of its arm with the most teachers, and of that the last teacher.

    Args:
        settings: of the job.
        images: how many validation images are looked at.
        steps: how many training steps are timed, after one that is not.
        seed: of student and batches.
    """
    device = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.precision)
    preflight = Preflight(settings, device)
    arm = max(settings.arms, key=lambda name: (len(ARMS[name].teachers), sum(ARMS[name].lengths)))
    torch.manual_seed(seed)
    try:
        train, val = datasets(settings.data)
        samples = [val[i] for i in range(min(images, len(val)))]
        student = detector_for(settings.student, settings.data, num_classes=len(train.classes))
    except (ValueError, OSError) as error:
        preflight.add("data and student", str(error), "refused")
        return preflight
    _report_job(preflight, train, val, arm)
    _report_student(preflight, student)
    teachers = [_report_teacher(preflight, name, val, images) for name in ARMS[arm].teachers]
    if preflight.reasons or None in teachers:
        return preflight
    distiller = Distiller(student.to(preflight.accelerator.device))
    if teachers:
        distiller = _report_method(preflight, student, teachers[-1], samples)
    if not preflight.reasons:
        data = batches(train, settings.data, batch_size=settings.train.batch_size, seed=seed)
        _report_steps(preflight, distiller, data, steps=steps, arm=arm)
    return preflight


def _report_job(preflight: Preflight, train: Any, val: Any, arm: str) -> None:
    job = preflight.settings.train
    text = f"{len(train)} training and {len(val)} validation images, {len(train.classes)} classes"
    preflight.add("data", text)
    total, size = round(sum(ARMS[arm].lengths) * job.steps), job.batch_size
    text = f"{arm}, {total} steps of {size} images, {total * size / len(train):.1f} epochs"
    preflight.add("job", f"{text}; {scaled_rate(job) or f'peak learning rate {job.lr:g}'}")


def _report_student(preflight: Preflight, student: nn.Module) -> None:
    weights, kind = preflight.settings.student.weights, preflight.settings.data.kind
    count = f"{parameter_count(student) / 1e6:.1f} M parameters"
    trained = f"{parameter_count(student, trainable=True) / 1e6:.1f} M trained"
    origin = f"trunk from {weights}, every tensor found" if weights else "trunk from scratch"
    verdict = "ok" if weights or kind == "scenes" else "note"
    preflight.add("student", f"{type(student).__name__}, {count}, {trained}; {origin}", verdict)


def _report_teacher(preflight: Preflight, name: str, val: Any, images: int) -> nn.Module | None:
    """The teacher `name`, loaded strictly and tried on the data; None when there is none yet."""
    part, file = f"teacher {name}", getattr(preflight.settings, f"{name}_file")
    if not file:
        preflight.add(part, f"{name}_file is empty: the teacher will be trained first", "note")
        return None
    try:
        require(f"{name}_file", file)
        model, metadata = load_detector(file)
    except (ValueError, OSError) as error:
        preflight.add(part, str(error), "refused")
        return None
    count = f"{parameter_count(model) / 1e6:.1f} M parameters"
    preflight.add(part, f"{file}: every tensor in its place, {count}")
    model.to(preflight.accelerator.device)
    if not (hasattr(model, "roi_heads") or hasattr(model, "head")):
        preflight.add(part, "has no head: its AP cannot be tried", "note")
    elif list(metadata["classes"]) != list(val.classes):
        text = "detects other classes than the data have: its AP cannot be tried"
        preflight.add(part, text, "note")
    else:
        stated = (metadata.get("metrics") or {}).get("AP", math.nan)
        ap = evaluate(model, val, preflight.settings.data, limit=images)["AP"]
        low = ap < (0.02 if math.isnan(stated) else stated / 2)
        text = f"AP {100 * ap:.1f} on {images} validation images, its file states "
        text += "none" if math.isnan(stated) else f"{100 * stated:.1f}"
        text += ": wrong weights or normalisation?" if low else ""
        preflight.add(part, text, "refused" if low else "ok")
    return model


def _report_method(
    preflight: Preflight, student: nn.Module, teacher: nn.Module, samples: list[tuple[Any, Any]]
) -> Distiller | None:
    """The distiller of the job; None when its method does not fit the detectors."""
    settings, device = preflight.settings, preflight.accelerator.device
    try:
        if settings.inherit != "no":
            copied = inherit(student, teacher, settings.inherit.split("+"))
            layers = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in copied))
            preflight.add("inherited", f"{len(copied)} tensors of the {settings.inherit}: {layers}")
        built = method(settings, student, teacher)
    except ValueError as error:
        preflight.add("method", str(error), "refused")
        return None
    images, targets = send_to_device(tuple(map(list, zip(*samples, strict=True))), device)
    levels = collect_features(student, teacher, list(zip(images, targets, strict=True)))
    _report_levels(preflight, levels, built.pairs)
    return Distiller(student, teacher, built).to(device)


def _report_levels(
    preflight: Preflight, levels: tuple[Any, Any], pairs: list[tuple[int, int]]
) -> None:
    keys, rows = ("mean", "sd", "dead"), []
    for stride, other in pairs:
        student, teacher = level_statistics(levels[0][stride]), level_statistics(levels[1][other])
        cells = [f"{statistics[key]:.2g}" for statistics in (student, teacher) for key in keys]
        rows.append([str(stride), *cells, f"{teacher['constant']:.2f}"])
        part = f"stride {stride}"
        if not (math.isfinite(student["sd"]) and math.isfinite(teacher["sd"])):
            preflight.add(part, "features are not finite", "refused")
        elif teacher["dead"] > 0.5:
            share = f"{teacher['dead']:.0%}"
            preflight.add(part, f"{share} of the teacher's channels never change", "note")
        elif teacher["constant"] > CONSTANT:
            text = "the teacher shows nearly the same picture for every image; leave it out with "
            text += f"method.strides={','.join(str(s) for s, _ in pairs if s != stride)}"
            preflight.add(part, text, "note")
    header = [f"{who} {key}" for who in ("student", "teacher") for key in keys]
    preflight.levels = markdown_table(["stride", *header, "teacher constant"], rows)


def _report_steps(
    preflight: Preflight, distiller: Distiller, data: Any, *, steps: int, arm: str
) -> None:
    """Balance, speed and memory of steps that `fit` makes, as it will make them in the job."""
    settings, world = preflight.settings, preflight.accelerator
    accumulate, size = settings.engine.accumulate, settings.train.batch_size
    each = size // world.num_processes // accumulate
    try:
        numbers = _measure(preflight, distiller, data, steps)
    except torch.cuda.OutOfMemoryError:
        text = f"{each} images at a time do not fit; try engine.accumulate={2 * accumulate}"
        preflight.add("memory", text, "refused")
        return
    except (ValueError, FloatingPointError) as error:
        preflight.add("steps", str(error), "refused")
        return
    hours = sum(ARMS[arm].lengths) * settings.train.steps * size / numbers["images_s"] / 3600
    preflight.numbers |= numbers | {"hours": hours}
    text = f"{numbers['images_s']:.2f} images/s, {numbers['waiting']:.0%} of the time "
    text += f"waiting for data; about {hours:.1f} hours for {arm}, evaluations not counted"
    preflight.add("speed", text, "note" if numbers["waiting"] > 0.05 else "ok")
    if numbers["peak_gib"]:
        total = torch.cuda.get_device_properties(world.device).total_memory / 2**30
        peak = f"{numbers['peak_gib']:.1f} of {total:.0f} GiB"
        preflight.add("memory", f"{peak}, {each} images at a time")


def _measure(preflight: Preflight, distiller: Distiller, data: Any, steps: int) -> dict[str, float]:
    """What `throughput` measures; before it the balance of the losses is reported."""
    settings, world = preflight.settings, preflight.accelerator
    job, teachers = settings.train, [distiller.teacher] if distiller.teacher is not None else []
    prepare(settings.engine, [distiller.student, *teachers])
    if teachers:
        share = next(data.iterate(0, world.process_index, world.num_processes))
        batch = send_to_device(next(parts(share, settings.engine.accumulate)), world.device)
        _report_balance(preflight, loss_balance(distiller, batch, world.autocast))
    optimizer = make_optimizer(distiller, lr=job.peak, **optimizer_options(job))
    plan = schedule(job, steps=steps + 1, total=max(job.steps, steps + 1))
    options = {"clip": job.clip, "accumulate": settings.engine.accumulate}
    return throughput(distiller, optimizer, data, plan, accelerator=world, **options)


def _report_balance(preflight: Preflight, numbers: dict[str, float]) -> None:
    preflight.numbers |= numbers
    ratio, far = numbers["ratio"], not 1 / 3 < numbers["ratio"] / BALANCE < 3
    text = f"at the first step distillation is {ratio:.2g} times the task loss; gradients "
    text += f"on the backbone {numbers['gradient_ratio']:.2g} to 1, cosine {numbers['cosine']:.2f}"
    if far:
        factor = preflight.settings.method.factor * BALANCE / ratio
        text += f"; method.factor={factor:.2g} would give the {BALANCE} of the scenes"
    verdict = "note" if far else "ok"
    preflight.add("balance", text, verdict if math.isfinite(ratio) else "refused")
