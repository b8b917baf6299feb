"""A plotly figure that comes up on slow machines, in every view and after a reload of the page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import plotly.graph_objects as go
import traitlets

DRAWING = threading.RLock()
"""plotly's figures share validators, so that only one thread of the process may work on any of them."""


class Figure(go.FigureWidget):  # type: ignore[misc]  # plotly ships no types
    """A FigureWidget whose browser side waits for plotly without a limit and asks for the figure before it draws a view.

    plotly's own browser side is a module of 5 MB that anywidget must have read within two seconds; where it is slower, the widget stays
    empty for good, because all that the kernel sends is dropped. It also never learns of edits made before a view existed.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
        What it shows at first.
    config : dict
        plotly's options for the browser side.
    on_lost : callable
        Called when a view got no answer: the widget missed its start, and :meth:`anew` has to take its place.

    Attributes
    ----------
    bundle : bytes
        plotly's browser side, as installed.
    sent : int
        Rises each time the whole figure was sent.
    patience : int
        Seconds that a view waits for an answer; doubled for each widget that takes another's place, for a machine so slow that answers are.
    without : str
        What the pointer is told where a number is NaN.
    """

    _esm = Path(__file__).with_name("figure.js")
    bundle = traitlets.Bytes().tag(sync=True)
    sent = traitlets.Int(0).tag(sync=True)
    patience = traitlets.Int(8).tag(sync=True)
    without = traitlets.Unicode("no value").tag(sync=True)

    def __init__(self, figure: go.Figure, config: dict[str, object], on_lost: Callable[[], None]) -> None:
        super().__init__(figure)
        self._config = config
        self._on_lost = on_lost
        self.on_msg(self._answer)

    def anew(self) -> Figure:
        """Return another widget with this one's content and twice its patience; this one is closed."""
        with DRAWING:
            other = Figure(go.Figure(self), self._config, self._on_lost)
            other.patience, other.without = 2 * self.patience, self.without
            self.close()
        return other

    @traitlets.default("bundle")
    def _plotly(self) -> bytes:
        return str(go.FigureWidget._esm).encode()  # noqa: SLF001 - where plotly keeps it

    def send_whole(self) -> None:
        """Send the figure as it stands; nothing on the page is drawn anew by it."""
        with DRAWING, self.hold_sync():
            self._widget_layout = deepcopy(self._layout)
            self._widget_data = deepcopy(self._data)
            self.sent += 1

    def _answer(self, _widget: object, content: object, _buffers: object) -> None:
        if content == "fresh":
            self.send_whole()
        elif content == "anew":
            self._on_lost()
