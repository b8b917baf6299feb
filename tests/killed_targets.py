"""Make a target store again and again, each time killed in the middle of one write or rename: ``python killed_targets.py FOLDER EVENT…``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
from small_targets import IDS, make


def make_until(folder: Path, last: int) -> None:
    """Make the store, and kill this process in the ``last``-th write (half of it done) or rename."""
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
    make(folder, IDS)


if __name__ == "__main__":
    for event in sys.argv[2:]:
        child = os.fork()
        if not child:
            make_until(Path(sys.argv[1]), int(event))
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended != -signal.SIGKILL:
            sys.exit(f"event {event} was not reached: the child ended with {ended}")
