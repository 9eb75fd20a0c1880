"""COCO 2017 from its official archives: a complete folder, or one line that says why not."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfmsd.data import archives
from dfmsd.data.archives import SOURCE, Archive, is_there, needed
from dfmsd.data.check import DataError, problems, read_annotations
from dfmsd.data.download import CutError, DownloadError, Remote, download, reached, verify
from dfmsd.data.unpack import unpack


def get_coco(
    root: str | Path,
    *,
    source: str = SOURCE,
    train: bool = True,
    keep: bool = True,
    say: Callable[[str], None] | None = None,
    show: bool = True,
) -> dict[str, tuple[int, int]]:
    """Images and annotations of each split of COCO 2017 in `root`, which is complete then.

    What is missing is downloaded, verified and unpacked; an interrupted call is continued by the
    next one. Archives that lie in `root` already are used. The official layout results, see
    `annotations.find_split`.

    Args:
        root: the folder, made if need be.
        source: address below which the archives lie as on the official site, or all side by side.
        train: also the training images (19 GB).
        keep: keep the archives; else each goes when it is unpacked.
        say: takes the lines that tell what will be done.
        show: whether progress is shown.

    Raises:
        DownloadError: an archive cannot be had or is not the official one; the disk is too small.
        DataError: a file in the way, or a folder that is not COCO 2017 in the end.
        OSError: `root` cannot be written to.
    """
    root, say = Path(root), say or (lambda line: None)
    if not source.startswith(("http://", "https://")):
        raise DownloadError(f"source {source!r}: must begin with http:// or https://")
    root.mkdir(parents=True, exist_ok=True)
    splits = ("train", "val") if train else ("val",)
    with _alone(root):
        todo = [a for key, a in archives.ARCHIVES.items() if key in (*splits, "annotations")]
        todo = [archive for archive in todo if not is_there(root, archive)]
        if todo and archives.ARCHIVES["annotations"] not in todo:
            for split in splits:
                _official(root, split)  # or 19 GB would be downloaded to be refused
        if todo:
            say(_plan(root, todo, keep))
        for archive, remote in _remotes(root, todo, source).items():
            _bring(root, archive, remote, keep=keep, show=show)
        say(f"{root}: looking for every image that the annotations name")
        counts = {split: _proven(root, split) for split in splits}
    say(f"{root}: {'is complete now' if todo else 'was complete already, nothing was done'}")
    return counts


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Context that only one process at a time gets for a folder."""
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DownloadError(f"{root}: another process is downloading to it") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


def _plan(root: Path, todo: list[Archive], keep: bool) -> str:
    """What will be done, and that the disk is large enough for it; DownloadError if not."""
    need, least = (needed(root, todo, keep=kept) for kept in (keep, False))
    free = shutil.disk_usage(root).free
    text = f"{root}: {', '.join(archive.name for archive in todo)} need {_gb(need)} of disk"
    if need > free:
        less = f" ({_gb(least)} with --no-keep)" if least < need else ""
        raise DownloadError(f"{text}{less}, {_gb(free)} are free")
    return f"{text}, {_gb(free)} are free"


def _gb(size: int) -> str:
    """Bytes as a text in GB (10⁹)."""
    return f"{size / 1e9:.1f} GB"


def _remotes(root: Path, todo: list[Archive], source: str) -> dict[Archive, Remote]:
    """Where each archive is to be had; those in `root` are not looked for.

    Raises:
        DownloadError: one is not there; the message says what to do without a network.
    """
    found = {}
    for archive in todo:
        urls = [f"{source.rstrip('/')}/{path}" for path in (archive.path, archive.name)]
        remotes = [Remote(url, archive.size, archive.sha256) for url in urls]
        found[archive] = remotes[0]
        if (root / archive.name).exists():
            continue
        try:
            found[archive] = _first(remotes)
        except DownloadError as error:
            missing = [a for a in todo if not (root / a.name).exists()]
            named = ", ".join(f"{SOURCE}/{a.path} ({_gb(a.size)})" for a in missing)
            place = f"without a network put {named} into {root} and run the same command again"
            raise DownloadError(f"{error}; {place}") from error
    return found


def _first(remotes: list[Remote]) -> Remote:
    """The first of several that the server has; the first one's error when it has none."""
    errors: list[DownloadError] = []
    for remote in remotes:
        try:
            with reached(remote):
                return remote
        except DownloadError as error:
            errors.append(error)
        except CutError as error:
            raise DownloadError(f"{remote.url}: {error}") from error
    raise errors[0]


def _bring(root: Path, archive: Archive, remote: Remote, *, keep: bool, show: bool) -> None:
    """Have one archive's files in `root`."""
    file = root / archive.name
    if file.exists():
        try:
            verify(file, remote, show=show)
        except DownloadError as error:
            raise DownloadError(f"{error}; remove it and run the same command again") from error
    else:
        download(remote, file, show=show)
    unpack(file, archive.pattern, archive.files, show=show)
    if not keep:
        file.unlink()


def _official(root: Path, split: str) -> dict[str, Any]:
    """The content of a split's annotation file; DataError when it is not the official one."""
    file = _annotations(root, split)
    content = read_annotations(file)
    found, official = (len(content["images"]), len(content["annotations"])), archives.COUNTS[split]
    if found != official:
        has, should = (f"{images} images and {n} annotations" for images, n in (found, official))
        again = "move it away and run the same command again"
        raise DataError(f"{file}: has {has}, the official file {should}; {again}")
    return content


def _proven(root: Path, split: str) -> tuple[int, int]:
    """Numbers of images and annotations of a split, after all of them have been looked for."""
    content, folder = _official(root, split), root / f"{split}2017"
    for problem in problems(content, folder):
        again = f"move {folder} away and run the same command again"
        raise DataError(f"{_annotations(root, split)}: {problem}; {again}")
    return len(content["images"]), len(content["annotations"])


def _annotations(root: Path, split: str) -> Path:
    """A split's annotation file."""
    return root / "annotations" / f"instances_{split}2017.json"
