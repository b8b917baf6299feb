"""The prepared store: a subject's voxel columns in files that are mapped into memory, with checksums, beside the tree they came from.

``prepared/subjXX/betas_…/`` holds ``store.json`` (the record), ``voxels.npy`` (C-order indices into the NIfTI grid) and, for each session,
``sessionNN.npy`` (trials, voxels) with ``sessionNN.moments.npy``; a convention whose statistics span the sessions keeps ``moments.npy`` instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from havir_explorer.data import betas, files, storing
from havir_explorer.data.conventions import DEFAULT, PREPARATIONS
from havir_explorer.errors import DataInvalid
from havir_explorer.records import FloatArray, IntArray

RECORD, VOXELS, MOMENTS = "store.json", "voxels.npy", "moments.npy"
Dtype = Literal["int16", "float32"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredSession(_Frozen):
    """One session: which file it was read from, and the SHA-256 of what was written."""

    source: str
    source_bytes: int
    source_mtime_ns: int
    values: str
    moments: str = ""


class Record(_Frozen):
    """What a store holds.

    Parameters
    ----------
    dtype : {'int16', 'float32'}
        Percent signal change times 300, or percent signal change.
    convention, preparation : str
        See :mod:`havir_explorer.data.conventions`.
    grid : (int, int, int)
    voxels : str
        SHA-256 of ``voxels.npy``.
    sessions : dict of int to StoredSession
        Finished sessions.
    moments : str
        SHA-256 of ``moments.npy``; empty where moments lie with the sessions.
    """

    format: Literal[1] = 1
    kind: Literal["responses"] = "responses"
    subject: str
    dtype: Dtype
    convention: str
    preparation: str
    grid: tuple[int, int, int]
    n_voxels: int
    voxels: str
    sessions: dict[int, StoredSession] = {}
    moments: str = ""


def folder(root: Path, subject: str, preparation: str) -> Path:
    """Return where a subject's store lies, or would lie."""
    return root / "prepared" / subject / PREPARATIONS[preparation]


def rebuild(root: Path, subject: str, convention: str) -> str:
    """Return the command that makes the store again, for an error's sentence."""
    return f"rebuild it with: havir prepare --dataset {root} --subject {subject}{'' if convention == DEFAULT.name else f' --convention {convention}'}"


def read_record(root: Path, subject: str, preparation: str) -> Record | None:
    """Read a store's record; None when there is no store.

    Raises
    ------
    DataInvalid
        The record is damaged, or of another subject or preparation.
    """
    file = folder(root, subject, preparation) / RECORD
    if not file.is_file():
        return None
    try:
        record = Record.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        msg = f"prepared responses of {subject} cannot be used: their record is damaged: {file} ({why}); {rebuild(root, subject, preparation)}"
        raise DataInvalid(msg) from error
    if (record.subject, record.preparation) != (subject, preparation):
        found = f"{record.subject} in preparation {record.preparation}"
        again = rebuild(root, subject, preparation)
        msg = f"prepared responses of {subject} ({preparation}) cannot be used: {file} is of {found}, and the two are never mixed; {again}"
        raise DataInvalid(msg)
    return record


def conventions(root: Path) -> dict[str, str]:
    """Return the convention each store of a tree was prepared under, by ``subject/folder``; damaged records are passed over."""
    found = {}
    for file in sorted((root / "prepared").glob(f"*/*/{RECORD}")):
        try:
            found[f"{file.parent.parent.name}/{file.parent.name}"] = Record.model_validate_json(file.read_bytes()).convention
        except (OSError, ValidationError):
            continue
    return found


def sessions(root: Path, subject: str, preparation: str) -> tuple[int, ...]:
    """Return the sessions a store holds; none when there is no store."""
    record = read_record(root, subject, preparation)
    return tuple(sorted(record.sessions)) if record else ()


def check_voxels(root: Path, record: Record, flat_index: IntArray, grid: files.Grid) -> None:
    """Make sure that a store's columns are the voxels of the tree's ROI files.

    Raises
    ------
    DataInvalid
        They are not, or the list of them is damaged.
    """
    file = folder(root, record.subject, record.preparation) / VOXELS
    stored = _read(root, record, file, record.voxels, (record.n_voxels,))
    if record.grid != grid or not np.array_equal(stored, flat_index):
        msg = (
            f"prepared responses of {record.subject} hold {record.n_voxels} voxels other than the {len(flat_index)} of its ROI files: {file.parent}; "
            f"the ROI files have changed since, so {rebuild(root, record.subject, record.convention)}"
        )
        raise DataInvalid(msg)


def read_session(root: Path, record: Record, number: int) -> tuple[betas.Stored, FloatArray | None]:
    """Map one session into memory, after its checksums were compared.

    Returns
    -------
    values : int16 or float32 (750, n_voxels), memory-mapped
    moments : float32 (2, n_voxels) or None
        Under the store's convention; None where its statistics span the sessions.

    Raises
    ------
    DataInvalid
        A file is absent or damaged, or the original it came from has been replaced since.
    """
    place, session = folder(root, record.subject, record.preparation), record.sessions[number]
    values = _read(root, record, place / f"session{number:02d}.npy", session.values, (betas.TRIALS, record.n_voxels))
    _check_source(root, record, session, values)
    if not session.moments:
        return values, None
    return values, _read(root, record, place / f"session{number:02d}.{MOMENTS}", session.moments, (2, record.n_voxels))


def read_moments(root: Path, record: Record) -> FloatArray:
    """Read the statistics that span the sessions, float32 (2, n_voxels); raises as :func:`read_session`."""
    place = folder(root, record.subject, record.preparation)
    return _read(root, record, place / MOMENTS, record.moments, (2, record.n_voxels))


def _check_source(root: Path, record: Record, session: StoredSession, values: betas.Stored) -> None:
    """Raise when the original is another file by now; a copy of the same, whose date alone differs, is not."""
    source = betas.folder(root, record.subject, record.preparation) / session.source
    if not source.is_file():
        return
    stat, flat = source.stat(), np.load(folder(root, record.subject, record.preparation) / VOXELS, mmap_mode="r")
    dated = stat.st_mtime_ns == session.source_mtime_ns
    if stat.st_size != session.source_bytes or not (dated or betas.agree(source, values, flat, record.grid)):
        again = rebuild(root, record.subject, record.convention)
        msg = f"prepared responses of {record.subject} are older than {source}, which has been replaced since; {again}"
        raise DataInvalid(msg)


def _read(root: Path, record: Record, file: Path, expected: str, shape: tuple[int, ...]) -> np.ndarray:
    """Map an array once its checksum and shape are right."""
    again = rebuild(root, record.subject, record.convention)
    try:
        found = storing.digest(file)
        array = np.load(file, mmap_mode="r") if found == expected else None
    except (OSError, ValueError, EOFError) as error:
        msg = f"prepared responses of {record.subject} cannot be used: {file} cannot be read ({error}); {again}"
        raise DataInvalid(msg) from error
    if array is None or array.shape != shape:
        msg = f"prepared responses of {record.subject} are damaged: {file} is not what was written (its checksum differs); {again}"
        raise DataInvalid(msg)
    return array
