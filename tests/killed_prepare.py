"""Prepare a tree again and again, each time killed in the middle of one write or rename: ``python killed_prepare.py TREE WORKERS EVENT…``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from havir_explorer.data import preparing
from havir_explorer.data.nsd import NSD


def prepare(root: str, workers: int, last: int) -> None:
    """Prepare, and kill this process in the ``last``-th write (half of it done) or rename."""
    events = 0
    save, replace = np.save, Path.replace

    def count() -> bool:
        nonlocal events
        events += 1
        return events == last

    def half_save(file, array) -> None:
        if count():
            file.write(np.asarray(array).tobytes()[: array.nbytes // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(file, array)

    def no_replace(part: Path, target: Path) -> Path:
        if count():
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(part, target)

    np.save, Path.replace = half_save, no_replace
    preparing.prepare(preparing.plan(NSD(root).measured("subj01"), "int16"), workers=workers)


if __name__ == "__main__":
    for event in sys.argv[3:]:
        child = os.fork()
        if not child:
            prepare(sys.argv[1], int(sys.argv[2]), int(event))
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended != -signal.SIGKILL:
            sys.exit(f"event {event} was not reached: the child ended with {ended}")
