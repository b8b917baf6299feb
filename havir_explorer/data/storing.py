"""Write a store of several files: each whole or not at all, by one run at a time, with room looked for first."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from havir_explorer.claim import claimed
from havir_explorer.data import files
from havir_explorer.errors import OutputError

AGAIN = "make room, then run the same command again: what is finished stays"


def digest(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save(file: Path, array: files.Array, store: str) -> str:
    """Write an array as ``.npy``, and return the SHA-256 of the file as it reads back.

    Parameters
    ----------
    file : Path
    array : array
    store : str
        What the file belongs to, for the error's sentence.

    Raises
    ------
    OutputError
        The folder cannot be written, or the disk is full.
    """
    files.save_array(file, array, store, AGAIN)
    return digest(file)


def save_record(file: Path, record: BaseModel, store: str) -> None:
    """Write a record as JSON; parameters and errors as :func:`save`."""
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            stream.write(record.model_dump_json(indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        msg = f"the {store} cannot be written: {file.parent} ({error.strerror or error}); {AGAIN}"
        raise OutputError(msg) from error


def room(place: Path, store: str, todo: str) -> int:
    """Return the bytes free where a store goes, once it is known that it can be written there.

    Raises
    ------
    OutputError
        It cannot; the sentence ends in ``todo``.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return shutil.disk_usage(place).free
    except OSError as error:
        msg = f"the {store} cannot be written: {place} ({error.strerror or error}); {todo}"
        raise OutputError(msg) from error


@contextmanager
def alone(place: Path, command: str) -> Iterator[None]:
    """Keep other runs off a store; the system ends the claim with the process, however that ends. What a killed run left half-written is deleted.

    Raises
    ------
    OutputError
        Another run of ``command`` is writing there, or it cannot be written.
    """
    taken = f"another {command} is writing {place}; wait for it to end, then run this again if it was stopped"
    with claimed(place / ".lock", taken, AGAIN):
        for leftover in place.glob("*.part"):
            leftover.unlink(missing_ok=True)
        yield
