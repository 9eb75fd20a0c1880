"""Before a long job: does everything load, teach, fit into memory and finish in time?

Nothing is written and no teacher is trained; a fresh student takes a few real steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from dfmsd.detectors.inheritance import inherit, listing
from dfmsd.detectors.saved import load_detector
from dfmsd.distill import Distiller
from dfmsd.experiments.build import (
    accelerator,
    batches,
    datasets,
    detector_for,
    evaluate,
    method,
    scaled_rate,
    schedule,
)
from dfmsd.experiments.presets_coco import require
from dfmsd.experiments.profile import balance, cost, level_statistics, seen_features
from dfmsd.experiments.records import markdown_table
from dfmsd.experiments.runs import runs
from dfmsd.experiments.settings import ARMS, Settings
from dfmsd.experiments.train import optimizer_options, prepare, step_options
from dfmsd.training.optim import make_optimizer
from dfmsd.training.steps import parts, to_device

LONG = 5000
"""Steps from which `dfmsd distill` makes the preflight by itself."""
BALANCE = 4.1
"""Weighted distillation over task loss at the first step, that of DFMSD on the scenes."""
CONSTANT = 0.9
"""Constant share from which a teacher's level has nothing to teach, see `level_statistics`."""

Verdict = Literal["ok", "note", "refused"]


@dataclass
class Preflight:
    """What was found: lines of (part, verdict, words), a table, and what was measured."""

    findings: list[tuple[str, Verdict, str]] = field(default_factory=list)
    levels: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, words: str, verdict: Verdict = "ok") -> None:
        """Add one finding."""
        self.findings.append((part, verdict, words))

    @property
    def reasons(self) -> list[str]:
        """Why the job should not start; empty when it may."""
        return [
            f"{part}: {words}" for part, verdict, words in self.findings if verdict == "refused"
        ]

    def __str__(self) -> str:
        """The report for a terminal."""
        lines = [f"{verdict:9}{part}: {words}" for part, verdict, words in self.findings]
        return "\n".join([*lines, *(["", self.levels] if self.levels else [])])


def examine(settings: Settings, *, images: int = 32, steps: int = 4, seed: int = 0) -> Preflight:
    """The preflight of a job: of its arm with the most teachers, and of that the last teacher.

    Args:
        settings: of the job.
        images: how many validation images are looked at.
        steps: how many training steps are timed, after one that is not.
        seed: of student and batches.
    """
    report, world = Preflight(), accelerator(settings)
    arm = max(settings.arms, key=lambda name: (len(ARMS[name].teachers), sum(ARMS[name].lengths)))
    torch.manual_seed(seed)
    try:
        data = datasets(settings.data)
        samples = [data[1][i] for i in range(min(images, len(data[1])))]
        classes = data[0].classes
        student = detector_for(settings.student, settings.data, num_classes=len(classes))
    except (ValueError, OSError) as error:
        report.add("data and student", str(error), "refused")
        return report
    _say_job(report, settings, data, arm)
    _say_student(report, settings, student)
    found = [
        _teacher(report, settings, name, data[1], images, world) for name in ARMS[arm].teachers
    ]
    if report.reasons or None in found:
        return report
    distiller = Distiller(student.to(world.device))
    if found:
        try:
            if settings.inherit != "no":
                copied = inherit(student, found[-1], settings.inherit.split("+"))
                words = f"{len(copied)} tensors of the {settings.inherit}: {listing(copied)}"
                report.add("inherited", words)
            compares = method(settings, student, found[-1])
        except ValueError as error:
            report.add("method", str(error), "refused")
            return report
        shown = to_device(tuple(map(list, zip(*samples, strict=True))), world.device)
        seen = seen_features(student, found[-1], list(zip(*shown, strict=True)))
        _say_levels(report, seen, compares.pairs)
        distiller = Distiller(student, found[-1], compares).to(world.device)
    if not report.reasons:
        train = batches(data[0], settings.data, batch_size=settings.train.batch_size, seed=seed)
        _say_steps(report, settings, distiller, train, world, steps, arm)
    return report


def wanted(settings: Settings) -> bool:
    """Whether a job is long and has not begun, so that a preflight is due, on every process."""
    lengths = [sum(ARMS[arm].lengths) * settings.train.steps for arm in settings.arms]
    begun = any((run.folder / "log.jsonl").exists() for run in runs(settings))
    return max(lengths) >= LONG and not begun


def _say_job(report: Preflight, settings: Settings, data: tuple[Any, Any], arm: str) -> None:
    train, (ours, val) = settings.train, data
    total, size = round(sum(ARMS[arm].lengths) * train.steps), train.batch_size
    words = f"{len(ours)} training and {len(val)} validation images, {len(ours.classes)} classes"
    report.add("data", words)
    words = f"{arm}, {total} steps of {size} images, {total * size / len(ours):.1f} epochs"
    report.add("job", f"{words}; {scaled_rate(train) or f'peak learning rate {train.lr:g}'}")


def _say_student(report: Preflight, settings: Settings, student: nn.Module) -> None:
    every = sum(p.numel() for p in student.parameters()) / 1e6
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad) / 1e6
    origin = settings.student.weights
    words = f"{type(student).__name__}, {every:.1f} M parameters, {trained:.1f} M trained; "
    words += f"trunk from {origin}, every tensor found" if origin else "trunk from scratch"
    report.add("student", words, "ok" if origin or settings.data.kind == "scenes" else "note")


def _teacher(
    report: Preflight, settings: Settings, name: str, dataset: Any, images: int, world: Accelerator
) -> nn.Module | None:
    """The teacher `name`, loaded strictly and tried on the data; None when there is none yet."""
    part, file = f"teacher {name}", getattr(settings, f"{name}_file")
    if not file:
        report.add(part, f"{name}_file is empty: the teacher will be trained first", "note")
        return None
    try:
        require(f"{name}_file", file)
        model, metadata = load_detector(file)
    except (ValueError, OSError) as error:
        report.add(part, str(error), "refused")
        return None
    stated = (metadata.get("metrics") or {}).get("AP", math.nan)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    report.add(part, f"{file}: every tensor in its place, {count:.1f} M parameters")
    model.to(world.device)
    if not (hasattr(model, "roi_heads") or hasattr(model, "head")):
        report.add(part, "has no head: its AP cannot be tried", "note")
    elif list(metadata["classes"]) != list(dataset.classes):
        report.add(part, "detects other classes than the data have: its AP cannot be tried", "note")
    else:
        found = evaluate(model, dataset, settings.data, limit=images)["AP"]
        low = found < (0.02 if math.isnan(stated) else stated / 2)
        words = f"AP {100 * found:.1f} on {images} validation images, its file states "
        words += "none" if math.isnan(stated) else f"{100 * stated:.1f}"
        words += ": wrong weights or normalisation?" if low else ""
        report.add(part, words, "refused" if low else "ok")
    return model


def _say_levels(report: Preflight, seen: tuple[Any, Any], pairs: list[tuple[int, int]]) -> None:
    rows = []
    for ours, theirs in pairs:
        facts = [level_statistics(seen[0][ours]), level_statistics(seen[1][theirs])]
        keys = ("mean", "sd", "dead")
        rows.append([str(ours), *(f"{fact[key]:.2g}" for fact in facts for key in keys)])
        rows[-1].append(f"{facts[1]['constant']:.2f}")
        if not all(math.isfinite(fact["sd"]) for fact in facts):
            report.add(f"stride {ours}", "features are not finite", "refused")
        elif facts[1]["dead"] > 0.5:
            words = f"{facts[1]['dead']:.0%} of the teacher's channels never change"
            report.add(f"stride {ours}", words, "note")
        elif facts[1]["constant"] > CONSTANT:
            words = "the teacher shows nearly the same picture for every image; leave it out with "
            others = ",".join(str(stride) for stride, _ in pairs if stride != ours)
            report.add(f"stride {ours}", f"{words}method.strides={others}", "note")
    names = [f"{who} {key}" for who in ("student", "teacher") for key in ("mean", "sd", "dead")]
    report.levels = markdown_table(["stride", *names, "teacher constant"], rows)


def _say_steps(
    report: Preflight,
    settings: Settings,
    distiller: Distiller,
    train: Any,
    world: Accelerator,
    steps: int,
    arm: str,
) -> None:
    """Balance, speed and memory of steps that `fit` makes, as it will make them in the job."""
    job, size, parts_ = settings.train, settings.train.batch_size, settings.engine.accumulate
    teachers = [distiller.teacher] if distiller.teacher is not None else []
    each = size // world.num_processes // parts_
    try:
        prepare(settings, distiller.student, teachers, world.device)
        if teachers:
            share = next(train.iterate(0, world.process_index, world.num_processes))
            _, first = next(parts(share, parts_))
            batch = to_device(first, world.device)
            _say_balance(report, settings, balance(distiller, batch, world.autocast))
        numbers = cost(
            distiller,
            make_optimizer(distiller, lr=job.peak, **optimizer_options(job)),
            train,
            schedule(job, steps=steps + 1, total=max(job.steps, steps + 1)),
            accelerator=world,
            **step_options(settings),
        )
    except torch.cuda.OutOfMemoryError:
        words = f"{each} images at a time do not fit; try engine.accumulate={2 * parts_}"
        report.add("memory", words, "refused")
        return
    except (ValueError, FloatingPointError) as error:
        report.add("steps", str(error), "refused")
        return
    report.numbers |= numbers
    total = sum(ARMS[arm].lengths) * job.steps * size
    hours = report.numbers["hours"] = total / numbers["images_s"] / 3600
    words = f"{numbers['images_s']:.2f} images/s, {numbers['waiting']:.0%} of the time "
    words += f"waiting for data; about {hours:.1f} hours for {arm}, evaluations not counted"
    report.add("speed", words, "note" if numbers["waiting"] > 0.05 else "ok")
    if numbers["peak_gib"]:
        whole = torch.cuda.get_device_properties(world.device).total_memory / 2**30
        peak = f"{numbers['peak_gib']:.1f} of {whole:.0f} GiB"
        report.add("memory", f"{peak}, {each} images at a time")


def _say_balance(report: Preflight, settings: Settings, found: dict[str, float]) -> None:
    report.numbers |= found
    factor = settings.method.factor * BALANCE / found["ratio"]
    words = (
        f"at the first step distillation is {found['ratio']:.2g} times the task loss; gradients "
    )
    words += f"on the backbone {found['gradient_ratio']:.2g} to 1, cosine {found['cosine']:.2f}"
    far = not 1 / 3 < found["ratio"] / BALANCE < 3
    words += f"; method.factor={factor:.2g} would give the {BALANCE} of the scenes" if far else ""
    verdict = "note" if far else "ok"
    report.add("balance", words, verdict if math.isfinite(found["ratio"]) else "refused")
