"""A fake pipeline that a test moves on by hand, and a diary of what a job told."""

from __future__ import annotations

import threading

import numpy as np

from havir_explorer.jobs import Event
from havir_explorer.records import Reconstruction, Request, Step

WAIT = 10  # seconds; only a broken worker needs them


def reconstruction(request: Request) -> Reconstruction:
    picture = np.full((8, 8, 3), request.trial, np.uint8)
    return Reconstruction(request, picture, picture, picture, "generated", True, False, (), (), 3, 0.5)


class Runner:
    """A fake pipeline that a test moves on by hand: each step waits for a permit."""

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.calls: list[tuple[int, int]] = []

    def __call__(self, request, *, on_step=None):
        for index in range(1, self.steps + 1):
            self.entered.release()
            assert self.permits.acquire(timeout=WAIT)
            self.calls.append((request.trial, index))
            on_step(Step("diffuse", index, self.steps))
        return reconstruction(request)

    def reach(self) -> None:
        assert self.entered.acquire(timeout=WAIT)

    def let(self, count: int) -> None:
        self.permits.release(count)


class Diary:
    """Collects a job's events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def states(self) -> list[str]:
        return list(dict.fromkeys(e.state for e in self.events))
