"""How fast the mask laboratory follows a hand, and how soon it is there.

    python benchmarks/mask_lab.py             # in the kernel: control moved → all PNG files
    python benchmarks/mask_lab.py --browser   # and in Chromium: key → picture painted, sixty quick
                                              # presses, `dfmsd lab` → first picture

The photograph has 416 pixels, the pyramid 256 channels with random weights (the time does not
depend on them); both branches, eight panels, words and counts are made anew at each change. Wall
time and CPU time are given: on a machine with other jobs the wall time is an upper bound.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib.cbook import get_sample_data

from dfmsd.detectors.build import build_detector
from dfmsd.detectors.recipe import Recipe
from dfmsd.detectors.saved import save_detector
from dfmsd.experiments.records import markdown_table
from dfmsd.widgets.lab import STOPS
from dfmsd.widgets.laboratory import Laboratory
from dfmsd.widgets.session import answer

ROOT = Path(__file__).resolve().parent.parent
SLIDERS = ("temperature", "ratio", "ratio_channel", "cutoff", "strength")
CHANGES, WARM, PRESSES = 100, 10, 60
FLAGS = ["--no-sandbox", "--headless=new", "--disable-gpu"]
READY = ".mask-lab .sentence:not(:empty)"
WATCH = """() => {
    const picture = document.querySelector(".panel.keep .photo + img");
    window.painted = new Promise(done => {
        let start;
        window.addEventListener("keydown", () => start = performance.now(),
            {capture: true, once: true});
        picture.addEventListener("load", () => requestAnimationFrame(() => requestAnimationFrame(
            () => done(performance.now() - start))), {once: true});
    });
}"""
COUNT = """() => {
    window.frames_seen = 0;
    window.last = performance.now();
    document.querySelector(".panel.keep .photo + img").addEventListener("load", () => {
        window.frames_seen++;
        window.last = performance.now();
    });
    window.addEventListener("keydown", () => window.pressed = performance.now(), {capture: true});
}"""


def detector() -> torch.nn.Module:
    """A RetinaNet with 256 channels and random weights."""
    torch.manual_seed(0)
    recipe = Recipe("retinanet", "timm:resnet10t", 6, image_size=416, fpn_channels=256)
    return build_detector(recipe).eval()


def photograph() -> Path:
    """A photograph that comes with matplotlib."""
    return Path(get_sample_data("grace_hopper.jpg", asfileobj=False))


def moves() -> Iterator[dict[str, float]]:
    """Endless changes, slider after slider, each to its next stop: no state comes twice soon."""
    at = {name: len(STOPS[name]) // 3 for name in SLIDERS}
    while True:
        for name in SLIDERS:
            at[name] = (at[name] + 1) % len(STOPS[name])
            yield {name: STOPS[name][at[name]]}


def kernel_table() -> str:
    """A control changed → every PNG, map and word that the page gets, in this process."""
    lab = Laboratory({"photograph": photograph()}, {"random weights": detector()})
    first, _ = answer(lab, {"kind": "hello"})
    wall, cpu = [], []
    for _, change in zip(range(CHANGES + WARM), moves(), strict=False):
        start = time.perf_counter(), time.process_time()
        answer(lab, {"kind": "set", "values": change, "picture": first["picture"]["key"]})
        wall.append(1000 * (time.perf_counter() - start[0]))
        cpu.append(1000 * (time.process_time() - start[1]))
    rows = [row("wall time", wall[WARM:]), row("CPU time", cpu[WARM:])]
    return markdown_table(["kernel: key → PNG", "median ms", "p95 ms"], rows)


def row(name: str, found: list[float]) -> list[str]:
    """One row of a table: median and 95th percentile."""
    late = statistics.quantiles(found, n=20)[-1]
    return [name, f"{statistics.median(found):.0f}", f"{late:.0f}"]


@contextmanager
def app(*arguments: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address and the process of `dfmsd lab`."""
    command = [sys.executable, "-m", "dfmsd", "lab", "--no-browser", "--port=0", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[3], process
    finally:
        process.terminate()
        process.wait(30)


def cpu_seconds(process: subprocess.Popen) -> float:
    """CPU seconds of a running process, on Linux."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def browser_tables(chromium: str) -> str:
    """Key pressed → picture painted, sixty quick presses, and the command → the first picture."""
    from playwright.sync_api import sync_playwright

    (ROOT / "build").mkdir(exist_ok=True)
    weights = ROOT / "build" / "bench-lab.safetensors"
    save_detector(detector(), weights, classes=list("abcde"))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True)
        imports, start = time.perf_counter() - start, time.perf_counter()
        with app() as (address, process):
            page = browser.new_context(bypass_csp=True).new_page()
            page.goto(address, timeout=120_000)
            page.wait_for_selector(READY, timeout=120_000)
            ready = time.perf_counter() - start, cpu_seconds(process)
        with app(str(photograph()), "--detectors", str(weights)) as (address, _):
            page = browser.new_context(bypass_csp=True).new_page()
            page.set_default_timeout(120_000)
            page.goto(address)
            page.wait_for_selector(READY)
            painted = keys(page)
            quick = presses(page)
        browser.close()
    tables = [
        markdown_table(["app: key → picture painted", "median ms", "p95 ms"], [painted]),
        markdown_table(["60 quick presses", "frames", "last press → last picture, ms"], [quick]),
        markdown_table(
            ["`dfmsd lab` → first picture", "seconds"],
            [
                ["wall time", f"{ready[0]:.1f}"],
                ["CPU time of the command", f"{ready[1]:.1f}"],
                ["of it, what `import torch, torchvision` takes", f"{imports:.1f}"],
            ],
        ),
    ]
    return "\n\n".join(tables)


def keys(page: object) -> list[str]:
    """Key pressed → the second frame after the new picture has loaded."""
    found = []
    for change in range(CHANGES + WARM):
        page.locator(f'[name="{SLIDERS[change % len(SLIDERS)]}"]').focus()
        page.evaluate(WATCH)
        page.keyboard.press(["ArrowRight", "ArrowLeft"][change // 50 % 2])
        found.append(page.evaluate("window.painted"))
        time.sleep(0.05)
    return row("wall time", found[WARM:])


def presses(page: object) -> list[str]:
    """Sixty presses as quick as the browser takes them."""
    page.evaluate(COUNT)
    page.locator('[name="ratio"]').focus()
    for press in range(PRESSES):
        page.keyboard.press("ArrowRight" if press % 4 else "ArrowLeft")
    page.wait_for_timeout(3000)
    frames, late = page.evaluate("[window.frames_seen, window.last - window.pressed]")
    return ["wall time", str(frames), f"{late:.0f}"]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browser", action="store_true", help="also measure in Chromium")
    chosen = parser.parse_args()
    cores = os.cpu_count()
    print(f"{platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}\n", flush=True)
    print(kernel_table(), flush=True)
    if chosen.browser:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        if chromium is None:
            sys.exit("--browser needs Chromium: install it, or set CHROMIUM to its path")
        print("\n" + browser_tables(chromium))


if __name__ == "__main__":
    main()
