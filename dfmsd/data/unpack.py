"""Files of a zip archive to the disk: every member checked before the first byte is written."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from dfmsd.data.check import DataError
from dfmsd.data.download import CHUNK, named
from dfmsd.training.progress import Progress

# times the archive's size; COCO's annotations unpack to 4 times, its JPEGs to 1
_LARGEST_GROWTH = 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_KINDS = (0, stat.S_IFREG, stat.S_IFDIR)  # 0: an archive made where files have no mode


def unpack(archive: Path, pattern: str, count: int, *, show: bool = True) -> None:
    """Unpack those files of an archive whose names match, beside it.

    Files appear whole or not at all. Until all are there a file `ARCHIVE.unpacking` lies beside the
    archive; an interrupted call is continued by the next one, which keeps the files that are there
    if their size and CRC-32 are right.

    Args:
        archive: a zip file whose members lie in one folder.
        pattern: which members: "FOLDER/*.jpg".
        count: how many must match.
        show: whether progress is shown.

    Raises:
        DataError: no readable zip file; a member that no harmless archive has; another number of
            members; a damaged member; or another file of a member's name is there already.
        OSError: the disk is full or cannot be written to.
    """
    mark = mark_of(archive)
    with _opened(archive) as bundle:
        members = _members(bundle, archive, pattern, count)
        missing = _missing(members, archive, replace=mark.exists(), show=show)
        mark.touch()
        done = count - len(missing)
        progress = Progress(f"unpacking {archive.name}", count, start=done, show=show)
        for number, member in enumerate(missing, start=done + 1):
            target = archive.parent / member.filename
            with named(target):
                _extract(bundle, member, target)
            progress.update(number)
    os.sync()  # a power cut after this leaves no empty files
    mark.unlink()


def mark_of(archive: Path) -> Path:
    """The file that is there while an archive is being unpacked."""
    return archive.with_name(f"{archive.name}.unpacking")


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Context with the open archive; what is damaged in it becomes a DataError."""
    try:
        with zipfile.ZipFile(archive) as bundle:
            yield bundle
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{archive}: damaged, or no zip file ({error})") from error


def _members(
    bundle: zipfile.ZipFile, archive: Path, pattern: str, count: int
) -> list[zipfile.ZipInfo]:
    """The members to unpack, after a look at all of them."""
    folder, seen = PurePosixPath(pattern).parts[0], set()
    for member in bundle.infolist():
        wrong = "appears twice" if member.filename in seen else _problem(member, folder)
        if wrong:
            raise DataError(f"{archive}: member {member.orig_filename!r} {wrong}; nothing unpacked")
        seen.add(member.filename)
    found = [m for m in bundle.infolist() if fnmatchcase(m.filename, pattern) and not m.is_dir()]
    if len(found) != count:
        raise DataError(f"{archive}: holds {len(found)} files {pattern}, expected {count}")
    size, limit = sum(m.file_size for m in found), _LARGEST_GROWTH * archive.stat().st_size
    if size > limit:
        raise DataError(f"{archive}: would unpack to {size} bytes, more than {limit} is no data")
    return found


def _problem(member: zipfile.ZipInfo, folder: str) -> str | None:
    """What no member of a harmless archive of one folder has, or None."""
    name = member.orig_filename  # as it stands in the file; zipfile has tidied up `filename`
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(c in name for c in "\\:\0"):
        return "leads out of the folder"
    if path.parts[:1] != (folder,) or len(path.parts) > 2:
        return f"does not lie in {folder}/"
    if stat.S_IFMT(member.external_attr >> 16) not in _KINDS:
        return "is a link or a device"
    if member.flag_bits & 1:
        return "is encrypted"
    return None if member.compress_type in _METHODS else "is neither stored nor deflated"


def _missing(
    members: list[zipfile.ZipInfo], archive: Path, *, replace: bool, show: bool
) -> list[zipfile.ZipInfo]:
    """The members that are not on the disk yet, or not whole and may be replaced."""
    missing = []
    show = show and any((archive.parent / member.filename).exists() for member in members)
    progress = Progress(f"{archive.name}: comparing", len(members), show=show)
    for number, member in enumerate(members, start=1):
        target = archive.parent / member.filename
        if not target.exists():
            missing.append(member)
        elif not _same(target, member):
            if not replace:
                what = f"is not the file of that name in {archive.name}"
                raise DataError(f"{target}: {what}; move it away and run the same command again")
            missing.append(member)
        progress.update(number)
    return missing


def _same(file: Path, member: zipfile.ZipInfo) -> bool:
    """Whether a file has the size and the CRC-32 of a member."""
    if file.stat().st_size != member.file_size:
        return False
    crc = 0
    with file.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc == member.CRC


def _extract(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write one member; zipfile compares the CRC-32 at its end."""
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(".unpacking")
    try:
        with bundle.open(member) as source, temporary.open("wb") as out:
            shutil.copyfileobj(source, out, CHUNK)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
