"""Before a long job: does everything load, teach, fit into memory and finish in time?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from dfmsd.detectors.build import inherit, parameter_count
from dfmsd.detectors.saved import load_detector
from dfmsd.distill import Distiller
from dfmsd.experiments import build
from dfmsd.experiments.presets_coco import require
from dfmsd.experiments.profile import collect_features, level_statistics, loss_balance, throughput
from dfmsd.experiments.records import markdown_table
from dfmsd.experiments.runs import Run, runs
from dfmsd.experiments.settings import ARMS, Settings
from dfmsd.experiments.train import optimizer_options, prepare
from dfmsd.stages import begin_stage
from dfmsd.training.optim import make_optimizer
from dfmsd.training.steps import parts

LONG = 5000  # steps from which `dfmsd distill` makes the preflight by itself
BALANCE = 4.1  # weighted distillation over task loss at the first step, of DFMSD on the scenes
CONSTANT = 0.9  # constant share (`level_statistics`) from which a level has nothing to teach


@dataclass
class Preflight:
    """What was seen of a job: lines of (part, verdict, text), a table, and what was measured."""

    settings: Settings
    accelerator: Accelerator
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    levels: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, text: str, verdict: str = "ok") -> None:
        """Add one finding: "ok", a "note", or why the job is "refused"."""
        self.findings.append((part, verdict, text))

    @contextmanager
    def refuse(self, part: str) -> Iterator[None]:
        """Context that ends at an error, which becomes a reason against the job."""
        try:
            yield
        except (ValueError, OSError, FloatingPointError, torch.cuda.OutOfMemoryError) as error:
            self.add(part, str(error), "refused")

    @property
    def run(self) -> Run:
        """The run that is looked at: of those with the most teachers, the longest."""
        return max(runs(self.settings), key=lambda run: (len(ARMS[run.arm].teachers), run.steps))

    @property
    def reasons(self) -> list[str]:
        """Why the job should not start; empty when it may."""
        return [f"{part}: {text}" for part, verdict, text in self.findings if verdict == "refused"]

    def __str__(self) -> str:
        """The report for a terminal."""
        lines = [f"{verdict:9}{part}: {text}" for part, verdict, text in self.findings]
        return "\n".join(lines) + (f"\n\n{self.levels}" if self.levels else "")

    def check_job(self, train: Any, val: Any, student: nn.Module) -> None:
        """Counts and lengths of data, job and student."""
        job, run, weights = self.settings.train, self.run, self.settings.student.weights
        text = f"{len(train)} training and {len(val)} validation images"
        self.add("data", f"{text}, {len(train.classes)} classes")
        epochs = run.steps * job.batch_size / len(train)
        text = f"{run.arm}, {run.steps} steps of {job.batch_size} images, {epochs:.1f} epochs"
        rate = build.scaled_rate(job) or f"peak learning rate {job.lr:g}"
        self.add("job", f"{text}; {rate}")
        whole, trained = (parameter_count(student, trainable=t) / 1e6 for t in (False, True))
        text = f"{type(student).__name__}, {whole:.1f} M parameters, {trained:.1f} M trained; trunk"
        origin = f"from {weights}, every tensor found" if weights else "from scratch"
        note = not weights and self.settings.data.kind != "scenes"
        self.add("student", f"{text} {origin}", "note" if note else "ok")

    def check_teacher(self, name: str, val: Any, images: int) -> nn.Module | None:
        """The teacher `name`, loaded strictly and tried on the data; None without one."""
        part, file = f"teacher {name}", getattr(self.settings, f"{name}_file")
        if not file:
            self.add(part, f"{name}_file is empty: the teacher will be trained first", "note")
            return None
        require(f"{name}_file", file)
        model, metadata = load_detector(file)
        count = f"{parameter_count(model) / 1e6:.1f} M parameters"
        self.add(part, f"{file}: every tensor in its place, {count}")
        model.to(self.accelerator.device)
        unfit = "refused" if self.settings.method.name == "pseudo_labels" else "note"
        if not (hasattr(model, "roi_heads") or hasattr(model, "head")):
            self.add(part, "has no head: its AP cannot be tried", unfit)
        elif list(metadata["classes"]) != list(val.classes):
            text = "detects other classes than the data have: its AP cannot be tried"
            self.add(part, text, unfit)
        else:
            stated = (metadata.get("metrics") or {}).get("AP", math.nan)
            ap = build.evaluate(model, val, self.settings.data, limit=images)["AP"]
            low = ap < (0.02 if math.isnan(stated) else stated / 2)
            text = f"AP {100 * ap:.1f} on {images} validation images, its file states "
            text += "none" if math.isnan(stated) else f"{100 * stated:.1f}"
            text += ": wrong weights or normalisation?" if low else ""
            self.add(part, text, "refused" if low else "ok")
        return model

    def check_method(
        self, student: nn.Module, teachers: dict[str, nn.Module], samples: Any, batches: Any
    ) -> Distiller:
        """The distiller with which the last stage begins; ValueError when its method cannot."""
        settings, device = self.settings, self.accelerator.device
        if settings.inherit != "no":
            teacher = teachers[settings.inherit_from]
            copied = inherit(student, teacher, settings.inherit.split("+"))
            layers = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in copied))
            self.add("inherited", f"{len(copied)} tensors of the {settings.inherit}: {layers}")
        *before, stage = build.arm_stages(settings, self.run.arm, student, teachers)
        how = {"accelerator": self.accelerator, "accumulate": settings.engine.accumulate}
        distiller = begin_stage(student, stage, batches, first=not before, **how)
        if hasattr(stage.method, "pairs"):
            levels = collect_features(distiller, send_to_device(samples, device))
            self.check_levels(levels, stage.method.pairs)
        return distiller

    def check_levels(self, levels: tuple[Any, Any], pairs: list[tuple[int, int]]) -> None:
        """What the features of the levels tell, and their table."""
        keys, rows = ("mean", "sd", "dead"), []
        for stride, other in pairs:
            both = level_statistics(levels[0][stride]), level_statistics(levels[1][other])
            (student, teacher), part = both, f"stride {stride}"
            cells = [f"{values[key]:.2g}" for values in both for key in keys]
            rows.append([stride, *cells, f"{teacher['constant']:.2f}"])
            if not math.isfinite(student["sd"] + teacher["sd"]):
                self.add(part, "features are not finite", "refused")
            elif (dead := teacher["dead"]) > 0.5:
                self.add(part, f"{dead:.0%} of the teacher's channels never change", "note")
            elif teacher["constant"] > CONSTANT:
                others = ",".join(str(s) for s, _ in pairs if s != stride)
                text = "the teacher shows nearly the same picture for every image"
                self.add(part, f"{text}; leave it out with method.strides={others}", "note")
        header = [f"{who} {key}" for who in ("student", "teacher") for key in keys]
        self.levels = markdown_table(["stride", *header, "teacher constant"], rows)

    def check_steps(self, distiller: Distiller, batches: Any, steps: int) -> None:
        """Balance, speed and memory of steps that `fit` makes, as it will make them in the job."""
        world, run, size = self.accelerator, self.run, self.settings.train.batch_size
        accumulate = self.settings.engine.accumulate
        each = f"{size // world.num_processes // accumulate} images at a time"
        try:
            numbers = self._measure(distiller, batches, steps)
        except torch.cuda.OutOfMemoryError:
            hint = f"try engine.accumulate={2 * accumulate}"
            self.add("memory", f"{each} do not fit; {hint}", "refused")
            return
        hours = run.steps * size / numbers["images_s"] / 3600
        self.numbers |= numbers | {"hours": hours}
        text = f"{numbers['images_s']:.2f} images/s, {numbers['waiting']:.0%} of the time waiting "
        text += f"for data; about {hours:.1f} hours for {run.arm}, evaluations not counted"
        self.add("speed", text, "note" if numbers["waiting"] > 0.05 else "ok")
        if numbers["peak_gib"]:
            total = torch.cuda.get_device_properties(world.device).total_memory / 2**30
            self.add("memory", f"{numbers['peak_gib']:.1f} of {total:.0f} GiB, {each}")

    def _measure(self, distiller: Distiller, batches: Any, steps: int) -> dict[str, float]:
        """What `throughput` measures; before it the balance of the losses is reported."""
        settings, world, job = self.settings, self.accelerator, self.settings.train
        prepare(settings.engine, [distiller.student, distiller.teacher])
        if distiller.weights:
            share = next(batches.iterate(0, world.process_index, world.num_processes))
            batch = send_to_device(next(parts(share, settings.engine.accumulate)), world.device)
            self.check_balance(loss_balance(distiller, batch, world.autocast))
        optimizer = make_optimizer(distiller, lr=job.peak, **optimizer_options(job))
        plan = build.schedule(job, steps=steps + 1, total=max(job.steps, steps + 1))
        options = {"clip": job.clip, "accumulate": settings.engine.accumulate}
        return throughput(distiller, optimizer, batches, plan, accelerator=world, **options)

    def check_balance(self, numbers: dict[str, float]) -> None:
        """How distillation and task weigh against each other."""
        self.numbers |= numbers
        ratio, verdict = numbers["ratio"], "ok"
        text = f"at the first step distillation is {ratio:.2g} times the task loss; gradients on "
        text += f"the backbone {numbers['gradient_ratio']:.2g} to 1, cosine {numbers['cosine']:.2f}"
        if ratio == 0:
            text, verdict = "distillation weighs nothing", "note"
        elif not 1 / 3 < ratio / BALANCE < 3:
            factor = self.settings.method.factor * BALANCE / ratio
            text += f"; method.factor={factor:.2g} would give the {BALANCE} of the scenes"
            verdict = "note" if math.isfinite(ratio) else "refused"
        self.add("balance", text, verdict)


def is_due(settings: Settings) -> bool:
    """Whether a job is long and has not begun, so that a preflight is due, on every process."""
    begun = any((run.folder / "log.jsonl").exists() for run in runs(settings))
    return max(run.steps for run in runs(settings)) >= LONG and not begun


def run_preflight(settings: Settings, *, images: int = 32, steps: int = 4) -> Preflight:
    """The preflight of a job: of its arm with the most teachers, and of that the last teacher.

    It looks at `images` validation images and times `steps` training steps after one that it does
    not. Nothing is written and no teacher is trained; a fresh student takes the steps.
    """
    device = build.accelerator(settings)
    preflight, data = Preflight(settings, device), settings.data
    torch.manual_seed(0)
    teachers = {}
    with preflight.refuse("data and student"):
        train, val = build.datasets(data)
        samples = [val[i] for i in range(min(images, len(val)))]
        student = build.detector_for(settings.student, data, num_classes=len(train.classes))
        preflight.check_job(train, val, student)
        for name in dict.fromkeys([*ARMS[preflight.run.arm].teachers, *preflight.run.teachers]):
            with preflight.refuse(f"teacher {name}"):
                teachers[name] = preflight.check_teacher(name, val, images)
    if preflight.reasons or None in teachers.values():
        return preflight
    size = settings.train.batch_size
    batches = build.batches(train, data, batch_size=size, seed=0, device=device.device)
    with preflight.refuse("method"):
        distiller = preflight.check_method(student, teachers, samples, batches)
    if not preflight.reasons:
        with preflight.refuse("steps"):
            preflight.check_steps(distiller, batches, steps)
    return preflight
