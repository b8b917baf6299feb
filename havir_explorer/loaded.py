"""Models kept in memory as long as their files stay the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from havir_explorer.paths import stamp

Model = TypeVar("Model")


class Loaded(Generic[Model]):
    """Loads each model once, and anew when its files are not those it was loaded from.

    Whoever still uses an earlier copy keeps it; here it is let go before the new one is loaded, so that two never wait in memory.

    Parameters
    ----------
    most : int
        Models kept; beyond it the one asked for least recently is let go.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[str, tuple[str, Model]] = {}

    def get(self, name: str, folder: Path, load: Callable[[], Model]) -> Model:
        """Return the model called ``name``, from memory while the files in ``folder`` are the same, else from ``load``."""
        found = stamp(folder)
        known, model = self._kept.pop(name, (None, None))
        if model is None or known != found:
            del model
            while len(self._kept) >= self._most:
                self._kept.pop(next(iter(self._kept)))
            model = load()
        self._kept[name] = (found, model)
        return model
