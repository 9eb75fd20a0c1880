"""A web server on 127.0.0.1 that misbehaves on request, and COCO's archives in small."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import struct
import threading
import zipfile
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from coco_folder import box, content, picture

from dfmsd.data import archives
from dfmsd.data.archives import Archive


class Site:
    """What the server has and how it behaves.

    `plan` gives, per path, how the coming requests are answered, in their order; then the last one
    holds: None as it should be, an integer cuts the answer after so many bytes, an integer below 0
    resets the connection after as many, "404" answers that, "stall" rests ten seconds on the way.
    """

    def __init__(self, files):
        self.files = dict(files)
        self.plan = {}
        self.ranges = True
        self.etag = '"first"'
        self.lengths = True
        self.asked = []  # (path, Range or None) of every request
        self.url = ""
        self.awake = threading.Event()

    def next(self, path):
        """How the coming request of a path is answered."""
        plan = self.plan.get(path, [None])
        return plan.pop(0) if len(plan) > 1 else plan[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_GET(self):
        site = self.server.site
        path, wanted = self.path.lstrip("/"), self.headers.get("Range")
        site.asked.append((path, wanted))
        fault = site.next(path)
        if path not in site.files or (isinstance(fault, str) and fault.isdigit()):
            self.send_error(int(fault or 404))
            return
        data = site.files[path]
        first = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and site.ranges else 0
        if first >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.lengths:
            self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        rest = data[first:]
        if fault == "stall":
            self.wfile.write(rest[:1000])
            site.awake.wait(10)
            rest = rest[1000:]
            fault = None
        self.wfile.write(rest if fault is None else rest[: abs(fault)])
        if fault is not None and fault < 0:
            # a reset: what the system still holds is thrown away
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def finish(self):
        with suppress(OSError):  # the other side has gone
            super().finish()


@contextmanager
def serve(files):
    """Context with the Site of a running server."""
    site = Site(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    server.site = site
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        site.awake.set()
        server.shutdown()
        thread.join()
        server.server_close()


def closed_url():
    """The address of a server that does not run."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def zipped(members, *, method=zipfile.ZIP_DEFLATED):
    """The bytes of an archive of `members`: name or ZipInfo → content."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as bundle:
        for member, data in members.items():
            # a ZipInfo of its own has no time in it: the same bytes in every process
            info = zipfile.ZipInfo(member) if isinstance(member, str) else member
            bundle.writestr(info, data, method)
    return held.getvalue()


def jpeg(seed):
    """The bytes of a small photograph."""
    held = io.BytesIO()
    picture(60, 40, seed=seed).save(held, "JPEG")
    return held.getvalue()


COUNTS = {"train": (5, 2), "val": (3, 1)}  # images, annotations


def small_coco():
    """Path below the root → content, of a COCO 2017 in small."""
    files = {}
    for split, (images, boxes) in COUNTS.items():
        data = content(images, [box(n) for n in range(1, boxes + 1)])
        for image in data["images"]:
            image["file_name"] = f"{image['id']:012}.jpg"
            files[f"{split}2017/{image['file_name']}"] = jpeg(image["id"] + 10 * (split == "val"))
        files[f"annotations/instances_{split}2017.json"] = json.dumps(data).encode()
    return files


def small_archives(files):
    """Path on the official site → archive, with a folder's entry and captions as the real ones."""
    folders = {"annotations": "annotations/annotations_trainval2017.zip"}
    folders |= {f"{split}2017": f"zips/{split}2017.zip" for split in COUNTS}
    made = {}
    for folder, path in folders.items():
        inside = {name: data for name, data in files.items() if name.startswith(f"{folder}/")}
        more = {"annotations/captions_val2017.json": b"{}"} if folder == "annotations" else {}
        made[path] = zipped({f"{folder}/": b""} | more | inside)
    return made


def official(made, *, files=small_coco()):  # noqa: B008
    """The table of archives for `made`, and the counts, to stand for the official ones."""
    table = {}
    for key, archive in archives.ARCHIVES.items():
        data = made[archive.path]
        folder = archive.pattern.split("/")[0]
        size = sum(len(data) for name, data in files.items() if name.startswith(f"{folder}/"))
        number = 2 if key == "annotations" else COUNTS[key][0]
        sha256 = hashlib.sha256(data).hexdigest()
        table[key] = Archive(archive.path, len(data), sha256, archive.pattern, number, size)
    return table
