"""Write the prepared store: one session at a time, each under its name only when whole, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from havir_explorer.data import betas, files, prepared, scores, storing
from havir_explorer.data.prepared import Dtype, Record, StoredSession
from havir_explorer.errors import DataInvalid, OutputError
from havir_explorer.records import IntArray

STORE = "prepared store"
Progress = Callable[[float, str], None]
PROBE = 256
"""Voxel columns read to foretell the time."""
_WRITABLE = (
    "it lies in the data set's own folder, so make that writable; where you may not, make a folder of your own with links to "
    "its nsddata, nsddata_betas and nsddata_stimuli, and give that as --dataset"
)
WRITING = 2e8
"""Bytes a second taken for writing and comparing; a guess, reading costs more."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What preparing a subject will take.

    Parameters
    ----------
    responses : SubjectResponses
        Where the values come from, and under which convention.
    record : Record
        The store as it stands: finished sessions are not read again.
    numbers : tuple of int
        Sessions the store will hold.
    todo : tuple of int
        Those of them still to read.
    bytes_to_write, bytes_free : int
        Both 0 where the store is whole: it may lie where it cannot be written.
    seconds : float
        Foretold from reading a small part of one session; 0 when nothing is left to do.
    """

    responses: scores.SubjectResponses
    record: Record
    numbers: tuple[int, ...]
    todo: tuple[int, ...]
    bytes_to_write: int
    bytes_free: int
    seconds: float

    @property
    def ready(self) -> bool:
        """True where the store is whole and nothing is written."""
        return not self.todo and _whole(self.responses, self.record)

    @property
    def folder(self) -> Path:
        """Where the store goes."""
        return prepared.folder(self.responses.root, self.responses.subject, self.responses.convention.preparation)


def plan(responses: scores.SubjectResponses, dtype: Dtype, workers: int = 1) -> Plan:
    """Look at what is there and foretell time and disk.

    Raises
    ------
    DataMissing, DataInvalid
        No session; the first one to read is damaged.
    OutputError
        The tree cannot be written, or has no room.
    """
    record = _begun(responses, dtype)
    here = betas.sessions(responses.root, responses.subject, responses.convention.preparation)
    numbers = tuple(n for n in sorted({*here, *record.sessions}) if n <= responses.convention.last_session)
    todo = tuple(n for n in numbers if not _finished(responses, record, n))
    each = betas.TRIALS * record.n_voxels * np.dtype(dtype).itemsize + 2 * record.n_voxels * 4
    place = prepared.folder(responses.root, responses.subject, responses.convention.preparation)
    seconds = _foretold(responses, todo, workers) + len(todo) * each / WRITING
    made = Plan(replace(responses), record, numbers, todo, len(todo) * each, 0, seconds)
    if made.ready:
        return made
    made = replace(made, bytes_free=storing.room(place, STORE, _WRITABLE))
    if made.bytes_to_write > made.bytes_free:
        msg = f"the prepared store needs {made.bytes_to_write / 1e9:.1f} GB in {place}, where {made.bytes_free / 1e9:.1f} GB are free; make room first"
        raise OutputError(msg)
    return made


def _begun(responses: scores.SubjectResponses, dtype: Dtype) -> Record:
    """Return the record of the store in place if it can be gone on with, or of an empty one."""
    root, subject, convention = responses.root, responses.subject, responses.convention
    place, geometry = prepared.folder(root, subject, convention.preparation), responses.geometry
    fresh = Record(
        subject=subject,
        dtype=dtype,
        convention=convention.name,
        preparation=convention.preparation,
        grid=geometry.shape,
        n_voxels=len(geometry.flat_index),
        voxels=_digest_of(geometry.flat_index),
    )
    try:
        found = prepared.read_record(root, subject, convention.preparation)
    except DataInvalid:
        found = None
    if found is not None and found.model_copy(update={"sessions": {}, "moments": ""}) == fresh:
        return found
    held = (int(file.stem.removeprefix("session")) for file in sorted(place.glob("session[0-9][0-9].npy")))
    lost = [n for n in held if not betas.path(root, subject, n, convention.preparation).is_file()]
    if lost:
        how = f"prepared as {found.convention}, {found.dtype}, {found.n_voxels} voxels" if found else f"without a {prepared.RECORD} that can be read"
        else_ = f"open {root}#{fresh.convention}" if found else "put that file back"
        msg = (
            f"{place} holds session {lost[0]} of {subject} {how}, and its original is gone, "
            f"so it cannot be made again as {fresh.convention}, {fresh.dtype}, {fresh.n_voxels} voxels; download it again, or {else_}"
        )
        raise DataInvalid(msg)
    return fresh


def _whole(responses: scores.SubjectResponses, record: Record) -> bool:
    """Return True when what belongs to all sessions is in the store, undamaged."""
    try:
        prepared.check_voxels(responses.root, record, responses.geometry.flat_index, responses.geometry.shape)
        if responses.convention.statistics == "training images":
            prepared.read_moments(responses.root, record)
    except DataInvalid:
        return False
    return True


def _finished(responses: scores.SubjectResponses, record: Record, number: int) -> bool:
    """Return True when a session is in the store, undamaged and of the file at hand."""
    if number not in record.sessions:
        return False
    try:
        prepared.read_session(responses.root, record, number)
    except DataInvalid:
        if betas.path(responses.root, responses.subject, number, record.preparation).is_file():
            return False
        raise  # nothing to make it from again
    return True


def _foretold(responses: scores.SubjectResponses, todo: tuple[int, ...], workers: int) -> float:
    """Read a part of the first session to be done, and scale up."""
    if not todo:
        return 0.0
    source = betas.path(responses.root, responses.subject, todo[0], responses.convention.preparation)
    flat = responses.geometry.flat_index
    x, y, z = np.unravel_index(flat, responses.geometry.shape)
    some = flat[np.lexsort((x, y, z))[len(flat) // 2 :][:PROBE]]  # neighbours in the file, as the whole is read
    began = time.perf_counter()
    share = betas.probe(source, some, responses.geometry.shape, len(some) / len(flat))
    return (time.perf_counter() - began) / share * len(todo) / min(workers, len(todo))


def prepare(made: Plan, *, workers: int = 1, progress: Progress | None = None) -> Record:
    """Carry out a plan.

    Parameters
    ----------
    made : Plan
    workers : int
        Processes reading sessions side by side, each with one session in memory.
    progress : callable, optional
        Called with the share done and a phrase. What it raises stops the work; finished sessions stay.

    Returns
    -------
    Record

    Raises
    ------
    DataMissing, DataInvalid
        A session's file is absent, damaged or of another grid.
    OutputError
        The store cannot be written, or another run is writing it.
    """
    responses, record = made.responses, made.record
    if made.ready:
        return record
    with storing.alone(made.folder, "havir prepare"):
        if _begun(responses, record.dtype) != record:
            msg = f"the {STORE} {made.folder} was written by another run meanwhile; run the same command again: what is finished stays"
            raise OutputError(msg)
        return _prepare(made, workers, progress or _silent)


def _prepare(made: Plan, workers: int, tell: Progress) -> Record:
    responses, record, place = made.responses, made.record, made.folder
    storing.save(place / prepared.VOXELS, responses.geometry.flat_index, STORE)
    record = record.model_copy(update={"sessions": {n: s for n, s in record.sessions.items() if n not in made.todo}, "moments": ""})
    storing.save_record(place / prepared.RECORD, record, STORE)
    for done, (number, session) in enumerate(_sessions(made, workers), start=1):
        record = record.model_copy(update={"sessions": dict(sorted({**record.sessions, number: session}.items()))})
        storing.save_record(place / prepared.RECORD, record, STORE)
        tell(done / (len(made.todo) + 1), f"{responses.subject}: session {number} prepared")
    if responses.convention.statistics == "training images":
        tell(1 - 1 / (len(made.todo) + 1), f"{responses.subject}: statistics over all sessions")
        values = [prepared.read_session(responses.root, record, n)[0] for n in record.sessions]
        moments = scores.spanning_moments(values, tuple(record.sessions), responses.nsd_ids, responses.training)
        record = record.model_copy(update={"moments": storing.save(place / prepared.MOMENTS, moments, STORE)})
        storing.save_record(place / prepared.RECORD, record, STORE)
    tell(1.0, f"{responses.subject}: prepared")
    return record


def _sessions(made: Plan, workers: int) -> Iterator[tuple[int, StoredSession]]:
    """Write every session still to do, in this process or in several."""
    if workers <= 1 or len(made.todo) <= 1:
        for number in made.todo:
            yield number, _write_session(made.responses, number, made.record.dtype)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(made.todo)), spawn, _follow_parent) as pool:
        running = {pool.submit(_write_session, made.responses, number, made.record.dtype): number for number in made.todo}
        try:
            for finished in as_completed(running):
                yield running[finished], finished.result()
        except BrokenProcessPool as error:
            msg = "a process that read a session was ended from outside, as for lack of memory; run again with fewer --workers: finished sessions stay"
            raise OutputError(msg) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the process that started this one, and end when that one is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write_session(responses: scores.SubjectResponses, number: int, dtype: Dtype) -> StoredSession:
    """Read one session's columns and write them with their statistics."""
    source = betas.path(responses.root, responses.subject, number, responses.convention.preparation)
    stat = files.require(source, "beta file", "download it again").stat()
    raw = betas.read_columns(source, responses.geometry.flat_index, responses.geometry.shape)
    place = prepared.folder(responses.root, responses.subject, responses.convention.preparation)
    values = raw if dtype == "int16" else (raw.astype(np.float32) / np.float32(betas.PERCENT))
    stored = storing.save(place / f"session{number:02d}.npy", values, STORE)
    moments = responses.moments(number, raw)
    kept = "" if moments is None else storing.save(place / f"session{number:02d}.{prepared.MOMENTS}", moments, STORE)
    return StoredSession(source=source.name, source_bytes=stat.st_size, source_mtime_ns=stat.st_mtime_ns, values=stored, moments=kept)


def delete_originals(made: Plan, record: Record, *, progress: Progress | None = None) -> tuple[Path, ...]:
    """Delete the files the store was made from, each after the store was compared with it, column by column.

    Returns
    -------
    tuple of Path
        What was deleted.

    Raises
    ------
    DataInvalid
        The store differs from a file, which stays, as do all after it.
    OutputError
        A file cannot be deleted.
    """
    deleted: list[Path] = []
    responses = made.responses
    for done, (number, session) in enumerate(record.sessions.items()):
        source = betas.folder(responses.root, responses.subject, record.preparation) / session.source
        if not source.is_file():
            continue
        (progress or _silent)(done / len(record.sessions), f"{responses.subject}: comparing session {number} with its original")
        values, _ = prepared.read_session(responses.root, record, number)
        raw = betas.read_columns(source, responses.geometry.flat_index, responses.geometry.shape)
        if not np.array_equal(betas.whole_units(values), raw):
            again = prepared.rebuild(responses.root, responses.subject, record.convention)
            msg = f"the prepared session {number} of {responses.subject} differs from {source}, which stays; {again}"
            raise DataInvalid(msg)
        try:
            source.unlink()
        except OSError as error:
            msg = f"the original {source} cannot be deleted ({error.strerror or error}); it was prepared and compared, so delete it by hand"
            raise OutputError(msg) from error
        deleted.append(source)
    return tuple(deleted)


def _digest_of(flat_index: IntArray) -> str:
    """Return the SHA-256 that ``voxels.npy`` will have."""
    content = io.BytesIO()
    np.lib.format.write_array(content, flat_index)
    return hashlib.sha256(content.getvalue()).hexdigest()


def _silent(_share: float, _phrase: str) -> None:
    """Tell nobody."""
