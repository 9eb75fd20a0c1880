"""Jobs: `dfmsd train`, `preflight`, `distill`, `experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from dfmsd.terminal import metrics_line

Preset = Annotated[
    Positional[
        Literal[
            "scenes",
            "photos",
            "faster_rcnn_r50_swin_sal",
            "retinanet_r50_swin_sal",
            "retinanet_r50_from_faster_rcnn_v2",
            "fcos_r50",
        ]
    ],
    arg(help="the job"),
]
Overrides = Annotated[
    Positional[tuple[str, ...]],
    arg(metavar="KEY=VALUE …", help="settings, e.g. scale=quick seeds=0,1 train.lr=1e-3"),
]


def train(
    preset: Preset,
    detector: Positional[Literal["weak", "strong", "student"]],
    overrides: Overrides = (),
    /,
    save: Path | None = None,
    seed: int = 0,
) -> None:
    """Train one detector of a preset without distillation: a teacher, or the student.

    Args:
        preset: the job.
        detector: which of its detectors.
        overrides: settings.
        save: also write the weights here, in half precision (for shipping).
        seed: of initialisation and data order.
    """
    from dfmsd.detectors.saved import load_detector, save_detector
    from dfmsd.experiments.presets import resolve
    from dfmsd.experiments.teachers import train_detector

    weights, metadata = train_detector(resolve(preset, overrides), detector, seed=seed)
    if save is not None:
        model, found = load_detector(weights)
        save_detector(model, save, classes=found["classes"], metrics=found["metrics"], half=True)
    print(f"{detector}: {metrics_line(metadata['metrics'])}\nweights: {save or weights}")


def distill(
    preset: Preset, overrides: Overrides = (), /, preflight: Literal["auto", "no"] = "auto"
) -> None:
    """Distil the student: every arm with every seed, each recorded; finished runs are skipped.

    Args:
        preset: the job.
        overrides: settings.
        preflight: `auto` makes it before a job of 5000 steps or more, unless it continues one.
    """
    from dfmsd.experiments.build import scaled_rate
    from dfmsd.experiments.preflight import wanted
    from dfmsd.experiments.presets import resolve
    from dfmsd.experiments.runs import execute_all, runs
    from dfmsd.experiments.tables import arms_table

    settings = resolve(preset, overrides)
    if preflight == "auto" and wanted(settings):
        _preflight(settings)
    elif line := scaled_rate(settings.train):
        print(line)
    records = execute_all(runs(settings))
    last = runs(settings)[-1]
    print(arms_table(records))
    print(f"\nrecords: {last.records}\nlast student: {last.weights}")


def preflight(preset: Preset, overrides: Overrides = (), /, images: int = 32) -> None:
    """Look at a job before it runs: files, teachers, levels, balance, memory, speed.

    Args:
        preset: the job.
        overrides: settings.
        images: how many validation images are looked at.
    """
    from dfmsd.experiments.presets import resolve

    _preflight(resolve(preset, overrides), images=images)


def _preflight(settings: Any, **options: Any) -> None:
    """Print the report of a preflight; ValueError when it refuses the job."""
    from dfmsd.experiments.preflight import examine

    report = examine(settings, **options)
    print(report)
    if report.reasons:
        raise ValueError(f"preflight refused the job, {report.reasons[0]}")


def experiment(name: Positional[str], overrides: Overrides = (), /) -> None:
    """Run an experiment: every row with every seed that has no record yet, wherever it stopped.

    Args:
        name: which one; a wrong name lists them.
        overrides: settings, e.g. jobs=2.
    """
    from dfmsd.experiments.runs import execute_experiment, experiment_runs, without_record

    listed = experiment_runs(name, overrides)
    had = len(listed) - len(without_record(listed))
    execute_experiment(name, overrides)
    print(f"{name}: {len(listed)} runs recorded beside {listed[0].records}, {had} of them before")


COMMANDS: dict[str, Any] = {
    command.__name__: command for command in (train, preflight, distill, experiment)
}
