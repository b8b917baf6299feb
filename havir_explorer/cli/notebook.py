"""Notebooks that hold the app, and the JupyterLab that shows them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from havir_explorer.cli.show import can_write, write

_CELL: dict[str, object] = {"cell_type": "code", "id": "explorer", "metadata": {}, "execution_count": None, "outputs": []}
_META: dict[str, object] = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def keep_or_write(file: Path, source: str) -> bool:
    """Write a notebook of one code cell, unless a file of this name is there already: it may hold a user's work.

    Parameters
    ----------
    file : Path
        Ends in ``.ipynb``.
    source : str
        Of the cell.

    Returns
    -------
    bool
        True when it was written now.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    if file.exists():
        return False
    notebook = {"cells": [{**_CELL, "source": source}], "metadata": _META, "nbformat": 4, "nbformat_minor": 5}
    write(can_write(file, ".ipynb"), lambda part: part.write_text(json.dumps(notebook, indent=1), encoding="utf-8"))
    return True


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
