"""Single-trial responses: voxel columns out of NSD's beta files, once, into a memory-mapped cache.

A session's file holds int16 ``betas`` of shape (750, Z, Y, X) in chunks of one voxel by 750 trials, so one trial touches every chunk:
reading by trial takes seconds to minutes, reading by voxel column a fraction of a second.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from havir_explorer.data import files
from havir_explorer.errors import DataInvalid, DataMissing
from havir_explorer.records import FloatArray, IntArray

VERSION = "betas_fithrf_GLMdenoise_RR"
"""Folder of the betas used: NSD's "b3"."""
TRIALS = 750
"""Trials in every NSD session."""
PERCENT = 300.0
"""int16 units in one percent signal change (volumes only)."""

Raw = npt.NDArray[np.int16]
Scalar = TypeVar("Scalar", bound=np.generic)

_REMEDY = "download it again from the natural-scenes-dataset bucket"


@dataclass(frozen=True, eq=False)
class Session:
    """One session's responses.

    Parameters
    ----------
    raw : int16 (750, n_voxels), memory-mapped
        Percent signal change times 300.
    scale, offset : float32 (n_voxels,)
        ``raw * scale - offset`` is the response z-scored over the session; both 0 where a voxel does not vary.
    """

    raw: Raw
    scale: FloatArray
    offset: FloatArray

    def zscored(self, rows: IntArray) -> FloatArray:
        """Return float32 (n, n_voxels) for 0-based trials of the session."""
        values: FloatArray = self.raw[rows].astype(np.float32)
        values *= self.scale
        values -= self.offset
        return values


def folder(root: Path, subject: str) -> Path:
    """Return the folder of a subject's betas."""
    return root / "nsddata_betas" / "ppdata" / subject / "func1pt8mm" / VERSION


def path(root: Path, subject: str, session: int) -> Path:
    """Return the file of a 1-based session."""
    return folder(root, subject) / f"betas_session{session:02d}.hdf5"


def sessions(root: Path, subject: str) -> tuple[int, ...]:
    """Return the 1-based sessions whose file exists, in order; they need not be contiguous."""
    numbers = (p.stem.removeprefix("betas_session") for p in folder(root, subject).glob("betas_session*.hdf5"))
    return tuple(sorted(int(n) for n in numbers if n.isdecimal()))


def read_columns(source: Path, flat_index: IntArray, grid: files.Grid) -> Raw:
    """Read voxel columns of one session file.

    Parameters
    ----------
    source : Path
        ``betas_sessionNN.hdf5``.
    flat_index : int64 (n_voxels,)
        C-order indices into the NIfTI grid.
    grid : (int, int, int)
        NIfTI (X, Y, Z); the file's axes are (trial, Z, Y, X).

    Returns
    -------
    int16 (750, n_voxels)

    Raises
    ------
    DataMissing, DataInvalid
        Absent; truncated, of another grid or not int16.
    """
    file, betas = files.hdf5(source, "beta file", _REMEDY, "betas")
    with file:
        expected = (TRIALS, *grid[::-1])
        if betas.shape != expected or betas.dtype != np.int16:
            msg = f"beta file holds {betas.dtype} {betas.shape}, expected int16 {expected} (trial, Z, Y, X): {source}; it belongs to another subject or grid"
            raise DataInvalid(msg)
        x, y, z = np.unravel_index(flat_index, grid)
        try:
            if betas.chunks == (TRIALS, 1, 1, 1) and betas.id.get_create_plist().get_nfilters() == 0:
                return _read_chunks(betas, x, y, z)
            return _read_slices(betas, x, y, z)
        except OSError as error:
            msg = f"beta file cannot be read to its end: {source} ({error}); {_REMEDY}"
            raise DataInvalid(msg) from error


def _read_chunks(betas: h5py.Dataset, x: IntArray, y: IntArray, z: IntArray) -> Raw:
    """Take each voxel's one uncompressed chunk as it lies in the file, past HDF5's selection machinery."""
    columns = np.empty((len(x), TRIALS), betas.dtype)
    for i, (xi, yi, zi) in enumerate(zip(x.tolist(), y.tolist(), z.tolist(), strict=True)):
        try:
            columns[i] = np.frombuffer(betas.id.read_direct_chunk((0, zi, yi, xi))[1], betas.dtype)
        except (RuntimeError, OSError, ValueError):  # a chunk never written (outside the brain mask): the ordinary read gives its fill, or the true error
            columns[i] = betas[:, zi, yi, xi]
    return np.ascontiguousarray(columns.T, dtype=np.int16)


def _read_slices(betas: h5py.Dataset, x: IntArray, y: IntArray, z: IntArray) -> Raw:
    """Read each z-slice's bounding box: bounded memory, and right for every layout."""
    columns = np.empty((TRIALS, len(x)), np.int16)
    for plane in np.unique(z):
        here = np.flatnonzero(z == plane)
        left, front = int(x[here].min()), int(y[here].min())
        box = betas[:, int(plane), front : int(y[here].max()) + 1, left : int(x[here].max()) + 1]
        columns[:, here] = box[:, y[here] - front, x[here] - left]
    return columns


def moments(raw: Raw, block: int = 4096) -> FloatArray:
    """Return float32 (2, n_voxels): mean and standard deviation (ddof 0) over the trials, in percent signal change."""
    result = np.empty((2, raw.shape[1]), np.float32)
    for start in range(0, raw.shape[1], block):  # float64 sums without a float64 copy of the whole session
        columns = raw[:, start : start + block].astype(np.float64)  # in whole units, so that a constant voxel's deviation is exactly 0
        result[:, start : start + block] = columns.mean(axis=0) / PERCENT, columns.std(axis=0) / PERCENT
    return result


def load_session(root: Path, subject: str, session: int, flat_index: IntArray, grid: files.Grid, cache: Path) -> Session:
    """Return a session's responses from the cache, filling it first where it is absent, stale or damaged.

    Parameters
    ----------
    cache : Path
        Folder of this tree's and subject's cache. A file's name carries a digest of the beta file's size and date and of the voxels,
        so that neither can change unnoticed.

    Raises
    ------
    DataMissing, DataInvalid, OutputError
    """
    source = path(root, subject, session)
    if not source.is_file():
        msg = f"betas of {subject}, session {session} not found: {source}; download that file or choose a trial of another session"
        raise DataMissing(msg)
    stat = source.stat()
    digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns} {grid}".encode() + flat_index.astype("<i8").tobytes()).hexdigest()[:16]
    stem = f"session{session:02d}"
    values, means = cache / f"{stem}-{digest}.npy", cache / f"{stem}-{digest}.moments.npy"
    raw: Raw | None = _mapped(values, (TRIALS, len(flat_index)), np.dtype(np.int16))
    stats: FloatArray | None = _mapped(means, (2, len(flat_index)), np.dtype(np.float32))
    if raw is None or stats is None:
        fresh = read_columns(source, flat_index, grid)
        for old in cache.glob(f"{stem}-*.npy"):
            if digest not in old.name:  # another thread may be filling this very session
                old.unlink(missing_ok=True)
        files.save_array(values, fresh)
        files.save_array(means, moments(fresh))
        raw, stats = np.load(values, mmap_mode="r"), np.load(means)
    mean, std = np.asarray(stats)
    varies = std > 0
    scale = np.divide(1 / PERCENT, std, out=np.zeros_like(std), where=varies)
    offset = np.divide(mean, std, out=np.zeros_like(std), where=varies)
    return Session(raw, scale, offset)


def _mapped(file: Path, shape: tuple[int, int], dtype: np.dtype[Scalar]) -> npt.NDArray[Scalar] | None:
    """Map a cached array; None when it is absent, cut short or of another shape."""
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == dtype else None
