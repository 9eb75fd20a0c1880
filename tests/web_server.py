"""A web server on 127.0.0.1 that misbehaves on request."""

from __future__ import annotations

import re
import socket
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """What the server has and how it behaves.

    `plan` gives, per path, how the coming requests are answered, in their order; then the last one
    holds: None as it should be, an integer cuts the answer after so many bytes, an integer below 0
    resets the connection after as many, "404" answers that, "stall" rests a second on the way.
    """

    def __init__(self, files):
        self.files = dict(files)
        self.plan = {}
        self.ranges = self.lengths = True
        self.asked = []  # (path, Range or None) of every request
        self.url = ""

    def next(self, path):
        """How the coming request of a path is answered."""
        plan = self.plan.get(path, [None])
        return plan.pop(0) if len(plan) > 1 else plan[0]


class Handler(BaseHTTPRequestHandler):
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
        self.send_response(206 if first else 200)
        if site.lengths:
            self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        rest = data[first:]
        if fault == "stall":
            self.wfile.write(rest[:1000])
            threading.Event().wait(1)  # a test may have patched time.sleep
            rest, fault = rest[1000:], None
        self.wfile.write(rest if fault is None else rest[: abs(fault)])
        if fault is not None and fault < 0:
            # a reset: what the system still holds is thrown away
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


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
        server.shutdown()
        thread.join()
        server.server_close()


def closed_url():
    """The address of a server that does not run."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"
