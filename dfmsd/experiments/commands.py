"""`dfmsd train`, `preflight`, `distill`, `experiment`, `evaluate`, `predict`, `config`, …"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from dfmsd.experiments.presets import PRESETS, resolve
from dfmsd.experiments.settings import as_text, flat

Preset = Annotated[Positional[Literal[*PRESETS]], arg(help="the job")]
_SETTINGS = arg(metavar="KEY=VALUE …", help="settings, e.g. scale=quick seeds=0,1 train.lr=1e-3")
Overrides = Annotated[Positional[tuple[str, ...]], _SETTINGS]
_STRANGE = "a record is not as dfmsd writes it"


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
        detector: which of its detectors.
        save: also write the weights here, in half precision (for shipping).
        seed: of initialisation and data order.
    """
    from dfmsd.detectors.saved import load_detector, save_detector
    from dfmsd.experiments.records import check_writable
    from dfmsd.experiments.teachers import train_detector

    if save is not None:
        check_writable(save)
    weights, metadata = train_detector(resolve(preset, overrides), detector, seed=seed)
    if save is not None:
        model, stored = load_detector(weights)
        save_detector(model, save, classes=stored["classes"], metrics=stored["metrics"], half=True)
    print(f"{detector}: {_metrics_line(metadata['metrics'])}\nweights: {save or weights}")


def distill(
    preset: Preset, overrides: Overrides = (), /, preflight: Literal["auto", "no"] = "auto"
) -> None:
    """Distil the student: every arm with every seed, each recorded; finished runs are skipped.

    Args:
        preflight: `auto` makes it before a job of 5000 steps or more, unless it continues one.
    """
    from dfmsd.detectors.files import one_line_errors
    from dfmsd.experiments.build import scaled_rate
    from dfmsd.experiments.preflight import is_due
    from dfmsd.experiments.runs import execute_all, runs
    from dfmsd.experiments.tables import arms_table

    settings = resolve(preset, overrides)
    if preflight == "auto" and is_due(settings):
        _preflight(settings)
    elif line := scaled_rate(settings.train):
        print(line)
    queue = runs(settings)
    records = execute_all(queue, retrain=True)
    with one_line_errors(queue[-1].records, _STRANGE):
        lines = arms_table(records)
    print(f"{lines}\n\nrecords: {queue[-1].records}\nlast student: {queue[-1].weights}")


def preflight(preset: Preset, overrides: Overrides = (), /, images: int = 32) -> None:
    """Look at a job before it runs: files, teachers, levels, balance, memory, speed.

    Args:
        images: how many validation images are looked at.
    """
    _preflight(resolve(preset, overrides), images=images)


def _preflight(settings: Any, **options: Any) -> None:
    """Print the report of a preflight; ValueError when it refuses the job."""
    from dfmsd.experiments.preflight import run_preflight

    report = run_preflight(settings, **options)
    print(report)
    if report.reasons:
        raise ValueError(f"preflight refused the job, {report.reasons[0]}")


def experiment(name: Positional[str], overrides: Overrides = (), /, rows: str = "") -> None:
    """Run an experiment: every row with every seed that has no record yet, wherever it stopped.

    Args:
        name: which one; a wrong name lists them.
        rows: some of its rows alone, e.g. none,pkd.
    """
    from dfmsd.experiments.runs import execute_all, experiment_runs, without_record

    queue = experiment_runs(name, overrides, rows.split(",") if rows else ())
    missing = without_record(queue)
    if missing:
        execute_all(missing, retrain=True)
    before = len(queue) - len(missing)
    print(f"{name}: {len(queue)} runs recorded beside {queue[0].records}, {before} of them before")


def evaluate(
    root: Positional[Path],
    /,
    detections: Path | None = None,
    checkpoint: Path | None = None,
    split: Literal["train", "val"] = "val",
    size: int | None = None,
    exif: Literal["turn", "ignore"] = "turn",
) -> None:
    """COCO AP of a detections file, or of a saved detector, on a COCO-format folder.

    Args:
        root: the folder with images and annotations.
        detections: COCO results (a JSON list), or an annotation file, whose boxes then score 1.
        checkpoint: a detector saved by dfmsd.
        split: `train` or `val`.
        size: longest side to which images are reduced for the detector, pixels; as in training.
        exif: for the detector, EXIF turns that the stated size does not settle.
    """
    from dfmsd.data.annotations import read_detections
    from dfmsd.data.coco import CocoDataset
    from dfmsd.detectors.saved import load_detector, shown_size
    from dfmsd.training.evaluation import coco_metrics, evaluate_detector

    if (detections is None) == (checkpoint is None):
        raise ValueError("give either --detections FILE or --checkpoint FILE")
    if detections is not None and size is not None:
        raise ValueError(f"--size {size}: goes with --checkpoint, detections have their size")
    if checkpoint is not None:
        model, metadata = load_detector(checkpoint, head=True)
        size = shown_size(metadata) if size is None else size
    dataset = CocoDataset(root, split, max_size=size, exif=exif)
    if detections is not None:
        truth, ids = dataset.truth(), dataset.category_ids
        metrics = coco_metrics(truth, read_detections(detections, truth, category_ids=ids))
    else:
        if list(metadata["classes"]) != list(dataset.classes):
            detected, present = (", ".join(c) for c in (metadata["classes"], dataset.classes))
            raise ValueError(f"{checkpoint}: detects {detected}, but {root} has {present}")
        metrics = evaluate_detector(model, dataset)
    print(_metrics_line(metrics))


def _metrics_line(metrics: dict[str, float | None]) -> str:
    """The metrics on one line; a size class without objects shows as –."""
    known = {key: value is not None and value == value for key, value in metrics.items()}
    return "  ".join(f"{k} {v:.3f}" if known[k] else f"{k} –" for k, v in metrics.items())


def predict(
    images: Positional[tuple[Path, ...]],
    /,
    checkpoint: Path,
    out: Path = Path("predictions"),
    score: float = 0.4,
    size: int | None = None,
) -> None:
    """Draw the detections on images.

    Args:
        images: image files.
        checkpoint: a detector saved by dfmsd.
        out: folder of the drawings.
        score: lowest score that is drawn.
        size: longest side to which images are reduced, pixels; as in training.
    """
    import torch

    from dfmsd.data.images import read_image
    from dfmsd.detectors.saved import load_detector, shown_size
    from dfmsd.viz import detections_figure

    if not images:
        raise ValueError("predict: name at least one image")
    targets = drawings(images, out)
    model, metadata = load_detector(checkpoint, head=True)
    size = shown_size(metadata) if size is None else size
    pixels = [read_image(path, max_size=size) for path in images]
    out.mkdir(parents=True, exist_ok=True)
    for path, image, target in zip(images, pixels, targets, strict=True):
        with torch.no_grad():
            detections = model([image])
        count = int((detections[0]["scores"] >= score).sum())
        figure = detections_figure([image], detections, classes=metadata["classes"], score=score)
        figure.savefig(target)
        print(f"{path}: {count} objects of score ≥ {score}, drawn in {target}")


def drawings(images: Sequence[Path], out: Path) -> list[Path]:
    """The drawings' files: NAME.png in `out`, then NAME-2.png; ValueError if one is an image."""
    targets: list[Path] = []
    for path in images:
        names = (path.stem if n == 1 else f"{path.stem}-{n}" for n in itertools.count(1))
        targets.append(next(t for t in (out / f"{name}.png" for name in names) if t not in targets))
    for target in targets:
        if target.resolve() in {path.resolve() for path in images}:
            raise ValueError(f"{target}: is one of the images; choose another folder with --out")
    return targets


def config(preset: Preset, overrides: Overrides = (), /) -> None:
    """Print every setting of a preset as `key=value`."""
    for key, value in flat(resolve(preset, overrides)).items():
        print(f"{key}={as_text(value)}")


def table(records: Positional[Path] = Path("data/results/scenes.jsonl"), /) -> None:
    """Print the tables of a records file: per arm, or per row when it is an experiment's.

    Args:
        records: JSON-lines file of records; an experiment takes those beside it into account.
    """
    from dfmsd.detectors.files import CheckpointError, one_line_errors
    from dfmsd.experiments.grids import EXPERIMENTS
    from dfmsd.experiments.records import read_folder, read_records
    from dfmsd.experiments.results import left_out, newest
    from dfmsd.experiments.tables import arms_table, experiment_report

    if not records.exists():
        raise FileNotFoundError(f"{records}: no such file; `dfmsd distill` names the one it writes")
    own = records.stem not in EXPERIMENTS
    rows = read_records(records) if own else read_folder(records.parent)
    with one_line_errors(records, _STRANGE):
        if own and not newest(rows):
            raise CheckpointError("holds no record of `dfmsd distill`")
        report = (
            [arms_table(rows), left_out(rows)] if own else [experiment_report(records.stem, rows)]
        )
    print(*filter(None, report), sep="\n")


def info() -> None:
    """Print the environment as records hold it, and where dfmsd and its project's folder are."""
    from dfmsd.experiments.records import environment

    place = {"dfmsd": str(Path(__file__).parents[1]), "folder": str(Path.cwd())}
    print(json.dumps(environment() | {"paths": place}, indent=2))


_COMMANDS = (train, preflight, distill, experiment, evaluate, predict, config, table, info)
COMMANDS = {command.__name__: command for command in _COMMANDS}
