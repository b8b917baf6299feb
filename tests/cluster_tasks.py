"""Work for the tests of a cluster: small enough that starting the workers is all that takes time."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from havir_explorer.errors import RequestError


@dataclass(frozen=True)
class Sum:
    """Adds 1 to ``number``; kills its worker first, ``deaths`` times over all tries, which ``diary`` counts, or interrupts it."""

    number: int
    diary: Path
    deaths: int = 0
    seconds: float = 0.0
    interrupted: bool = False


def add(task: Sum) -> tuple[int, int]:
    """Return the sum and the process that made it."""
    with (task.diary / str(task.number)).open("a") as tries:
        tries.write(".")
    if len((task.diary / str(task.number)).read_text()) <= task.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    if task.interrupted:
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(task.seconds)
    return task.number + 1, os.getpid()


def refuse(task: Sum) -> tuple[int, int]:
    """Fail as a user's mistake does."""
    msg = f"there is no number {task.number}"
    raise RequestError(msg)


def setting(task: Sum) -> tuple[str | None, str | None]:
    """Return how many threads a worker may use, and which card."""
    time.sleep(task.seconds)
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")
