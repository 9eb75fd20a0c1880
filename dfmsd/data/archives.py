"""The official archives of COCO 2017, and what of them is in a folder.

Source: addresses from cocodataset.org/#download; sizes and SHA-256 from TensorFlow Datasets
(url_checksums/coco2017.txt), with which other public lists agree; COCO publishes no checksums.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from dfmsd.data.download import part_of
from dfmsd.data.unpack import mark_of

SOURCE = "http://images.cocodataset.org"  # its https shows the certificate of another host


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Args:
        path: below the source.
        size: bytes.
        sha256: hexadecimal.
        pattern: the members that are unpacked.
        files: how many these are.
        unpacked: bytes that they take on the disk. Choice: rounded up; a zip hardly shrinks JPEGs.
    """

    path: str
    size: int
    sha256: str
    pattern: str
    files: int
    unpacked: int

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.path).name


ARCHIVES = {
    "annotations": Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        "annotations/instances_[tv]*2017.json",
        2,
        490_000_000,
    ),
    "val": Archive(
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        "val2017/*.jpg",
        5_000,
        850_000_000,
    ),
    "train": Archive(
        "zips/train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        "train2017/*.jpg",
        118_287,
        20_000_000_000,
    ),
}
COUNTS = {"train": (118_287, 860_001), "val": (5_000, 36_781)}  # images, annotations


def files(root: Path, archive: Archive) -> list[os.DirEntry]:
    """The files of an archive that are there."""
    folder, pattern = archive.pattern.split("/")
    if not (root / folder).is_dir():
        return []
    with os.scandir(root / folder) as listing:
        return [entry for entry in listing if fnmatchcase(entry.name, pattern)]


def is_there(root: Path, archive: Archive) -> bool:
    """Whether an archive's files have been unpacked, by their number."""
    begun = mark_of(root / archive.name).exists()
    return not begun and len(files(root, archive)) >= archive.files


def needed(root: Path, todo: list[Archive], *, keep: bool) -> int:
    """Free bytes that the disk must have: the most that `todo` adds at any moment.

    Args:
        root: the folder.
        todo: what is not unpacked yet, in the order in which it will be.
        keep: whether the archives stay; else each goes when it is unpacked.
    """
    held = most = 0
    for archive in todo:
        file = root / archive.name
        part = part_of(file)
        begun = part.stat().st_size if part.exists() else 0
        loaded = 0 if file.exists() else max(archive.size - begun, 0)
        present = sum(entry.stat().st_size for entry in files(root, archive))
        unpacked = max(archive.unpacked - present, 0)
        most = max(most, held + loaded + unpacked)
        held += unpacked + (loaded if keep else 0)
    return most
