"""One file from a web server to the disk: continued where it stopped, verified, absent until whole.

urllib does it: the downloaders among the dependencies (torch.hub, torchvision, huggingface_hub)
either begin again after a cut or know one site only.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfmsd.training.progress import Progress

CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without a byte, then the connection counts as cut
_WAITS = (1, 5, 15, 60, 120, 300)  # seconds before the tries that follow one without a new byte
_PASSING = (408, 425, 429)  # answers that may be another one later, as all from 500 on


class DownloadError(ValueError):
    """A file that cannot be had, or is another than it should be; one line that names it."""


class CutError(Exception):
    """A connection that could not be made, or ended early; it may do better later."""


@dataclass(frozen=True)
class Remote:
    """A file on a server (http or https), its size in bytes and its SHA-256 in hexadecimal."""

    url: str
    size: int
    sha256: str


def download(remote: Remote, file: Path, *, show: bool = True) -> None:
    """Bring `remote` to `file`; `file.part` holds what is there until all of it is.

    A cut connection is taken up again, in this call or in the next, if the server can (Range) and
    its file is still the same (size, ETag); else the download begins anew. After a few tries
    without a new byte the call gives up and leaves what it has.

    Args:
        remote: what to bring.
        file: where to; must not be there yet.
        show: whether progress and cuts are shown.

    Raises:
        DownloadError: the server has no such file or another one, or cannot be reached any more,
            or what came is damaged (it is removed then).
        OSError: the disk is full or cannot be written to.
    """
    part = part_of(file)
    if _size(part) > remote.size:
        part.unlink()
    begin = _size(part)
    title, total = f"{file.name}, MB", -(-remote.size // 10**6)
    progress = Progress(title, total, start=begin // 10**6, show=show)
    tries = 0
    while (have := _size(part)) < remote.size:
        try:
            _fill(remote, part, progress)
        except CutError as cut:
            tries = 0 if _size(part) > have else tries + 1
            if tries == len(_WAITS):
                kept = f"{_size(part)} of {remote.size} bytes are in {part}"
                again = "the same command continues from there"
                raise DownloadError(f"{remote.url}: {cut}; {kept}, {again}") from cut
            at = f"at {_size(part) / 1e6:.0f} of {remote.size / 1e6:.0f} MB"
            progress.say(f"{file.name}: {cut} {at}; trying again in {_WAITS[tries]} s")
            time.sleep(_WAITS[tries])
    progress.update(total)
    try:
        verify(part, remote, show=show)
    except DownloadError as error:
        part.unlink()
        again = "it is removed, the same command downloads it anew"
        raise DownloadError(f"{error}: damaged on the way, or another file; {again}") from error
    _etag_file(part).unlink(missing_ok=True)
    part.replace(file)


def part_of(file: Path) -> Path:
    """Where the bytes of `file` lie that have been downloaded so far."""
    return file.with_name(f"{file.name}.part")


def verify(file: Path, remote: Remote, *, show: bool = True) -> None:
    """Raise DownloadError unless `file` has the size and the SHA-256 of `remote`."""
    size = _size(file)
    if size != remote.size:
        raise DownloadError(f"{file}: has {size} bytes, expected {remote.size}")
    digest, done = hashlib.sha256(), 0
    total = -(-size // 10**6)
    progress = Progress(f"{file.name}: SHA-256, MB", total, show=show)
    with file.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress.update(done // 10**6)
    progress.update(total)
    if digest.hexdigest() != remote.sha256:
        raise DownloadError(
            f"{file}: has the SHA-256 {digest.hexdigest()}, expected {remote.sha256}"
        )


@contextmanager
def reached(remote: Remote, start: int = 0) -> Iterator[http.client.HTTPResponse]:
    """Context with the server's answer to a request for the bytes from `start` on.

    Raises:
        DownloadError: the server has no such file, or one of another size.
        CutError: no answer, or one that may change.
    """
    headers = {"User-Agent": "dfmsd", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(remote.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        answer = f"the server answers {error.code} {error.reason}"
        if error.code >= 500 or error.code in _PASSING:
            raise CutError(answer) from error
        raise DownloadError(f"{remote.url}: {answer}") from error
    except (OSError, http.client.HTTPException) as error:
        raise CutError(_reason(error)) from error
    with response:
        size = _stated(response)[1]
        if size not in (None, remote.size):
            wrong = f"{remote.url}: the server's file has {size} bytes, expected {remote.size}"
            raise DownloadError(f"{wrong}; it is another file")
        yield response


def _fill(remote: Remote, part: Path, progress: Progress) -> None:
    """Append to `part` what the server sends, until all of it is there.

    Raises:
        CutError: it ended early.
        DownloadError: see `reached`; or more came than there should be.
    """
    have, etag_file = _size(part), _etag_file(part)
    with reached(remote, have) as response:
        first = _stated(response)[0]
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
        known = f"{remote.url} {tag}"  # two servers give the same file different tags
        if first == 0 < have:
            progress.say(f"{part.name}: the server cannot resume, from the beginning")
        elif first != have or (have and _changed(etag_file, known)):
            part.unlink()
            raise CutError("the server's file has changed, from the beginning")
        if first == 0:
            etag_file.write_text(known)
        with named(part), part.open("ab" if first else "wb") as out:
            have = first
            for chunk in _chunks(response):
                out.write(chunk)
                have += len(chunk)
                progress.update(min(have, remote.size - 1) // 10**6)
            out.flush()
            os.fsync(out.fileno())
    if have > remote.size:
        part.unlink()
        raise DownloadError(f"{remote.url}: more than the expected {remote.size} bytes came")
    if have < remote.size:
        raise CutError("the connection was cut")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The pieces of an answer, up to where it ends or is cut; the caller counts the bytes."""
    while True:
        try:
            chunk = response.read1(CHUNK)  # read() would lose what came before a reset
        except (OSError, http.client.HTTPException):
            return
        if not chunk:
            return
        yield chunk


def _stated(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where an answer's bytes begin, and the size of the whole file; None where it is not said."""
    if response.status == 206:
        match = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(match[1]), int(match[2])) if match else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _changed(etag_file: Path, known: str) -> bool:
    """Whether the same address had another ETag when the download began."""
    if not etag_file.exists():
        return False
    before, now = (text.split(" ", 1) for text in (etag_file.read_text(), known))
    return before[0] == now[0] and before[1:] != now[1:]


def _etag_file(part: Path) -> Path:
    """Where the address and the ETag of a begun download are kept."""
    return part.with_name(f"{part.name}.etag")


def _reason(error: Exception) -> str:
    """What is wrong with a connection, in the system's words."""
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _size(path: Path) -> int:
    """Bytes of a file, 0 when it is not there."""
    return path.stat().st_size if path.exists() else 0


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Context that gives a full or failing disk's error the name of the file, which it lacks."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
