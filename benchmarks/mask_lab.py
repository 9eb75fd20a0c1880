"""How fast the mask laboratory follows a hand, beside a matplotlib figure that is drawn again.

    python benchmarks/mask_lab.py             # in the kernel: control moved → PNG bytes
    python benchmarks/mask_lab.py --browser   # and in JupyterLab: key pressed → picture painted

Both draw the same four panels of a 416-pixel photograph and a pyramid of 256 channels. The detector
has random weights: its time does not depend on them. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.cbook import get_sample_data

from dfmsd.detectors.build import build_detector
from dfmsd.detectors.recipe import Recipe
from dfmsd.experiments.records import markdown_table
from dfmsd.widgets import MaskLab

SLIDERS = ("temperature", "ratio", "cutoff", "strength")
CHANGES = 100
CELLS = """import sys
sys.path.insert(0, {folder!r})
from mask_lab import laboratory
lab = laboratory()
lab"""
WATCH = """() => {
    const picture = document.querySelector(".mask-lab img");
    window.painted = new Promise(done => {
        let start;
        window.addEventListener("keydown", () => start = performance.now(),
            {capture: true, once: true});
        picture.addEventListener("load", () => requestAnimationFrame(() => requestAnimationFrame(
            () => done(performance.now() - start))), {once: true});
    });
}"""


def laboratory() -> MaskLab:
    """A laboratory with one photograph, 416 pixels long, on a 256-channel pyramid's stride 8."""
    torch.manual_seed(0)
    recipe = Recipe("retinanet", "timm:resnet10t", 6, image_size=416, fpn_channels=256)
    model = build_detector(recipe)
    photograph = get_sample_data("grace_hopper.jpg", asfileobj=False)
    lab = MaskLab({"photograph": photograph}, {"random weights": model.eval()}, size=416)
    lab.set(stride=8)
    return lab


def moves(lab: MaskLab) -> Iterator[tuple[str, float]]:
    """Endless changes, slider after slider, each to the neighbouring stop and back."""
    while True:
        for name in SLIDERS:
            stops = [stop for _, stop in lab._controls[name].options]
            at = stops.index(lab._controls[name].value)
            yield name, stops[at + 1 if at % 2 == 0 and at + 1 < len(stops) else at - 1]


def times(lab: MaskLab, act: Callable[[], object]) -> list[float]:
    """Milliseconds of `CHANGES` changes, after ten that warm up; `act` is part of each."""
    found = []
    for _, (name, value) in zip(range(CHANGES + 10), moves(lab), strict=False):
        start = time.perf_counter()
        lab._controls[name].value = value
        act()
        found.append(1000 * (time.perf_counter() - start))
    return found[10:]


def redrawn(lab: MaskLab) -> Callable[[], bytes]:
    """The peer: the same maps by `plt.subplots`, `imshow` and a PNG, like `interactive_output`."""
    image = lab.scene.image.permute(1, 2, 0)

    def draw() -> bytes:
        figure, frames = plt.subplots(2, 2, figsize=(6.6, 6.2), dpi=100)
        found = lab.panels()
        for axes, (name, values) in zip(frames.flat, found.items(), strict=True):
            axes.imshow(image.mean(2), cmap="gray")
            shown = axes.imshow(values, alpha=0.7, extent=(0, image.shape[1], image.shape[0], 0))
            axes.set_title(name)
            axes.set_axis_off()
            figure.colorbar(shown, ax=axes)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        plt.close(figure)
        return file.getvalue()

    return draw


def kept(lab: MaskLab) -> Callable[[], bytes]:
    """The faster peer: one figure that is kept, `set_data` and a PNG."""
    image = lab.scene.image.permute(1, 2, 0)
    figure, frames = plt.subplots(2, 2, figsize=(6.6, 6.2), dpi=100)
    shown = {}
    for axes, (name, values) in zip(frames.flat, lab.panels().items(), strict=True):
        axes.imshow(image.mean(2), cmap="gray")
        edges = (0, image.shape[1], image.shape[0], 0)
        shown[name] = axes.imshow(values, alpha=0.7, extent=edges)
        axes.set_title(name)
        axes.set_axis_off()
        figure.colorbar(shown[name], ax=axes)

    def draw() -> bytes:
        for name, values in lab.panels().items():
            shown[name].set_data(values)
            shown[name].autoscale()
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()

    return draw


def row(name: str, found: list[float], base: float) -> list[str]:
    """One row of a table: median, 95th percentile, ratio of the medians."""
    middle = statistics.median(found)
    late = statistics.quantiles(found, n=20)[-1]
    return [name, f"{middle:.0f}", f"{late:.0f}", f"{middle / base:.1f}"]


def kernel_table() -> str:
    """Value changed → new PNG bytes, in this process."""
    mpl.use("Agg")
    lab = laboratory()
    ours = times(lab, lambda: lab._shown.value)
    bare = laboratory()
    bare._show = lambda: None  # the peers take the values from the same controls, draw themselves
    base = statistics.median(ours)
    rows = [row("MaskLab", ours, base)]
    rows.append(row("matplotlib: kept figure, set_data", times(bare, kept(bare)), base))
    rows.append(row("matplotlib: redrawn, as interactive_output", times(bare, redrawn(bare)), base))
    return markdown_table(["kernel: change → PNG", "median ms", "p95 ms", "× MaskLab"], rows)


@contextmanager
def jupyterlab(root: Path) -> Iterator[str]:
    """The address of a JupyterLab on folder `root`, with settings of its own."""
    news = root / "settings/@jupyterlab/apputils-extension"
    news.mkdir(parents=True)
    quiet = '{"fetchNews": "false", "checkForUpdates": false}'
    (news / "notification.jupyterlab-settings").write_text(quiet)
    own = ("RUNTIME_DIR", "CONFIG_DIR", "DATA_DIR")
    env = os.environ | {f"JUPYTER_{name}": str(root / name) for name in own}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(root / "settings"), "JUPYTER_PREFER_ENV_PATH": "1"}
    env |= {"JUPYTERLAB_WORKSPACES_DIR": str(root / "spaces"), "IPYTHONDIR": str(root / "ipython")}
    env.pop("DFMSD_STATIC", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    command += [f"--ServerApp.root_dir={root}", "--allow-root", "--expose-app-in-browser"]
    quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=env, **quietly)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=60).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError("JupyterLab did not start") from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def browser_table(chromium: str) -> str:
    """Key pressed → the new picture painted, in a real JupyterLab."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--headless=new", "--disable-gpu"]
    with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as address:
        source = CELLS.format(folder=str(Path(__file__).parent))
        cell = {"cell_type": "code", "id": "lab", "metadata": {}, "source": source}
        cell |= {"execution_count": None, "outputs": []}
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        book = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
        (Path(folder) / "lab.ipynb").write_text(json.dumps(book))
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=flags)
            page = browser.new_context(viewport={"width": 1500, "height": 1000}).new_page()
            page.set_default_timeout(120_000)
            page.goto(f"{address}/lab/tree/lab.ipynb?reset")
            page.wait_for_selector(".jp-Notebook .jp-CodeCell")
            page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady")
            page.evaluate(
                "async () => { const app = window.jupyterapp;"
                "await app.shell.currentWidget.sessionContext.ready;"
                "await app.commands.execute('notebook:run-all-cells') }"
            )
            page.wait_for_selector(".mask-lab pre")
            page.wait_for_selector(".mask-lab img")
            time.sleep(2)
            found, handles = [], page.locator(".mask-lab .noUi-handle")
            for change in range(CHANGES + 10):
                handles.nth(change % len(SLIDERS)).focus()
                page.evaluate(WATCH)
                page.keyboard.press(["ArrowRight", "ArrowLeft"][change // len(SLIDERS) % 2])
                found.append(page.evaluate("window.painted"))
                time.sleep(0.05)
            browser.close()
    return markdown_table(
        ["JupyterLab: key → picture painted", "median ms", "p95 ms"],
        [row("MaskLab", found[10:], 1.0)[:3]],
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browser", action="store_true", help="also measure in JupyterLab")
    chosen = parser.parse_args()
    cores = os.cpu_count()
    print(f"{platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}\n")
    print(kernel_table())
    if chosen.browser:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        if chromium is None:
            sys.exit("--browser needs Chromium: install it, or set CHROMIUM to its path")
        print("\n" + browser_table(chromium))


if __name__ == "__main__":
    main()
