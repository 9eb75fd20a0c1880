"""Notebook 08 in a real browser: every control is moved, and the pixels are the library's.

Runs with DFMSD_BROWSER=1 (skips without a browser) or DFMSD_BROWSER=required (fails without one),
which `.ci/run` sets; a plain `make test` has no 40 seconds to spare.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = "08_tune_masks.ipynb"
ASKED = os.environ.get("DFMSD_BROWSER", "")
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ["--no-sandbox", "--headless=new", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--no-first-run", "--disable-component-update", "--disable-sync"]

pytestmark = [
    pytest.mark.skipif(not ASKED, reason="set DFMSD_BROWSER=1 to drive notebook 08 in Chromium"),
    pytest.mark.skipif(
        ASKED == "1" and BROWSER is None, reason=f"no browser: none of {NAMES}, CHROMIUM not set"
    ),
]


@contextmanager
def serving(command, address, env, folder=None):
    """Run a server until the block ends; wait until `address` answers."""
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    server = subprocess.Popen(command, env=env, cwd=folder, **out)
    try:
        while True:
            assert server.poll() is None, server.stdout.read().decode()
            try:
                urllib.request.urlopen(address, timeout=60).close()
                break
            except OSError:  # not up yet
                time.sleep(0.2)
        yield
    finally:
        server.terminate()  # it stops its kernels first
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        server.stdout.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """Jupyter without the user's settings, kernels, news or autosaves."""
    home = tmp_path_factory.mktemp("jupyter")
    news = home / "settings/@jupyterlab/apputils-extension"
    news.mkdir(parents=True)
    quiet = '{"fetchNews": "false", "checkForUpdates": false}'
    (news / "notification.jupyterlab-settings").write_text(quiet)
    folders = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "IPYTHONDIR": "ipython",
    }
    one_thread = {"OMP_NUM_THREADS": "1", "DFMSD_SCALE": "smoke", "JUPYTER_PREFER_ENV_PATH": "1"}
    env = os.environ | one_thread | {name: str(home / sub) for name, sub in folders.items()}
    env.pop("DFMSD_STATIC", None)
    return env


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the notebook, because Lab saves into the file; what it reads is linked."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, root / "notebooks")
    (root / "data").symlink_to(ROOT / "data")
    return root / "notebooks"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert BROWSER, f"DFMSD_BROWSER={ASKED}, but there is no browser: none of {NAMES}"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def watched(browser, address):
    """A page; an error in its console fails the test, unless it is about another host.

    Voila asks a content network for its icons and does without.
    """
    errors = []

    def note(message):
        if message.type == "error" and message.location["url"].startswith(address):
            errors.append(message.text)

    page = browser.new_context(viewport={"width": 1500, "height": 1000}).new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", note)
    yield page
    page.context.close()
    assert not errors


@pytest.fixture
def twin(built):
    """The notebook's own laboratory in this process, as the notebook leaves it."""
    start = built.values()
    yield built
    built.set(**start)


@pytest.fixture(scope="module")
def built(folder):
    import nbformat
    import torch
    from IPython.core.interactiveshell import InteractiveShell

    torch.set_num_threads(1)  # as the kernel: the last bits decide ties
    before = os.getcwd(), dict(os.environ)
    os.chdir(folder)
    os.environ["DFMSD_SCALE"] = "smoke"
    shell = InteractiveShell()
    try:
        for cell in nbformat.read(NOTEBOOK, 4).cells:
            if cell.cell_type == "code":
                shell.run_cell(cell.source).raise_error()
        return shell.user_ns["lab"]
    finally:
        os.chdir(before[0])
        os.environ.clear()
        os.environ.update(before[1])


PIXELS = """async image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    const values = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", values));
    return [canvas.height, canvas.width, Array.from(digest)];
}"""


def displayed(shown):
    """Height, width and digest of the pixels that the browser decoded."""
    return shown.locator("img").first.evaluate(PIXELS)


def computed(twin):
    """The same of the pixels that the library computes."""
    picture = twin.picture()
    opaque = np.dstack([picture, np.full_like(picture[..., 0], 255)])
    return [*picture.shape[:2], list(hashlib.sha256(opaque.tobytes()).digest())]


def settle(shown, twin):
    """Wait for the twin's words, which come after the picture; then compare all pixels."""
    from playwright.sync_api import expect

    expect(shown.locator("pre")).to_have_text(twin.readout(), timeout=60_000)
    wanted, end = computed(twin), time.monotonic() + 10
    while displayed(shown) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    assert displayed(shown) == wanted


def control(shown, name):
    """The DOM node of one control, by its visible label."""
    label = shown.locator(".widget-label", has_text=re.compile(f"^{re.escape(name)}$"))
    return label.locator("xpath=..").first


def drive(shown, twin):
    """Move every control of the laboratory to another value; check the picture after each."""
    from ipywidgets import Dropdown, SelectionSlider

    settle(shown, twin)
    for name, widget in twin._controls.items():
        place, before = control(shown, widget.description), twin.readout()
        if isinstance(widget, Dropdown):
            label, value = next(pair for pair in widget._options_full if pair[1] != widget.value)
            place.locator("select").select_option(label)
        else:
            assert isinstance(widget, SelectionSlider), name
            place.locator(".noUi-handle").first.focus()
            shown.page.keyboard.press("ArrowRight")
            value = widget._options_full[widget.index + 1][1]
        widget.value = value  # the twin's own observer
        assert twin.readout() != before, name
        settle(shown, twin)


def own_picture(shown, twin, path):
    """A path that does not exist, then one that does."""
    from playwright.sync_api import expect

    field = control(shown, twin._path.description).locator("input")
    field.fill("no/such/picture.jpg")
    field.press("Enter")
    expect(shown.locator("pre")).to_contain_text("no/such/picture.jpg")
    assert displayed(shown) == computed(twin)  # the last good one
    field.fill(str(path))
    field.press("Enter")
    twin._path.value = str(path)
    settle(shown, twin)


@pytest.fixture
def photograph(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    path = tmp_path / "mine.png"
    Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(path)
    return path


RUN_ALL = """async () => {
    const app = window.jupyterapp;
    await app.shell.currentWidget.sessionContext.ready;
    await app.commands.execute("notebook:run-all-cells");
}"""


def test_in_jupyterlab_every_control_shows_what_the_library_computes(
    browser, env, folder, twin, photograph
):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    command += [f"--ServerApp.root_dir={folder.parent}", "--allow-root", "--expose-app-in-browser"]
    with serving(command, f"{address}/api/status", env), watched(browser, address) as page:
        page.goto(f"{address}/lab/workspaces/test/tree/notebooks/{NOTEBOOK}?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady")
        page.evaluate(RUN_ALL)
        shown = page.locator(".mask-lab").first
        shown.scroll_into_view_if_needed()
        drive(shown, twin)
        own_picture(shown, twin, photograph)


def test_as_an_app_under_voila(browser, env, folder, twin):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "voila", NOTEBOOK, "--no-browser", f"--port={port}"]
    command += ["--Voila.ip=127.0.0.1", "--show_tracebacks=True"]
    with (
        serving(command, f"{address}/voila/static/voila.js", env, folder),
        watched(browser, address) as page,
    ):
        page.goto(address)
        drive(page.locator(".mask-lab").first, twin)
