"""`dfmsd data …`: download COCO 2017, check a COCO-format folder, or write generated scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional


def data_coco(
    root: Positional[Path], /, source: str | None = None, train: bool = True, keep: bool = True
) -> None:
    """Download COCO 2017, verify and unpack it; the same command continues where it stopped.

    Args:
        root: the folder for it, e.g. data/coco; archives that lie there already are used.
        source: address of a mirror with the paths of the official site, which is the default.
        train: also the training images (19 GB).
        keep: keep the archives; else each goes when it is unpacked.
    """
    from dfmsd.data.download import get_coco

    for split, (images, boxes) in get_coco(root, source=source, train=train, keep=keep).items():
        print(f"{root}: {split} is complete: {images} images, {boxes} annotations")
    print(f"`dfmsd data check {root}` reads every image once")


def data_check(root: Positional[Path], /, split: Literal["train", "val"] | None = None) -> None:
    """Check a COCO-format folder: what is wrong (exit status 2), and what is strange (warnings).

    Args:
        root: the folder with images and annotations.
        split: `train` or `val`; both when left out.
    """
    from dfmsd.data.check import check

    report = check(root, split)
    print(report)
    if count := len(report.problems):
        raise ValueError(f"{root}: {count} problem{'s' * (count > 1)}, listed above")


def data_scenes(
    out: Positional[Path], /, images: int = 1000, val: int = 200, seed: int = 0, size: int = 96
) -> None:
    """Write generated scenes as a COCO-format folder.

    Args:
        out: the new folder.
        images: number of training scenes.
        val: number of validation scenes.
        seed: of the scenes.
        size: side of a scene, pixels.
    """
    from dfmsd.data.scenes import write_coco

    if min(images, val) < 1:
        raise ValueError(f"--images {images} --val {val}: each must be at least 1")
    write_coco(out, train=images, val=val, size=size, seed=seed)
    print(f"{images} training and {val} validation scenes of {size} pixels in {out}")


def data() -> None:
    """COCO 2017, the check of a COCO-format folder, generated scenes: `dfmsd data --help`."""


COMMANDS: dict[str, Any] = {"coco": data_coco, "check": data_check, "scenes": data_scenes}
