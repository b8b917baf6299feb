"""Open a data file, or say in one sentence why that failed."""

from __future__ import annotations

import os
import uuid
import zlib
from pathlib import Path

import h5py
import nibabel
import numpy as np
import numpy.typing as npt
from isal.igzip_lib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError

from havir_explorer.errors import DataInvalid, DataMissing, OutputError

Array = npt.NDArray[np.generic]
Grid = tuple[int, int, int]

BROKEN_GZIP: type[Exception] = IsalError  # type: ignore[assignment] # its stub calls it an instance
"""What a gzip stream with a wrong checksum raises."""
_BROKEN = (ImageFileError, MGHError, zlib.error, BROKEN_GZIP)
UNREADABLE = (*_BROKEN, OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, NotImplementedError)
"""What libraries raise for a file that is cut short or is something else."""


def unreadable(what: str, path: Path, error: Exception, todo: str = "download it again") -> str:
    """Return the sentence about a file that cannot be read: what the system says where it is at fault, else that the file is cut short.

    Parameters
    ----------
    what : str
        What the file is, for the error's sentence.
    path : Path
    error : Exception
        One of ``UNREADABLE``.
    todo : str
        What to do about a file that is cut short.
    """
    if isinstance(error, PermissionError) or not os.access(path, os.R_OK):  # nibabel and SciPy do not tell
        return f"{what} cannot be opened: {path} may not be read by this user; change its permissions"
    if isinstance(error, OSError) and error.errno:
        return f"{what} cannot be read: {path} ({os.strerror(error.errno)}); this machine, its disk or its network is at fault, not the file: try again"
    found = f"{path.stat().st_size:,} bytes"
    return f"{what} cannot be read: {path} ({found}) is truncated or of another kind ({error or type(error).__name__}); {todo}"


def require(path: Path, what: str, todo: str) -> Path:
    """Return ``path`` when it is a file.

    Raises
    ------
    DataMissing
        ``"{what} not found: {path}; {todo}"``.
    """
    if not path.is_file():
        msg = f"{what} not found: {path}; {todo}"
        raise DataMissing(msg)
    return path


def volume(path: Path, what: str, grid: Grid | None = None) -> tuple[Array, npt.NDArray[np.float64]]:
    """Read a NIfTI volume.

    Parameters
    ----------
    path : Path
    what : str
        What the file is, for the error's sentence.
    grid : (int, int, int), optional
        Expected (X, Y, Z).

    Returns
    -------
    values : (X, Y, Z)
        In the file's own dtype, or floating where the header asks for scaling.
    affine : float64 (4, 4)

    Raises
    ------
    DataMissing, DataInvalid
        Absent; unreadable or of another grid.
    """
    require(path, what, "download it into the tree or leave its family of files out")
    try:
        image = nibabel.load(path)
        values, affine = np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
    except UNREADABLE as error:
        raise DataInvalid(unreadable(what, path, error)) from error
    if values.ndim != 3 or (grid is not None and values.shape != grid):
        msg = f"{what} has shape {values.shape}, expected {grid or '(X, Y, Z)'}: {path}; it belongs to another subject or grid"
        raise DataInvalid(msg)
    return values, affine


def vertex_table(path: Path, what: str, columns: int) -> npt.NDArray[np.float64]:
    """Read an ``.mgz`` table of per-vertex numbers.

    Returns
    -------
    float64 (n_vertices, columns)

    Raises
    ------
    DataMissing, DataInvalid
        Absent; unreadable or not a multiple of ``columns`` long.
    """
    require(path, what, "download the subject's transforms folder")
    try:
        values = np.asarray(nibabel.load(path).dataobj, dtype=np.float64)  # type: ignore[attr-defined]
    except UNREADABLE as error:
        raise DataInvalid(unreadable(what, path, error)) from error
    if values.size == 0 or values.size % columns or values.shape[0] != values.size // columns:
        msg = f"{what} has shape {values.shape}, expected (vertices, {columns}): {path}"
        raise DataInvalid(msg)
    # MGH is Fortran-ordered, and writers differ in where they put the axes of length one.
    return values.reshape((-1, columns), order="F")


def hdf5(path: Path, what: str, todo: str, dataset: str) -> tuple[h5py.File, h5py.Dataset]:
    """Open an HDF5 file and one data set of it; the caller closes the file.

    Raises
    ------
    DataMissing, DataInvalid
        Absent; truncated, not HDF5, or without ``dataset``.
    """
    require(path, what, todo)
    try:
        file = h5py.File(path, "r", locking=False)  # nobody writes it in place, and network disks may know no locks
    except OSError as error:
        raise DataInvalid(unreadable(what, path, error, todo)) from error
    if not isinstance(file.get(dataset), h5py.Dataset):
        found = ", ".join(sorted(file)) or "nothing"
        file.close()
        msg = f"{what} holds no data set {dataset!r}, found {found}: {path}; {todo}"
        raise DataInvalid(msg)
    return file, file[dataset]


def save_array(path: Path, array: Array, what: str = "response cache", todo: str = "free some space or point HAVIR_CACHE to another folder") -> None:
    """Write ``array`` as ``.npy``: under a temporary name first, so that no half-written file ever carries the real one.

    Parameters
    ----------
    path : Path
    array : array
    what, todo : str
        What is written and what the user can do, for the error's sentence.

    Raises
    ------
    OutputError
        The folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with part.open("xb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())  # on the disk before it has its name, or a power cut could leave the name alone
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        msg = f"the {what} cannot be written: {path} ({error.strerror or error}); {todo}"
        raise OutputError(msg) from error
