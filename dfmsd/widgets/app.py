"""The laboratory as an app: a page, and a WebSocket behind it; it serves no other file.

Tornado, which JupyterLab runs on, does it in one process without a kernel: the page is there as
soon as torch and the detectors are.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketHandler

from dfmsd.widgets.laboratory import Laboratory
from dfmsd.widgets.session import answer

_HERE = Path(__file__).parent
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Mask laboratory · dfmsd</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
<link rel="stylesheet" href="/lab.css"><script type="module" src="/lab.js"></script>
</head><body><main><h1 style="font: 600 20px system-ui; margin: 4px 8px">Mask laboratory</h1>
<div id="mask-lab-app"></div></main></body></html>"""
_POLICY = "default-src 'self'; img-src blob: data:; style-src 'self' 'unsafe-inline'"
_MOST_BYTES = 9_000_000  # of a picture that is sent


class _Page(RequestHandler):
    """The page, which loads nothing from elsewhere."""

    def get(self) -> None:
        self.set_header("Content-Security-Policy", _POLICY)
        self.finish(_PAGE)


class _Visit(WebSocketHandler):
    """A visitor's own laboratory; a message is a line of JSON, and then its buffers."""

    def initialize(self, lab: Laboratory) -> None:
        self._lab, self._message, self._buffers = lab.visit(), {}, []

    async def on_message(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            self._buffers.append(data)
        else:
            self._message, self._buffers = json.loads(data), []
        if len(self._buffers) == self._message.get("buffers", 0):
            content, files = answer(self._lab, self._message, self._buffers)
            content |= {"view": self._message.get("view"), "buffers": len(files)}
            await self.write_message(json.dumps(content))
            for file in files:
                await self.write_message(file, binary=True)


def serve(lab: Laboratory, sockets: Sequence[socket.socket]) -> None:
    """Answer visitors until the process is interrupted."""
    files = StaticFileHandler, {"path": _HERE}
    routes = [("/", _Page), (r"/(lab\.css|lab\.js)", *files), ("/socket", _Visit, {"lab": lab})]
    server = HTTPServer(Application(routes, websocket_max_message_size=_MOST_BYTES))

    async def run() -> None:
        server.add_sockets(sockets)
        await asyncio.Event().wait()

    asyncio.run(run())
