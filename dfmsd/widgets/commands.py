"""`dfmsd lab`: the mask laboratory as an app in the browser."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def lab(
    images: Positional[tuple[Path, ...]] = (),
    /,
    detectors: tuple[Path, ...] = (),
    port: int = 8877,
    host: str = "127.0.0.1",
    browser: bool = True,
) -> None:
    """Open the mask laboratory in the browser; it runs until Ctrl-C.

    Args:
        images: pictures; generated scenes unless given.
        detectors: files that dfmsd saved, e.g. a student before and after distillation; the shipped
            teachers unless given.
        port: of the address; 0 takes a free one.
        host: who may come: this machine, or with 0.0.0.0 others too. Visitors open no files here.
        browser: open the page.
    """
    import contextlib
    import socket
    import webbrowser

    from tornado.netutil import bind_sockets

    if not 0 <= port < 2**16:
        raise ValueError(f"--port {port}: must lie in 0..65535")
    try:
        sockets = bind_sockets(port, host)
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: {error.strerror.lower()}") from None
    except OSError as error:
        raise ValueError(f"--port {port}: {error.strerror.lower()}; take another one") from None
    address = f"http://{host}:{sockets[0].getsockname()[1]}"
    print(f"the mask laboratory: {address} (ends at Ctrl-C)", flush=True)
    if browser:  # the socket keeps it waiting while torch is imported
        webbrowser.open(address)

    from dfmsd.widgets.app import serve
    from dfmsd.widgets.files import lab_arguments
    from dfmsd.widgets.laboratory import Laboratory

    with contextlib.suppress(KeyboardInterrupt):
        serve(Laboratory(**lab_arguments(images, detectors)), sockets)


COMMANDS = {"lab": lab}
