"""Writes `docs/images/laboratory.gif`: the mask laboratory as a person sees it, sliders moving.

Run it with `python docs/laboratory.py`; it needs playwright and Chromium (or CHROMIUM, its path).
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from dfmsd.widgets.mosaic import gif

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT = 800, 732  # pixels of the page
MILLISECONDS, PAUSE = 500, 2  # of a frame; how many frames the last one stays in addition
# slider → presses of an arrow key between two frames, and how often
MOVES = (
    ("ratio", "ArrowLeft", 10, 4),
    ("ratio", "ArrowRight", 10, 2),
    ("strength", "ArrowRight", 3, 3),
    ("cutoff", "ArrowRight", 4, 2),
    ("temperature", "ArrowLeft", 4, 2),
)


def frames(page: Page) -> Iterator[Image.Image]:
    """The page after each move."""
    yield shot(page)
    for slider, key, presses, times in MOVES:
        page.locator(f'[name="{slider}"]').focus()
        for _ in range(times):
            for _ in range(presses):
                page.keyboard.press(key)
            page.wait_for_timeout(800)  # the last picture comes
            yield shot(page)


def shot(page: Page) -> Image.Image:
    """What the window shows."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main() -> None:
    """Start the laboratory, move its sliders, write the picture."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    command = [sys.executable, "-m", "dfmsd", "lab", "--no-browser", "--port=0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(server.stdout.readline().split()[3], timeout=120_000)
            page.wait_for_selector(".mask-lab .sentence:not(:empty)", timeout=120_000)
            pages = list(frames(page))
    finally:
        server.terminate()
        server.wait(30)
    target = ROOT / "docs" / "images" / "laboratory.gif"
    target.write_bytes(gif([*pages, *pages[-1:] * PAUSE], milliseconds=MILLISECONDS))
    print(f"{target.relative_to(ROOT)}: {len(pages)} frames, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
