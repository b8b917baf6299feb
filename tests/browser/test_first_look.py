"""The first notebook in a real JupyterLab: choose, mask, reconstruct, cancel, switch the branch; nothing red in the console."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
ARTEFACTS = ROOT / "test-artefacts"
NOTEBOOK = "01_first_look.ipynb"
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=swiftshader",
    "--enable-unsafe-swiftshader",
]
SECOND = 1000
VERTEX_COLORS = "plot => Array.from(plot._fullData[0].vertexcolor).slice(0, 2000).join()"
"""Colours of the first vertices of the mesh, as plotly holds them in the browser; fsaverage5 numbers those of its coarsest sphere first."""
PATIENCE = 180 * SECOND  # two busy cores and software rendering

# Third parties' noise, each with its reason. Everything else that a browser calls an error fails the test.
NOISE = (
    r"Failed to load resource.*(favicon|news\.json|/lab/api/news)",  # JupyterLab asks for news and icons that an offline server lacks
    r"WebGL.*(GPU stall|performance)",  # software rendering reports its own slowness
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over a folder that holds nothing but a copy of the notebook; yields its address."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = folder / "settings"
    (settings / "@jupyterlab" / "apputils-extension").mkdir(parents=True)
    (settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--notebook-dir={folder}"]
    command += ["--ServerApp.token=", "--ServerApp.password=", "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True"]
    with (folder / "lab.log").open("w") as log, subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api", folder / "lab.log", server)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def _wait_for(address: str, log: Path, server: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310 - our own server
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not answer:\n{log.read_text()}")


@pytest.fixture
def complaints() -> list[str]:
    """What the browser called an error."""
    return []


@pytest.fixture
def page(lab, chromium, complaints):
    """The notebook, opened, in a window 1280 pixels wide."""
    ARTEFACTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1700})
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: complaints.append(f"{message.text} {message.location.get('url', '')}") if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{lab}/lab/tree/{NOTEBOOK}?reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Toolbar")
        page.wait_for_function("() => document.querySelector('.jp-Notebook .jp-CodeCell') && window.jupyterapp")
        page.get_by_text(re.compile("Python 3.*Idle")).first.wait_for()
        yield page
        page.screenshot(path=ARTEFACTS / "at_the_end.png")
        browser.close()


def command(page: Page, name: str, arguments: str = "{}") -> None:
    page.evaluate(f"() => {{ window.jupyterapp.commands.execute('{name}', {arguments}); return true }}")


def pixels(part: Locator) -> str:
    return hashlib.sha256(part.screenshot()).hexdigest()


def picture(app: Locator, title: str) -> str:
    """Source of the picture in a tile."""
    return app.locator(".havir-tile", has=app.page.locator(".title", has_text=title)).locator("img").get_attribute("src") or ""


def status(app: Locator) -> Locator:
    return app.locator(".havir-status [role=status]")


def roi(app: Locator, name: str, verb: str) -> Locator:
    row = app.locator(".havir-roi", has=app.page.locator(".widget-label", has_text=re.compile(rf"^{name}\b")))
    return row.get_by_role("button", name=verb, exact=True)


def test_first_look(page, complaints):
    command(page, "notebook:run-all-cells")
    app = page.locator(".havir").first
    app.wait_for()
    page.locator(".jp-OutputArea-output", has_text="PixCorr").last.wait_for()  # the last cell has drawn its pictures and printed its scores
    expect(status(app)).to_have_text(re.compile("^Done"), timeout=PATIENCE)
    expect(app.locator(".havir-error")).to_have_count(0)
    expect(app.locator(".js-plotly-plot canvas").first).to_be_visible(timeout=PATIENCE)
    before = picture(app, "Full brain")
    stimulus = picture(app, "Stimulus")

    # Another trial: its stimulus comes at once, and pictures of the trial before do not stay beside it.
    app.locator(".havir-thumb:not(.empty)").nth(8).click()
    expect(app.locator(".havir-thumb.chosen")).to_have_count(1)
    expect(app.locator(".havir-tile").nth(1)).to_contain_text("Press Reconstruct")
    assert picture(app, "Stimulus") != stimulus

    # A mask, by clicking.
    app.get_by_role("button", name="Clear mask").click()
    roi(app, "FFA-1", "mute").click()
    expect(app).to_contain_text("mute FFA-1:")
    expect(app).to_contain_text("reaches the Semantic Extractor only")

    # Reconstruct: previews, then done, with new pictures, labels, scores and words for those who cannot see.
    app.get_by_role("button", name="Reconstruct").click()
    app.locator('img[alt*="preview"]').first.wait_for()
    page.screenshot(path=ARTEFACTS / "preview.png")
    expect(status(app)).to_have_text(re.compile("^Done: 2 pictures"), timeout=PATIENCE)
    full, masked = picture(app, "Full brain"), picture(app, "Masked")
    assert full.startswith("data:image/png")
    assert len({before, full, masked}) == 3
    expect(app.locator(".havir-tile").nth(0)).to_contain_text("synthetic stimulus")
    for tile in (1, 2):
        expect(app.locator(".havir-tile").nth(tile)).to_contain_text("generated")
    expect(app.locator("table.scores")).to_contain_text("Chance")
    assert all(image.get_attribute("alt") for image in app.locator(".havir-tile img").all())
    expect(page.locator(".jp-OutputArea-output.jp-RenderedImage img, .jp-RenderedImage img").first).to_be_visible()  # the still that stays

    # Cancel: quick, said in words, and the finished pictures come back.
    steps = app.locator(".havir-slider", has_text="Steps")
    steps.locator(".widget-readout").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("100")
    page.keyboard.press("Enter")
    expect(app).to_contain_text("75 of 100 steps will run")
    app.get_by_role("button", name="Reconstruct").click()
    app.locator('img[alt*="preview"]').first.wait_for()
    app.get_by_role("button", name="Cancel").click()
    expect(status(app)).to_have_text(re.compile("^Cancelled"), timeout=PATIENCE)
    expect(app.locator('img[alt*="preview"]')).to_have_count(0)
    assert picture(app, "Full brain") == full

    # The other branch: the cortex is painted anew.
    plot = app.locator(".js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    canvas = plot.locator(".gl-container canvas").first  # without the title, which changes anyhow
    shown, colors = pixels(canvas), plot.evaluate(VERTEX_COLORS)
    app.get_by_role("button", name="Semantic Extractor").click()
    expect(plot).to_contain_text("Semantic Extractor")
    page.wait_for_timeout(1 * SECOND)
    assert plot.evaluate(VERTEX_COLORS) != colors
    assert pixels(canvas) != shown

    # Looked at by people: both themes.
    app.scroll_into_view_if_needed()
    page.screenshot(path=ARTEFACTS / "light.png")
    app.screenshot(path=ARTEFACTS / "app_light.png")
    command(page, "apputils:change-theme", "{theme: 'JupyterLab Dark'}")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    page.wait_for_timeout(1 * SECOND)
    page.screenshot(path=ARTEFACTS / "dark.png")
    app.screenshot(path=ARTEFACTS / "app_dark.png")

    errors = [text for text in complaints if not any(re.search(noise, text) for noise in NOISE)]
    assert errors == []
