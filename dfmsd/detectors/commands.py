"""`dfmsd import-…`: published detectors as teachers, each written once as a file of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

Triple = tuple[float, float, float]
_WRITTEN = "written: {0}; a preset takes it by strong_file={0} or weak_file={0}"
_UNNAMED = ", without names: a teacher only; --classes makes it good for evaluate and predict"


def import_mmdet(
    file: Positional[Path],
    /,
    out: Path | None = None,
    style: Literal["pytorch", "caffe"] | None = None,
    source: Literal["input", "output"] | None = None,
    relu: bool | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    order: Literal["rgb", "bgr"] | None = None,
    prefix: str = "",
) -> None:
    """Turn a checkpoint of mmdetection (Swin, ResNet, ResNeXt with FPN) into a teacher.

    Args:
        file: the checkpoint.
        out: the teacher's file; FILE with the ending `.safetensors` unless given.
        style: of a ResNet: stride in the 3x3 or in the first 1x1 convolution.
        source: what the first level on top reads: the trunk's last map or the pyramid's.
        relu: ReLU before the second level on top.
        mean: of the pixels, three numbers in 0..255.
        std: of the pixels, three numbers in 0..255.
        order: of the channels it was trained with.
        prefix: takes the tensors whose names begin so, of several models in the file.
    """
    from dfmsd.detectors.mmdet.load import load_mmdet
    from dfmsd.detectors.saved import save_detector

    given = {"style": style, "source": source, "relu": relu, "prefix": prefix}
    out = _output(out or file.with_suffix(".safetensors"), file)
    teacher = load_mmdet(file, mean=mean, std=std, order=order, **given)
    save_detector(teacher, out, classes=[], source=file.name, report=teacher.report)
    print(json.dumps({"recipe": teacher.recipe["mmdet"], "report": teacher.report}))
    print(_WRITTEN.format(out))


def import_torchvision(
    name: Positional[str],
    /,
    weights: Path | None = None,
    out: Path | None = None,
    classes: tuple[str, ...] = (),
    prefix: str = "",
) -> None:
    """Turn a detector of torchvision, of COCO or of your own classes, into a teacher.

    Args:
        name: e.g. fasterrcnn_resnet50_fpn_v2; without `_v2` the norms are frozen and not taken.
        weights: its weights, as published or as a training script saves them; else from the hub.
        out: the teacher's file; NAME.safetensors here unless given.
        classes: their names in order, without the background, if they are not COCO's.
        prefix: takes the tensors whose names begin so, of several models in the file.
    """
    from torchvision.models import get_model_weights

    from dfmsd.detectors.saved import load_stock, save_detector

    out = _output(out or Path(f"{name}.safetensors"), weights)
    model, line = load_stock(name, weights, prefix=prefix)
    published = next(iter(get_model_weights(name))).meta  # those that `hub_state` takes
    count = model.recipe.get("num_classes", len(published["categories"])) - 1
    if classes and len(classes) != count:
        raise ValueError(f"--classes: {len(classes)} names for a head of {count} classes")
    names, said = list(classes), f"{count} classes{'' if classes else _UNNAMED}"
    if not classes and "num_classes" not in model.recipe:
        ap = published["_metrics"]["COCO-val2017"]["box_map"]
        said = f"{count} classes, taken for COCO's" if weights else f"COCO val2017 AP {ap}"
        names = published["categories"][1:]
    source = weights.name if weights else "hub"
    save_detector(model, out, classes=names, source=source)
    print(f"{name}: {len(model.state_dict())} tensors used, {line or 'none left out'}; {said}")
    print(_WRITTEN.format(out))


def _output(out: Path, source: Path | None) -> Path:
    """The file to write; ValueError if it is the one that is read."""
    if source is not None and out.resolve() == source.resolve():
        raise ValueError(f"{out}: is the file that is read; name another one with --out")
    return out


COMMANDS = {"import-mmdet": import_mmdet, "import-torchvision": import_torchvision}
