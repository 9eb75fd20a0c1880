"""The laboratory in a real browser, as an app, in JupyterLab and under voila.

Runs with DFMSD_BROWSER=1 (skips without a browser) or DFMSD_BROWSER=required (fails without one),
which `.ci/run` sets; a plain `make test` has no 40 seconds to spare.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOK = "apps/mask_lab.ipynb"
ASKED = os.environ.get("DFMSD_BROWSER", "")
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ["--no-sandbox", "--headless=new", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--no-first-run", "--disable-component-update", "--disable-sync"]
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

pytestmark = [
    pytest.mark.skipif(not ASKED, reason="set DFMSD_BROWSER=1 to drive the laboratory in Chromium"),
    pytest.mark.skipif(
        ASKED == "1" and BROWSER is None, reason=f"no browser: none of {NAMES}, CHROMIUM not set"
    ),
]


@contextmanager
def serving(command, address, env, folder=None):
    """Run a server until the block ends; wait until `address` answers, 5 minutes at most."""
    deadline = time.monotonic() + 300
    with tempfile.TemporaryFile() as log:  # not a pipe: it would fill, and the server would wait
        server = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
        try:
            while True:
                late = time.monotonic() > deadline
                if late or server.poll() is not None:
                    log.seek(0)
                    raise AssertionError(f"{command} does not answer: {log.read().decode()}")
                try:
                    direct.open(address, timeout=60).close()
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
    """A copy of the app's notebook with one more view, since Lab saves the file; data is linked."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks/apps").mkdir(parents=True)
    book = json.loads((ROOT / "notebooks" / NOTEBOOK).read_text())
    book["cells"].append({**book["cells"][-1], "id": "again", "source": "lab", "outputs": []})
    (root / "notebooks" / NOTEBOOK).write_text(json.dumps(book))
    shutil.copy(ROOT / "notebooks/apps/voila.json", root / "notebooks/apps")
    Image.new("RGB", (8, 8)).save(root / "notebooks/apps/mine.png")
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
def watched(browser, address, *, width=1280, bypass_csp=True, **options):
    """A page; an error in its console fails the test, and so does a request to another host.

    Without `bypass_csp` the server's policy may block a request, which then never leaves.
    """
    errors = []

    def note(message):
        ours = message.location["url"].startswith(address)
        known = ("Content Security Policy", "widget model not found")  # see `test_under_voila`
        harmless = not bypass_csp and any(words in message.text for words in known)
        if message.type == "error" and ours and not harmless:
            errors.append(message.text)

    def request(asked):
        if not asked.url.startswith((address, "blob:", "data:")):
            errors.append(asked.url)

    def failed(asked):
        if asked.failure == "csp":
            errors.remove(asked.url)

    size = {"width": width, "height": 900}
    page = browser.new_context(viewport=size, bypass_csp=bypass_csp, **options).new_page()
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", note)
    page.on("request", request)
    page.on("requestfailed", failed)
    yield page
    page.context.close()
    assert not errors


@pytest.fixture(scope="module")
def built():
    import torch

    from dfmsd.widgets.files import lab_arguments
    from dfmsd.widgets.laboratory import Laboratory

    torch.set_num_threads(1)  # as the kernel: the last bits decide ties
    return Laboratory(**lab_arguments())


@pytest.fixture
def twin(built):
    """The app's laboratory in this process."""
    built.reset()
    return built


@pytest.fixture(scope="module")
def app(env):
    """The address of `dfmsd lab`."""
    port = free_port()
    command = [sys.executable, "-m", "dfmsd", "lab", "--no-browser", f"--port={port}"]
    with serving(command, f"http://127.0.0.1:{port}/", env, ROOT):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def page(browser, app):
    with watched(browser, app) as page:
        yield opened(page, app)


def opened(page, address):
    page.goto(address)
    page.wait_for_selector(".mask-lab .sentence:not(:empty)")
    return page


PIXELS = """async image => {
    await image.decode().catch(() => {});  // the words may be there first
    if (!image.naturalWidth) return null;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    const values = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", values));
    return [canvas.height, canvas.width, Array.from(digest)];
}"""


def displayed(shown, name):
    """Height, width and digest of the pixels of a panel's layer that the browser decoded."""
    return shown.locator(f".panel.{name} .photo + img").first.evaluate(PIXELS)


def computed(twin, name):
    """The same, as the library makes it."""
    from dfmsd.widgets.mosaic import layer_image, png

    panel = next(panel for panel in twin.drawn() if panel.name == name)
    pixels = np.asarray(Image.open(io.BytesIO(png(layer_image(panel)))).convert("RGBA"))
    return [*pixels.shape[:2], list(hashlib.sha256(pixels.tobytes()).digest())]


def settle(shown, twin):
    """Wait for the twin's words, which come after the picture; then compare the pixels."""
    from playwright.sync_api import expect

    words = twin.readout().splitlines()
    expect(shown.locator(".lines li").first).to_have_text(words[1], timeout=60_000)
    expect(shown.locator(".sentence")).to_have_text(words[0], timeout=60_000)
    for name in ("keep", "enhanced", "masked", "channels", "channel"):
        wanted, end = computed(twin, name), time.monotonic() + 10
        while displayed(shown, name) != wanted and time.monotonic() < end:
            time.sleep(0.05)
        assert displayed(shown, name) == wanted, name


def control(shown, name):
    return shown.locator(f'.control [name="{name}"]')


def drive(shown, twin):
    """Move every control to another value; check words and pixels after each."""
    from dfmsd.widgets.lab import CHOICES, STOPS

    settle(shown, twin)
    for name, before in twin.values().items():
        if name in STOPS or name == "channel":
            control(shown, name).focus()
            shown.page.keyboard.press("ArrowRight")
            stops = list(STOPS.get(name, range(64)))
            value = stops[stops.index(before) + 1]
            text = f"{value:.2f}" if name in STOPS else str(value)
            assert control(shown, name).get_attribute("aria-valuetext") == text
        else:
            offers = (twin.options() | CHOICES)[name]
            value = next(offer for offer in offers if offer != twin.values()[name])
            control(shown, name).select_option(index=offers.index(value))
        twin.set(**{name: value})
        settle(shown, twin)


IN_SIGHT = """one => {
    const box = one.getBoundingClientRect();
    return [0.05, 0.5, 0.95].every((share) => {
        const hit = document.elementFromPoint(box.x + box.width / 2, box.y + share * box.height);
        return one.contains(hit);
    });
}"""


def check_in_sight(shown):
    """Whoever moves a slider sees the slider and the whole mask."""
    for name in ("temperature", "ratio_channel", "strength", "cutoff", "channel"):
        control(shown, name).focus()
        for one in (control(shown, name), shown.locator(".panel.keep .frame").first):
            assert one.evaluate(IN_SIGHT), name


RUN_ALL = """async () => {
    const app = window.jupyterapp;
    await app.shell.currentWidget.sessionContext.ready;
    await app.commands.execute("notebook:run-all-cells");
}"""


def test_in_jupyterlab_every_control_shows_what_the_library_computes(browser, env, folder, twin):
    from playwright.sync_api import expect

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
        first, second = page.locator(".mask-lab").first, page.locator(".mask-lab").nth(1)
        expect(second.locator(".sentence")).to_have_text(twin.sentence())
        first.scroll_into_view_if_needed()
        drive(first, twin)
        settle(second, twin)  # one model, two views
        first.locator(".own input[type=text]").fill("no/such.png")
        first.locator(".own input[type=text]").press("Enter")
        expect(first.locator(".error")).to_contain_text("no/such.png: no such file")
        page.set_viewport_size({"width": 800, "height": 900})
        for step in ("expandLeft", "collapseLeft"):  # with the list of files, and without
            page.evaluate(f"window.jupyterapp.shell.{step}()")
            page.wait_for_timeout(500)
            first.scroll_into_view_if_needed()
            check_in_sight(first)


def test_under_voila(browser, env, folder, twin):
    from playwright.sync_api import expect

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    book = Path(NOTEBOOK)
    command = [sys.executable, "-m", "voila", book.name, "--no-browser", f"--port={port}"]
    command += ["--Voila.ip=127.0.0.1", "--show_tracebacks=True"]
    with (
        serving(command, f"{address}/voila/static/voila.js", env, folder / book.parent),
        watched(browser, address, bypass_csp=False) as page,
    ):
        for name in ("mine.png", "voila.json", book.name, "../../data/teachers/weak.safetensors"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                direct.open(f"{address}/voila/files/{name}", timeout=60)
        lost = page.get_by_text("model not found")
        for _ in range(3):  # voila's page asks a busy kernel for two seconds only
            page.goto(address)
            page.locator(".mask-lab .sentence:not(:empty)").or_(lost).first.wait_for()
            if not lost.count():
                break
        shown = page.locator(".mask-lab").first
        expect(shown.locator(".sentence")).to_have_text(twin.sentence())
        drive(shown, twin)
        assert shown.locator(".own input[type=text]").is_hidden()  # no path on the server


def test_as_an_app_every_control_shows_what_the_library_computes(page, twin):
    drive(page.locator(".mask-lab"), twin)


def test_the_app_serves_its_page_and_no_file(page, app):
    for path in ("/lab.py", "/data/teachers/weak.safetensors", "/../pyproject.toml", "/%2e%2e/x"):
        assert page.request.get(f"{app}{path}").status == 404
    said = page.evaluate(
        """address => new Promise(done => {
            const socket = new WebSocket(address);
            socket.onopen = () => socket.send(JSON.stringify(
                {kind: "set", values: {image: "/etc/hostname"}, buffers: 0}));
            socket.onmessage = ({data}) => typeof data === "string" && done(JSON.parse(data).error);
        })""",
        f"ws{app.removeprefix('http')}/socket",
    )
    assert said.startswith("this app opens no file of its computer")


def test_a_cell_is_read_under_the_pointer_and_by_keys(page, twin):
    from playwright.sync_api import expect

    maps = twin.panels()
    view = page.locator(".panel.energy .frame")
    box = view.bounding_box()
    page.mouse.move(box["x"] + 8.5 / 12 * box["width"], box["y"] + 3.5 / 12 * box["height"])

    def words(row, column):
        hidden = "visible" if maps["keep"][row, column] else "hidden"
        at = {name: float(maps[name][row, column]) for name in ("attention", "enhanced", "energy")}
        return (
            f"row {row}, column {column}: {hidden} · attention {at['attention']:.2f} · enhanced "
            f"{at['enhanced']:.2f} · rank {maps['rank'][row, column]:.0f} of 144 · "
            f"energy {at['energy']:.2f}"
        )

    expect(page.locator(".reading")).to_have_text(words(3, 8))
    page.locator(".panel.keep .frame").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".reading")).to_have_text(words(4, 7))


def test_what_cannot_act_is_grey_and_says_why(page):
    from playwright.sync_api import expect

    control(page, "strength").focus()
    page.keyboard.press("Home")
    expect(control(page, "cutoff")).to_be_disabled()
    why = page.locator(".control:has([name=cutoff]) small")
    expect(why).to_contain_text("strength is 0")
    control(page, "strength").press("End")
    expect(control(page, "cutoff")).to_be_enabled()
    expect(why).to_be_empty()


def test_the_page_can_be_heard(page, twin):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button")].filter(
            (one) => !one.hidden && !(one.labels?.length || one.textContent || one.ariaLabel))
            .map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    for name, text in (("temperature", "0.50"), ("cutoff", "0.25"), ("strength", "1.00")):
        assert control(page, name).get_attribute("aria-valuetext") == text
        outline = "one => (one.focus(), getComputedStyle(one))"
        page.keyboard.press("Tab")  # focus that keys brought
        width = control(page, name).evaluate(f"one => ({outline})(one).outlineWidth")
        assert width == "3px"
    alt = page.locator(".panel.keep .photo + img").get_attribute("alt")
    assert twin.sentence() in alt
    control(page, "ratio").press("End")
    twin.set(ratio=1.0)
    settle(page.locator(".mask-lab"), twin)
    alt = page.locator(".panel.keep .photo + img").get_attribute("alt")
    assert "all of the large object" in alt
    assert page.locator(".sentence").get_attribute("aria-live") == "polite"


def test_channels_boxes_and_what_stands_beside(page, twin):
    from playwright.sync_api import expect

    shown = page.locator(".mask-lab")
    bars = page.locator(".panel.channels .frame")
    box = bars.bounding_box()
    bars.click(position={"x": 20.5 / 64 * box["width"], "y": 10})
    twin.set(channel=20)
    settle(shown, twin)
    boxes = page.locator(".panel.keep svg")
    expect(boxes).to_be_visible()
    expect(page.locator(".legend")).to_have_text("dashed: true boxes")
    page.get_by_label("boxes").uncheck()
    expect(boxes).to_be_hidden()
    page.get_by_text("pin as A").click()
    control(page, "ratio").focus()
    page.keyboard.press("PageUp")
    expect(page.locator("figcaption", has_text="keep mask, A")).to_be_visible()
    page.get_by_text("reset").click()
    twin.reset()
    settle(shown, twin)
    expect(page.locator("figcaption", has_text="keep mask, A")).to_have_count(0)


def test_settings_and_pictures_are_taken_away(page, twin):
    from playwright.sync_api import expect

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for button, text in (("DFMSDLoss", twin.code()), ("key=value", twin.settings().text())):
        page.locator("button", has_text=button).click()
        expect(page.locator(".status")).to_have_text("copied")
        assert page.evaluate("navigator.clipboard.readText()") == text
    with page.expect_download() as saved:
        page.get_by_text("save PNG").click()
    read = np.asarray(Image.open(saved.value.path()))
    np.testing.assert_array_equal(read, twin.picture())
    page.get_by_label("slider to play").select_option("cutoff")
    with page.expect_download() as saved:
        page.get_by_text("save GIF").click()
    assert Image.open(saved.value.path()).n_frames == 20
    start = control(page, "cutoff").input_value()
    page.get_by_text("play", exact=True).click()
    expect(control(page, "cutoff")).not_to_have_value(start)
    page.get_by_text("stop", exact=True).click()


OFFER = """([kind, name, type, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, {type}));
    const lab = document.querySelector(".mask-lab .page");
    lab.dispatchEvent(kind === "drop"
        ? new DragEvent("drop", {dataTransfer: data, bubbles: true})
        : new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
}"""


def test_an_own_picture_is_chosen_dropped_or_pasted(page, tmp_path):
    from playwright.sync_api import expect

    rng, files = np.random.default_rng(0), {}
    for name in ("chosen.png", "drop.png", "paste.png"):
        image = Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8))
        image.save(tmp_path / name)
        files[name] = list((tmp_path / name).read_bytes())
    page.set_input_files("input[type=file]", tmp_path / "chosen.png")
    line = page.locator(".lines li").first
    expect(line).to_contain_text("chosen.png · strong teacher")
    for kind in ("drop", "paste"):
        page.evaluate(OFFER, [kind, f"{kind}.png", "image/png", files[f"{kind}.png"]])
        expect(line).to_contain_text(f"{kind}.png · strong teacher")
    page.evaluate(OFFER, ["drop", "x.txt", "text/plain", [1]])
    expect(page.locator(".error")).to_have_text("that is no picture")
    page.evaluate(OFFER, ["drop", "x.png", "image/png", [1]])
    expect(page.locator(".error")).to_contain_text("x.png: not an image")
    control(page, "ratio").press("ArrowRight")
    expect(page.locator(".error")).to_be_empty()


def test_sixty_presses_end_where_they_should_without_a_queue(page, twin):
    control(page, "ratio_channel").focus()
    frames = page.evaluate(
        """() => { window.seen = 0; new MutationObserver(() => window.seen++).observe(
            document.querySelector(".sentence"), {childList: true}); }"""
    )
    assert frames is None
    for press in range(60):
        page.keyboard.press("ArrowLeft" if press % 20 < 8 else "ArrowRight")
    twin.set(ratio_channel=0.5 + 0.12)
    settle(page.locator(".mask-lab"), twin)
    assert page.evaluate("window.seen") <= 60


CONTRAST = """() => {
    const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgb = (colour, ground = [255, 255, 255]) => {
        paint.fillStyle = `rgb(${ground})`; paint.fillRect(0, 0, 1, 1);
        paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    };
    const light = ([r, g, b]) => [r, g, b].map((value) => (value /= 255) <= 0.03928
        ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
    const page = document.querySelector(".mask-lab .page");
    document.querySelector(".mask-lab .error").textContent = "wrong";
    const found = {};
    for (const name of [".sentence", ".error", "figcaption", ".scale", "label", "small", ".lines",
                        "button", "select", "pre", ".legend", "output"]) {
        const one = page.querySelector(name);
        let holder = one, ground = "rgba(0, 0, 0, 0)";
        while (holder && /, 0\\)|transparent/.test(ground)) {
            ground = getComputedStyle(holder).backgroundColor;
            holder = holder.parentElement;
        }
        const under = rgb(ground), over = rgb(getComputedStyle(one).color, under);
        const [low, high] = [light(under), light(over)].sort((a, b) => a - b);
        found[name] = (high + 0.05) / (low + 0.05);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_it_can_be_read_and_used_at_every_width_in_both_themes(browser, app, scheme, width):
    with watched(browser, app, width=width, color_scheme=scheme) as page:
        opened(page, app)
        low = {name: ratio for name, ratio in page.evaluate(CONTRAST).items() if ratio < 4.5}
        assert low == {}
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        check_in_sight(page)
