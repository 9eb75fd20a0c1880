"""The website in a real browser, offline: formulas, pictures, search, and no word to the network.

Runs with DFMSD_BROWSER=1 or =required, as tests/test_browser.py does, on what `make site` built.
"""

from __future__ import annotations

import os
import sys

import pytest
from test_browser import BROWSER, FLAGS, NAMES, ROOT, free_port, serving

SITE = ROOT / "build" / "site"
ASKED = os.environ.get("DFMSD_BROWSER", "")
PAGES = {  # page: formulas and pictures that it has at least
    "README.html": (0, 2),
    "docs/notation.html": (40, 0),
    "notebooks/02_attention_to_masks.html": (4, 5),
}
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
BROKEN = (
    """() => [...document.images].filter(image => !image.naturalWidth).map(image => image.src)"""
)

pytestmark = [
    pytest.mark.skipif(not ASKED, reason="set DFMSD_BROWSER=1 to read the site in Chromium"),
    pytest.mark.skipif(ASKED == "1" and BROWSER is None, reason=f"no browser: none of {NAMES}"),
    pytest.mark.skipif(ASKED == "1" and not SITE.exists(), reason="run `make site` first"),
]


@pytest.fixture(scope="module")
def address():
    assert (SITE / "index.html").exists(), "DFMSD_BROWSER=required, but `make site` was not run"
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    home = f"http://127.0.0.1:{port}"
    with serving([*command, "--directory", str(SITE)], home, dict(os.environ)):
        yield home


@pytest.fixture(scope="module")
def page(address):
    """A page without a network; an error in it or a question to another host fails the test."""
    from playwright.sync_api import sync_playwright

    asked, errors = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=[*FLAGS, OFFLINE])
        page = browser.new_context().new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        yield page
        browser.close()
    assert not [url for url in asked if not url.startswith((address, "data:"))]
    assert not errors


@pytest.mark.parametrize("name", PAGES)
def test_formulas_are_drawn_and_pictures_are_there(page, address, name):
    formulas, pictures = PAGES[name]
    page.goto(f"{address}/{name}")
    if formulas:
        page.wait_for_selector("mjx-container")
        page.wait_for_function(f"document.querySelectorAll('mjx-container').length >= {formulas}")
        assert page.locator("mjx-container").first.bounding_box()["width"] > 5
        assert page.locator("mjx-merror").count() == 0
        text = page.locator("article").inner_text()
        assert "\\(" not in text
        assert "$$" not in text
    assert page.locator("article img").count() >= pictures
    assert page.locator("article table").count() >= 1
    assert "|--" not in page.locator("article").inner_text()
    assert page.evaluate(BROKEN) == []


def test_previous_and_next_lead_through_the_series(page, address):
    page.goto(f"{address}/notebooks/01_detectors_and_features.html")
    assert page.locator("a.left-prev").get_attribute("href").startswith("00_start_here")
    page.locator("a.right-next").click()
    page.wait_for_url("**/02_attention_to_masks.html")


def test_the_search_finds_a_notebook_and_a_function(page, address):
    page.goto(f"{address}/")
    page.wait_for_url("**/docs/site/index.html")
    for word, goal in (("padding", "02_attention_to_masks"), ("spatial_attention", "api.html")):
        page.goto(f"{address}/search.html?q={word}")
        page.wait_for_selector(f"ul.search a[href*='{goal}']")
