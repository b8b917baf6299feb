"""How often the page hears of a run's steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from havir_explorer.records import Step

SECONDS = 0.1
"""Between two steps that the page is told of."""


class Pace:
    """Lets at most ten steps a second through, so that a fast run does not flood the connection to the browser.

    A stage's beginning and the last step of a picture always pass.

    Parameters
    ----------
    clock : callable
        Seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = -SECONDS

    def lets(self, step: Step) -> bool:
        """Say whether the page should hear of a step."""
        if not step.count:
            return True
        now = self._clock()
        if now - self._last < SECONDS and step.index < step.count:
            return False
        self._last = now
        return True
