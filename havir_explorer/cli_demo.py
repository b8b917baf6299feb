"""``havir demo``: the teaching world, then JupyterLab on the first notebook."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from havir_explorer.cli_show import can_write, progress_bar, write

_NAME = "01_first_look.ipynb"
_CELL: dict[str, object] = {"cell_type": "code", "id": "explorer", "metadata": {}, "execution_count": None, "outputs": []}
_STARTER = {
    "cells": [{**_CELL, "source": "from havir_explorer import Explorer\n\napp = Explorer()\napp"}],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


@dataclass(frozen=True)
class Built:
    """Where the teaching world lies.

    Parameters
    ----------
    folder : str
    fresh : bool
        True when it was written now.
    seconds : float
        Wall time.
    """

    folder: str
    fresh: bool
    seconds: float


def build() -> Built:
    """Open the teaching world, building it first where it is missing."""
    from havir_explorer.data import open_dataset

    started = time.perf_counter()
    reports: list[str] = []
    with progress_bar("teaching world") as show:

        def report(share: float, line: str) -> None:
            reports.append(line)
            show(share, line)

        world = open_dataset("demo", progress=report)
    return Built(folder=str(world.root), fresh=bool(reports), seconds=round(time.perf_counter() - started, 2))


def notebook() -> Path:
    """Return the first notebook: the checkout's own; without a checkout, a new one in the current folder that holds the app.

    Raises
    ------
    OutputError
        The current folder cannot be written.
    """
    own = Path(str(resources.files("havir_explorer"))).parent / "notebooks" / _NAME
    if own.is_file():
        return own
    new = Path.cwd() / _NAME
    if not new.exists():
        write(can_write(new, new.suffix), lambda part: part.write_text(json.dumps(_STARTER, indent=1), encoding="utf-8"))
    return new


def serve(file: Path, *, browser: bool) -> int:
    """Open a notebook in JupyterLab and wait until the user ends it.

    Parameters
    ----------
    file : Path
    browser : bool
        Open a browser; otherwise JupyterLab only prints its address.

    Returns
    -------
    int
        JupyterLab's exit code; 0 when it was interrupted, which is how it is ended.
    """
    root = file.parent.parent if file.parent.name == "notebooks" else file.parent
    address = f"/lab/tree/{file.relative_to(root).as_posix()}"
    arguments = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", f"--LabApp.default_url={address}"]
    if not browser:
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")  # in a container there is often no one else to be
    server = subprocess.Popen(arguments)  # noqa: S603 - our own interpreter and our own arguments
    before = signal.signal(signal.SIGTERM, lambda *_: server.terminate())  # ended from outside, it leaves no server behind
    try:
        return max(0, server.wait())
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
