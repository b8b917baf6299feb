"""The response cache: the voxel columns of a session, read once out of NSD's file and mapped into memory ever after."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from havir_explorer.data import betas, files
from havir_explorer.data.conventions import DEFAULT, PREPARATIONS
from havir_explorer.errors import DataMissing, OutputError
from havir_explorer.records import FloatArray, IntArray

Scalar = TypeVar("Scalar", bound=np.generic)


def load(
    root: Path, subject: str, session: int, flat_index: IntArray, grid: files.Grid, cache: Path, preparation: str = DEFAULT.preparation
) -> tuple[betas.Raw, FloatArray]:
    """Return a session's values from the cache, filling it first where it is absent, stale or damaged.

    Parameters
    ----------
    cache : Path
        Folder of this tree's and subject's cache. A file's name carries a digest of the beta file's size and date and of the voxels,
        so that neither can change unnoticed. Where it cannot be written, a warning says so and the values stay in memory.

    Returns
    -------
    raw : int16 (750, n_voxels)
        Percent signal change times 300.
    moments : float32 (2, n_voxels)
        Mean and standard deviation (ddof 0) over the session, in percent signal change.

    Raises
    ------
    DataMissing, DataInvalid
    """
    source = betas.path(root, subject, session, preparation)
    if not source.is_file():
        raise DataMissing(_missing(root, subject, session, preparation, source))
    stat = source.stat()
    digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns} {grid}".encode() + flat_index.astype("<i8").tobytes()).hexdigest()[:16]
    stem = f"session{session:02d}"
    values, means = cache / f"{stem}-{digest}.npy", cache / f"{stem}-{digest}.moments.npy"
    raw: betas.Raw | None = _mapped(values, (betas.TRIALS, len(flat_index)), np.dtype(np.int16))
    stats: FloatArray | None = _mapped(means, (2, len(flat_index)), np.dtype(np.float32))
    if raw is not None and stats is not None:
        return raw, np.asarray(stats)
    fresh = betas.read_columns(source, flat_index, grid)
    found = betas.moments(fresh)
    try:
        for old in cache.glob(f"{stem}-*.npy"):
            if digest not in old.name:  # another thread may be filling this very session
                old.unlink(missing_ok=True)
        files.save_array(values, fresh)
        files.save_array(means, found)
    except (OutputError, OSError) as error:
        reason = error.__cause__ or error
        msg = f"the response cache {cache} cannot be written ({reason}): responses stay in memory and are read again the next time; HAVIR_CACHE moves it"
        warnings.warn(msg, stacklevel=2)
        return fresh, found
    return np.load(values, mmap_mode="r"), found


def _missing(root: Path, subject: str, session: int, preparation: str, source: Path) -> str:
    """Say which file is absent, and whether the session is there in another preparation."""
    others = [name for name in PREPARATIONS if session in betas.sessions(root, subject, name)]
    if others:
        return (
            f"session {session} of {subject} is here as {others[0]} only, and {preparation} is read: {source} is missing; preparations are never mixed, "
            f"so download that file or open {root}#{others[0]}"
        )
    return f"betas of {subject}, session {session} not found: {source}; download that file or choose a trial of another session"


def _mapped(file: Path, shape: tuple[int, int], dtype: np.dtype[Scalar]) -> npt.NDArray[Scalar] | None:
    """Map a cached array; None when it is absent, cut short or of another shape."""
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == dtype else None
