"""One writer a folder: a claim that the system ends with the process, however that ends."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from havir_explorer.errors import OutputError

_LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What network disks answer that are mounted without locks."""


@contextmanager
def claimed(file: Path, taken: str, todo: str) -> Iterator[None]:
    """Hold a lock file, made here, as long as the work lasts; where the disk knows no locks, a warning says so and the work goes on.

    Parameters
    ----------
    file : Path
        In a folder that exists.
    taken : str
        The sentence when another process holds it.
    todo : str
        What to do when the folder cannot be written, for the error's sentence.

    Raises
    ------
    OutputError
    """
    lock = FileLock(file, mode=0o666, fallback_to_soft=False)  # whoever may write the folder may claim it; a soft lock outlives a killed process
    try:
        lock.acquire(timeout=0)
    except Timeout as other:
        raise OutputError(taken) from other
    except OSError as error:
        if error.errno not in _LOCKLESS:
            msg = f"{file.parent} cannot be written ({error.strerror or error}); {todo}"
            raise OutputError(msg) from error
        msg = f"the disk of {file.parent} knows no locks ({error.strerror}), so nothing keeps a second run out of it: start one at a time"
        warnings.warn(msg, stacklevel=4)
    try:
        yield
    finally:
        lock.release()
