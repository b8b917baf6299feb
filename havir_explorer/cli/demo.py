"""``havir demo``: the teaching world, then the first notebook."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from havir_explorer.cli.notebook import keep_or_write
from havir_explorer.cli.show import progress_bar

_NAME = "01_first_look.ipynb"
_SOURCE = "from havir_explorer import Explorer\n\napp = Explorer()\napp"


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
    keep_or_write(new, _SOURCE)
    return new
