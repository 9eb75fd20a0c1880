"""COCO 2017 from its three official archives: downloaded, verified and unpacked, or one clear line.

Source: addresses from cocodataset.org/#download; sizes and SHA-256 from TensorFlow Datasets
(url_checksums/coco2017.txt), with which other public lists agree; COCO publishes no checksums.
"""

from __future__ import annotations

import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from dfmsd.data.annotations import read_annotations
from dfmsd.data.check import validate
from dfmsd.data.pixels import DataError

# the bucket behind images.cocodataset.org, whose own https shows this host's certificate
SOURCE = "https://s3.amazonaws.com/images.cocodataset.org"
_TIMEOUT = 30.0  # seconds without a byte, then the connection counts as cut
_WAITS = (1, 5, 15, 60, 120)  # seconds before the tries that follow one without a new byte
_PASSING = (408, 425, 429)  # answers that may be another one later, as all from 500 on


class Archive(NamedTuple):
    """An official archive: path below the source, bytes, SHA-256, and the members to unpack."""

    path: str
    size: int
    sha256: str
    pattern: str
    count: int


_BOXES, _FILES = "annotations/annotations_trainval2017.zip", "annotations/instances_*2017.json"
_BOXES_SHA = "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"
_VAL_SHA = "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"
_TRAIN_SHA = "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"
ARCHIVES = {
    "annotations": Archive(_BOXES, 252_907_541, _BOXES_SHA, _FILES, 2),
    "val": Archive("zips/val2017.zip", 815_585_330, _VAL_SHA, "val2017/*.jpg", 5_000),
    "train": Archive("zips/train2017.zip", 19_336_861_798, _TRAIN_SHA, "train2017/*.jpg", 118_287),
}
ANNOTATIONS = {"train": 860_001, "val": 36_781}


def get_coco(
    root: str | Path, *, source: str | None = None, train: bool = True, keep: bool = True
) -> dict[str, tuple[int, int]]:
    """Numbers of images and annotations per split of COCO 2017, which is complete in `root` then.

    What is missing is downloaded, verified and unpacked in the official layout; an interrupted call
    is continued by the next one. Archives that lie in `root` already are used.

    Args: see `commands.data_coco`; archives lie below `source` as below `SOURCE`, its default.

    Raises:
        DataError: an archive cannot be had or is not the official one, a file is in the way, or
            the folder is not COCO 2017 in the end.
        OSError: `root` cannot be written to, or the disk is full.
    """
    root, source = Path(root), (source or SOURCE).rstrip("/")
    if not source.startswith(("http://", "https://")):
        raise DataError(f"source {source!r}: must begin with http:// or https://")
    root.mkdir(parents=True, exist_ok=True)
    splits = ["val", "train"][: 1 + train]
    archives = [ARCHIVES[key] for key in ("annotations", *splits)]
    missing = [a for a in archives if len(list(root.glob(a.pattern))) < a.count]
    if missing:  # else nothing is written
        try:
            with FileLock(root / ".coco.lock", timeout=0):
                for archive in missing:
                    _bring(archive, root, source, keep=keep)
        except Timeout:
            raise DataError(f"{root}: another process fills it; wait for its end") from None
    return {split: _complete(root, split) for split in splits}


def _bring(archive: Archive, root: Path, source: str, *, keep: bool) -> None:
    """Unpack an archive into `root`, after it is downloaded, if need be, and verified."""
    file = root / PurePosixPath(archive.path).name
    if file.exists():
        _verify(file, archive)
    else:
        download(f"{source}/{archive.path}", file, archive)
    _unpack(file, archive.pattern)
    if not keep:
        file.unlink()


def download(url: str, file: Path, archive: Archive) -> None:
    """Bring an archive to `file`; until all of it is verified, `file.part` holds what has come.

    A cut connection is taken up where it ended (from the beginning if the server has no ranges), in
    this call or in the next.

    Raises:
        DataError: the server has no such file or one of another size, several tries in a row
            gave no new byte, or what came is damaged (it is removed then).
        OSError: the disk is full or cannot be written to.
    """
    part = file.with_name(f"{file.name}.part")
    have, failures = _size(part), 0
    with tqdm(total=archive.size, initial=have, desc=file.name, unit="B", unit_scale=True) as bar:
        while reason := _append(url, part, archive.size, bar):
            failures = 0 if _size(part) > have else failures + 1
            have = _size(part)
            if failures == len(_WAITS):
                state = f"{have} of {archive.size} bytes are in {part}"
                raise DataError(f"{url}: {reason}; {state}, the same command continues there")
            wait = f"trying again in {_WAITS[failures]} s"
            bar.write(f"{file.name}: {reason}; {wait}", file=sys.stderr)
            time.sleep(_WAITS[failures])
        bar.set_description(f"{file.name}: verifying")
        try:
            _verify(part, archive)
        except DataError:
            part.unlink()
            raise
    part.replace(file)


def _verify(file: Path, archive: Archive) -> None:
    """Raise DataError unless `file` has the SHA-256 of `archive`."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != archive.sha256:
        wrong = f"damaged, or another file (SHA-256 {digest}, expected {archive.sha256})"
        raise DataError(f"{file}: {wrong}; without it the same command downloads it anew")


def _unpack(file: Path, pattern: str) -> None:
    """Unpack the members of a verified archive that match `pattern` beside it, each whole or not.

    Raises:
        DataError: another file of a member's name is there already.
    """
    temporary = file.with_name(f"{file.name}.unpacking")
    with zipfile.ZipFile(file) as bundle:
        members = [m for m in bundle.infolist() if PurePosixPath(m.filename).match(pattern)]
        for member in tqdm(members, desc=f"{file.name}: unpacking", unit=" files"):
            target = file.parent / member.filename
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                temporary.write_bytes(bundle.read(member))
                temporary.replace(target)
            elif target.stat().st_size != member.file_size:
                raise DataError(f"{target}: is not the file of {file.name}; move it away")


def _append(url: str, part: Path, size: int, bar: tqdm) -> str:
    """What cut the download, after appending to `part` what the server sends; "" when complete."""
    if (have := _size(part)) >= size:
        return ""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        answer = f"the server answers {error.code} {error.reason}"
        if error.code < 500 and error.code not in _PASSING:
            raise DataError(f"{url}: {answer}") from error
        return answer
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))
    with response:
        bar.n = start = have if response.status == 206 else 0
        length = int(response.headers.get("Content-Length", size - start))
        if start + length != size:
            wrong = f"the server's file has {start + length} bytes, expected {size}"
            raise DataError(f"{url}: {wrong}; it is another file")
        with part.open("ab" if start else "wb") as out:
            while chunk := _read(response):
                out.write(chunk)
                bar.update(len(chunk))
    return "the connection was cut" if _size(part) < size else ""


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes of an answer, none where it ends or is cut."""
    try:
        return response.read1(1 << 20)  # read() would lose what came before a reset
    except (OSError, http.client.HTTPException):
        return b""


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _complete(root: Path, split: str) -> tuple[int, int]:
    """Numbers of images and annotations of a split; DataError unless it is the official one."""
    file = root / "annotations" / f"instances_{split}2017.json"
    content = read_annotations(file)
    counts = len(content["images"]), len(content["annotations"])
    if counts != (official := (ARCHIVES[split].count, ANNOTATIONS[split])):
        numbers = f"has {counts} images and annotations, the official file {official}"
        raise DataError(f"{file}: {numbers}; move it away")
    for problem in validate(content, root / f"{split}2017", split)[0]:
        raise DataError(f"{file}: {problem}; move {split}2017 away")
    return counts
