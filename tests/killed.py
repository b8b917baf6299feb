"""Write a store again and again, each time killed in the middle of one write or rename.

``python killed.py prepare TREE WORKERS EVENT…`` prepares a tree, ``python killed.py targets FOLDER EVENT…`` makes a target store.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import small_targets

from havir_explorer.data import preparing
from havir_explorer.data.nsd import NSD


def killed_at(last: int, work: Callable[[], object]) -> None:
    """Work, and kill this process in the ``last``-th write (half of it done) or rename."""
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
    work()


def prepare(tree: str, workers: str) -> None:
    preparing.prepare(preparing.plan(NSD(tree).measured("subj01"), "int16"), workers=int(workers))


def targets(folder: str) -> None:
    small_targets.make(Path(folder), small_targets.IDS)


if __name__ == "__main__":
    work, named = {"prepare": (prepare, 2), "targets": (targets, 1)}[sys.argv[1]]
    arguments, asked = sys.argv[2 : 2 + named], sys.argv[2 + named :]
    for event in asked:
        child = os.fork()
        if not child:
            killed_at(int(event), lambda: work(*arguments))
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended != -signal.SIGKILL:
            sys.exit(f"event {event} was not reached: the child ended with {ended}")
