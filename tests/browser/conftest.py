"""A real JupyterLab, a browser in front of it, and what the browser complains of."""

from __future__ import annotations

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
from lab import ARTEFACTS, PATIENCE
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def lab(demo, tmp_path_factory):
    """JupyterLab over a folder that holds nothing but a copy of the notebook, and remembers no result of an earlier run; yields its address."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "cache").mkdir()
    (folder / "cache" / demo.root.name).symlink_to(demo.root, target_is_directory=True)
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
        "HAVIR_CACHE": str(folder / "cache"),
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
