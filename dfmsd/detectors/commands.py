"""`dfmsd import-…`: published detectors as teachers, each written once as a file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

Triple = tuple[float, float, float]


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
    """
    from dfmsd.detectors.mmdet.load import load_mmdet
    from dfmsd.detectors.saved import save_detector

    pixels = {"mean": mean, "std": std, "order": order}
    teacher = load_mmdet(file, style=style, source=source, relu=relu, **pixels)
    out = out or file.with_suffix(".safetensors")
    save_detector(teacher, out, classes=[], source=file.name, report=teacher.report)
    print(_described(teacher.recipe["mmdet"], teacher.backbone.strides))
    print(_pixels(teacher.recipe["mmdet"], teacher.report))
    left = ", ".join(f"{count} of {part}" for part, count in teacher.report["left"].items())
    print(f"{teacher.report['used']} tensors used, none missing; left out: {left or 'none'}")
    print(f"config: {teacher.report['config']}")
    print(f"written: {out}; a preset takes it by strong_file={out} or weak_file={out}")


def import_torchvision(
    name: Annotated[Positional[str], arg(help="e.g. fasterrcnn_resnet50_fpn_v2")],
    /,
    weights: Path | None = None,
    out: Path | None = None,
) -> None:
    """Turn a COCO detector of torchvision into a teacher.

    Args:
        name: of torchvision.models.detection; those of `_v2` (the older ones freeze their norms).
        weights: its weights as torchvision publishes them; fetched from the hub unless given.
        out: the teacher's file; NAME.safetensors here unless given.
    """
    from torchvision.models import get_model_weights

    from dfmsd.detectors.build import stock_detector
    from dfmsd.detectors.checkpoints import load_tensors, read_tensors
    from dfmsd.detectors.pretrained import hub_state
    from dfmsd.detectors.saved import save_detector

    model = stock_detector(name)
    tensors = read_tensors(weights) if weights else hub_state(f"torchvision:{name}")
    load_tensors(model, tensors, str(weights or name))
    published = get_model_weights(name).DEFAULT.meta
    out = out or Path(f"{name}.safetensors")
    save_detector(
        model, out, classes=published["categories"][1:], source=weights.name if weights else "hub"
    )
    ap = published["_metrics"]["COCO-val2017"]["box_map"]
    print(f"{name}: {len(tensors)} tensors used, none left out; COCO val2017 AP {ap} as published")
    print(f"written: {out}; a preset takes it by strong_file={out} or weak_file={out}")


def _row(values: list) -> str:
    """Numbers side by side."""
    return " ".join(f"{value:.4g}" for value in values)


def _pixels(recipe: dict[str, Any], report: dict[str, Any]) -> str:
    """One line on how a teacher takes its pixels."""
    turned = "; trained on BGR, its first layer turned" if report["order"] == "bgr" else ""
    statistics = f"mean {_row(recipe['mean'])}, std {_row(recipe['std'])}"
    return f"pixels: RGB in 0..1, {statistics} ({report['pixels']}){turned}"


def _described(recipe: dict[str, Any], strides: list[int]) -> str:
    """One line on what a teacher is."""
    depths = _row(recipe["depths"])
    if recipe["trunk"] == "swin":
        heads = f"heads {_row(recipe['heads'])}, window {recipe['window']}"
        trunk = f"Swin, {recipe['width']} channels, depths {depths}, {heads}"
    else:
        groups = f", {recipe['groups']} groups of {recipe['base_width']}"
        name = "ResNeXt" if recipe["groups"] > 1 else "ResNet"
        style = f", {recipe['style']} style" if "style" in recipe else ""
        trunk = f"{name}, depths {depths}{groups if recipe['groups'] > 1 else ''}{style}"
    extra, top = recipe["extra"], ""
    if extra["count"]:
        how = "subsampled" if extra["kind"] == "pool" else f"convolved from the {extra['source']}"
        relu = " with ReLU" if extra.get("relu") else ""
        top = f", {extra['count']} of them {how}{relu}"
    pyramid = f"FPN of {recipe['channels']} channels at strides {_row(strides)}{top}"
    return f"{trunk}; {pyramid}"


COMMANDS: dict[str, Any] = {
    "import-mmdet": import_mmdet,
    "import-torchvision": import_torchvision,
}
