"""Single-trial responses as NSD ships them: where a session's file lies, and its voxels' columns out of it.

An HDF5 session holds int16 ``betas`` of shape (750, Z, Y, X) in chunks of one voxel by 750 trials, so one trial touches every chunk:
reading by trial takes seconds to minutes, reading by voxel column a fraction of a second. A NIfTI session is one gzip stream of volumes
(X, Y, Z), trial after trial, which must be read whole.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import nibabel
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from havir_explorer.data import files
from havir_explorer.data.conventions import DEFAULT, PREPARATIONS
from havir_explorer.errors import DataInvalid
from havir_explorer.records import BoolArray, FloatArray, IntArray

TRIALS = 750
"""Trials in every NSD session."""
PERCENT = 300.0
"""int16 units in one percent signal change (volumes only)."""

PROBED = 16
"""Trials of a NIfTI session read to foretell the time of the whole."""

Raw = npt.NDArray[np.int16]
Stored = npt.NDArray[np.int16] | FloatArray

_FILE = re.compile(r"betas_session(\d{2})\.(hdf5|nii\.gz)")
_REMEDY = "download it again from the natural-scenes-dataset bucket"


@dataclass(frozen=True, eq=False)
class Session:
    """One session's responses.

    Parameters
    ----------
    raw : int16 or float32 (750, n_voxels), often memory-mapped
        Percent signal change times 300, or percent signal change.
    scale, offset : float32 (n_voxels,)
        ``raw * scale - offset`` is the z-scored response; both 0 where a voxel does not vary.
    """

    raw: Stored
    scale: FloatArray
    offset: FloatArray

    def zscored(self, rows: IntArray) -> FloatArray:
        """Return float32 (n, n_voxels) for 0-based trials of the session."""
        values: FloatArray = self.raw[rows].astype(np.float32)
        values *= self.scale
        values -= self.offset
        return values


def scored(raw: Stored, statistics: FloatArray) -> Session:
    """Join a session's values with the mean and standard deviation, float32 (2, n_voxels) in percent, that z-score them."""
    mean, std = np.asarray(statistics)
    varies = std > 0
    scale = np.divide(1 / unit(raw.dtype), std, out=np.zeros_like(std), where=varies)
    offset = np.divide(mean, std, out=np.zeros_like(std), where=varies)
    return Session(raw, scale, offset)


def unit(dtype: npt.DTypeLike) -> float:
    """Return how many units of stored values make one percent signal change."""
    return PERCENT if np.dtype(dtype) == np.int16 else 1.0


def whole_units(values: Stored) -> npt.NDArray[np.float64]:
    """Return values in percent times 300: whole numbers, so that sums are exact and a constant voxel's deviation is exactly 0."""
    exact = values.astype(np.float64)
    return exact if values.dtype == np.int16 else np.rint(exact * PERCENT)


def folder(root: Path, subject: str, preparation: str = DEFAULT.preparation) -> Path:
    """Return the folder of a subject's betas."""
    return root / "nsddata_betas" / "ppdata" / subject / "func1pt8mm" / PREPARATIONS[preparation]


def path(root: Path, subject: str, session: int, preparation: str = DEFAULT.preparation) -> Path:
    """Return the file of a 1-based session: HDF5 unless only NIfTI is there."""
    stem = folder(root, subject, preparation) / f"betas_session{session:02d}"
    nifti = stem.with_name(f"{stem.name}.nii.gz")
    columns = stem.with_name(f"{stem.name}.hdf5")
    return nifti if nifti.is_file() and not columns.is_file() else columns


def sessions(root: Path, subject: str, preparation: str = DEFAULT.preparation) -> tuple[int, ...]:
    """Return the 1-based sessions whose file exists, in order; they need not be contiguous."""
    found = (_FILE.fullmatch(p.name) for p in folder(root, subject, preparation).glob("betas_session*"))
    return tuple(sorted({int(match[1]) for match in found if match}))


def read_columns(source: Path, flat_index: IntArray, grid: files.Grid) -> Raw:
    """Read voxel columns of one session file.

    Parameters
    ----------
    source : Path
        ``betas_sessionNN.hdf5`` or ``betas_sessionNN.nii.gz``.
    flat_index : int64 (n_voxels,)
        C-order indices into the NIfTI grid.
    grid : (int, int, int)
        NIfTI (X, Y, Z).

    Returns
    -------
    int16 (750, n_voxels)

    Raises
    ------
    DataMissing, DataInvalid
        Absent; truncated, of another grid or not int16.
    """
    return _read_nifti(source, flat_index, grid) if source.suffix == ".gz" else _read_hdf5(source, flat_index, grid)


def probe(source: Path, flat_index: IntArray, grid: files.Grid, share: float) -> float:
    """Read a part of a session and its statistics, and return which share of the whole that was: ``share`` of the columns, or some of the volumes.

    Raises
    ------
    DataMissing, DataInvalid
        As :func:`read_columns`.
    """
    if source.suffix == ".gz":
        _read_nifti(source, flat_index, grid, PROBED)
        return PROBED / TRIALS
    moments(_read_hdf5(source, flat_index, grid))
    return share


def agree(source: Path, stored: Stored, flat_index: IntArray, grid: files.Grid, columns: int = 16) -> bool:
    """Say whether a few columns of a session file, as :func:`read_columns` takes it, are those stored; of NIfTI, their first trials."""
    some = np.unique(np.linspace(0, len(flat_index) - 1, columns).astype(np.int64))
    nifti = source.suffix == ".gz"
    part = _read_nifti(source, flat_index[some], grid, PROBED) if nifti else _read_hdf5(source, flat_index[some], grid)
    return np.array_equal(whole_units(stored[: len(part), some]), part)


def _read_nifti(source: Path, flat_index: IntArray, grid: files.Grid, trials: int = TRIALS) -> Raw:
    """Read the volumes one after the other, keeping the voxels asked for: a session unpacked would take a gigabyte."""
    files.require(source, "beta file", _REMEDY)
    try:
        inside = nibabel.load(source).dataobj  # type: ignore[attr-defined]
        _check(source, inside.dtype.newbyteorder("="), inside.shape, (*grid, TRIALS), "(X, Y, Z, trial)")
        if (inside.slope, inside.inter) != (1.0, 0.0):
            msg = f"beta file asks for its values to be scaled by {inside.slope} and shifted by {inside.inter}, which NSD's do not: {source}; {_REMEDY}"
            raise DataInvalid(msg)
        with source.open("rb") as packed:
            return _volumes(packed, inside.offset, inside.dtype, flat_index, grid, trials)
    except files.UNREADABLE as error:
        if isinstance(error, DataInvalid):
            raise
        raise DataInvalid(files.unreadable("beta file", source, error, _REMEDY)) from error


def _volumes(packed: BinaryIO, start: int, dtype: np.dtype[np.int16], flat_index: IntArray, grid: files.Grid, trials: int) -> Raw:
    x, y, z = np.unravel_index(flat_index, grid)
    at = np.ravel_multi_index((z, y, x), grid[::-1])  # NIfTI lets x run fastest
    size = int(np.prod(grid)) * dtype.itemsize
    columns, rest = np.empty((trials, len(at)), np.int16), bytearray()
    stream = _unpacked(packed, size)
    for trial in range(trials):
        while len(rest) < start + size:
            piece = next(stream, None)
            if piece is None:
                msg = f"it ends in trial {trial}"
                raise EOFError(msg)
            rest += piece
        columns[trial] = np.frombuffer(rest, dtype, int(np.prod(grid)), start)[at]
        del rest[: start + size]
        start = 0
    if trials == TRIALS:
        deque(stream, maxlen=0)  # past the last volume lies gzip's checksum
    return columns


def _unpacked(packed: BinaryIO, most: int) -> Iterator[bytes]:
    """Unpack gzip in pieces of at most ``most`` bytes, by ISA-L in half the time that zlib takes; both check length and checksum."""
    unpacker = isal_zlib.decompressobj(wbits=31)
    while not unpacker.eof:
        content = unpacker.unconsumed_tail or packed.read(1 << 20)
        if not content:
            msg = "its gzip stream has no end"
            raise EOFError(msg)
        yield unpacker.decompress(content, most)


def _read_hdf5(source: Path, flat_index: IntArray, grid: files.Grid) -> Raw:
    file, betas = files.hdf5(source, "beta file", _REMEDY, "betas")
    with file:
        _check(source, betas.dtype, betas.shape, (TRIALS, *grid[::-1]), "(trial, Z, Y, X)")
        x, y, z = np.unravel_index(flat_index, grid)
        try:
            if betas.chunks == (TRIALS, 1, 1, 1) and betas.id.get_create_plist().get_nfilters() == 0:
                return _read_chunks(betas, x, y, z)
            return _read_slices(betas, x, y, z)
        except OSError as error:
            raise DataInvalid(files.unreadable("beta file", source, error, _REMEDY)) from error


def _check(source: Path, dtype: np.dtype[np.int16], shape: tuple[int, ...], expected: tuple[int, ...], axes: str) -> None:
    if shape != expected or dtype != np.int16:
        msg = f"beta file holds {dtype} {shape}, expected int16 {expected} {axes}: {source}; it belongs to another subject or grid"
        raise DataInvalid(msg)


def _read_chunks(betas: h5py.Dataset, x: IntArray, y: IntArray, z: IntArray) -> Raw:
    """Take each voxel's one uncompressed chunk as it lies in the file, past HDF5's selection machinery."""
    dtype = betas.dtype
    columns = np.empty((len(x), TRIALS), dtype)
    order = np.lexsort((x, y, z))  # as the file runs
    for i, xi, yi, zi in zip(order.tolist(), x[order].tolist(), y[order].tolist(), z[order].tolist(), strict=True):
        try:
            columns[i] = np.frombuffer(betas.id.read_direct_chunk((0, zi, yi, xi))[1], dtype)
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


def moments(raw: Stored, block: int = 4096, trials: BoolArray | None = None) -> FloatArray:
    """Return float32 (2, n_voxels): mean and standard deviation (ddof 0) over the trials, or some of them, in percent signal change."""
    result = np.empty((2, raw.shape[1]), np.float32)
    rows = slice(None) if trials is None else trials
    for start in range(0, raw.shape[1], block):  # float64 sums without a float64 copy of the whole session
        columns = whole_units(raw[rows, start : start + block])
        total, squares, count = columns.sum(axis=0), np.einsum("tv,tv->v", columns, columns), len(columns)
        variance = (count * squares - np.square(total)) / count**2  # of whole numbers: nothing is rounded before the division
        result[:, start : start + block] = total / count / PERCENT, np.sqrt(variance) / PERCENT
    return result
