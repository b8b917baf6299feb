"""The app's two keys: Enter in a field reconstructs, Escape cancels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets


class Keys(anywidget.AnyWidget):
    """Listens in the browser; shows nothing.

    Parameters
    ----------
    scope : str
        CSS class that only this app carries: keys pressed elsewhere are not listened to.
    on_run, on_cancel : callable
    """

    _esm = Path(__file__).with_name("keys.js")
    scope = traitlets.Unicode().tag(sync=True)

    def __init__(self, scope: str, on_run: Callable[[], object], on_cancel: Callable[[], object]) -> None:
        super().__init__(scope=scope)
        self._commands = {"run": on_run, "cancel": on_cancel}
        self.on_msg(self._pressed)

    def _pressed(self, _widget: object, content: object, _buffers: object) -> None:
        command = self._commands.get(content) if isinstance(content, str) else None
        if command is not None:
            command()
