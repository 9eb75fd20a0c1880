"""`dfmsd` = `python -m dfmsd`: check data, train, distil, evaluate, predict, and print tables.

torch is imported inside the commands that need it, so that `dfmsd --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from dfmsd.data import commands as cli_data
from dfmsd.data.commands import Split
from dfmsd.detectors import commands as cli_models
from dfmsd.experiments import commands as cli_jobs
from dfmsd.experiments.commands import Overrides, Preset
from dfmsd.terminal import drawings, metrics_line, run


def evaluate(
    root: Positional[Path],
    /,
    detections: Path | None = None,
    checkpoint: Path | None = None,
    split: Split = "val",
    size: int | None = None,
) -> None:
    """COCO AP of a detections file, or of a saved detector, on a COCO-format folder.

    Args:
        root: the folder with images and annotations.
        detections: COCO results (a JSON list), or an annotation file, whose boxes then score 1.
        checkpoint: a detector saved by dfmsd.
        split: `train` or `val`.
        size: longest side to which images are reduced for the detector, pixels.
    """
    from dfmsd.data.coco import CocoDataset
    from dfmsd.training.evaluation import coco_metrics, evaluate_detector, read_detections

    if (detections is None) == (checkpoint is None):
        raise ValueError("give either --detections FILE or --checkpoint FILE")
    if detections is not None and size is not None:
        raise ValueError(f"--size {size}: goes with --checkpoint, detections have their size")
    dataset = CocoDataset(root, split, max_size=size)
    if detections is not None:
        truth = dataset.truth()
        found = read_detections(detections, truth, category_ids=dataset.category_ids)
        metrics = coco_metrics(truth, found)
    else:
        from dfmsd.detectors.saved import load_detector

        model, metadata = load_detector(checkpoint, head=True)
        if list(metadata["classes"]) != list(dataset.classes):
            detected, present = (", ".join(c) for c in (metadata["classes"], dataset.classes))
            raise ValueError(f"{checkpoint}: detects {detected}, but {root} has {present}")
        metrics = evaluate_detector(model, dataset)
    print(metrics_line(metrics))


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
        size: longest side to which images are reduced, pixels.
    """
    import torch

    from dfmsd.data.images import read_image
    from dfmsd.detectors.saved import load_detector
    from dfmsd.viz import detections_figure

    if not images:
        raise ValueError("predict: name at least one image")
    targets = drawings(images, out)
    model, metadata = load_detector(checkpoint, head=True)
    pixels = [read_image(path, max_size=size) for path in images]
    out.mkdir(parents=True, exist_ok=True)
    for path, image, target in zip(images, pixels, targets, strict=True):
        with torch.no_grad():
            found = model([image])
        kept = found[0]["scores"] >= score
        shown = {"classes": metadata["classes"], "score": score, "columns": 1}
        figure = detections_figure([image], found, **shown)
        figure.savefig(target)
        print(f"{path}: {int(kept.sum())} objects of score ≥ {score}, drawn in {target}")


def config(preset: Preset, overrides: Overrides = (), /) -> None:
    """Print every setting of a preset as `key=value`.

    Args:
        preset: the job.
        overrides: settings.
    """
    from dfmsd.experiments.presets import resolve
    from dfmsd.experiments.settings import flat

    for key, value in flat(resolve(preset, overrides)).items():
        print(f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}")


def table(records: Positional[Path] = Path("data/results/scenes.jsonl"), /) -> None:
    """Print the tables of a records file: per arm, or per row when it is an experiment's.

    Args:
        records: JSON-lines file of records; an experiment takes those beside it into account.
    """
    from dfmsd.experiments.grids import EXPERIMENTS
    from dfmsd.experiments.records import read_folder, read_records
    from dfmsd.experiments.results import newest
    from dfmsd.experiments.tables import arms_table, experiment_report

    if not records.exists():
        raise FileNotFoundError(f"{records}: no such file; `dfmsd distill` names the one it writes")
    if records.stem in EXPERIMENTS:
        print(experiment_report(records.stem, read_folder(records.parent)))
        return
    found = read_records(records)
    if not newest(found):
        raise ValueError(f"{records}: holds no record of `dfmsd distill`")
    print(arms_table(found))


COMMANDS: dict[str, Any] = (
    cli_jobs.COMMANDS
    | {command.__name__: command for command in (evaluate, predict, config, table)}
    | cli_models.COMMANDS
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a mistake gives one line on standard error and exit status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["data"]:
        run(cli_data.COMMANDS, arguments[1:], prog="dfmsd data", description=cli_data.__doc__)
    else:
        commands = {"data": cli_data.data} | COMMANDS
        run(commands, arguments, prog="dfmsd", description=__doc__.splitlines()[0])


if __name__ == "__main__":
    main()
