"""Drawn pictures on disk, chunk by chunk, so that an evaluation that was stopped goes on with what it has."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from havir_explorer.errors import DataInvalid, OutputError, reason
from havir_explorer.evaluate.drawing import Chunk, Progress
from havir_explorer.evaluate.run import Drawer, in_turn
from havir_explorer.records import SCORES_VERSION, Request, UInt8Array


def kept(folder: Path, stamped: Callable[[Request], str], drawer: Drawer = in_turn, *, on_fault: Callable[[OutputError], None] | None = None) -> Drawer:
    """Return a drawer that keeps what ``drawer`` draws and draws only what is not kept.

    Parameters
    ----------
    folder : Path
        Made when it is not there; one file a chunk, named by everything that decides its pictures.
    stamped : callable
        A request to a digest of the files its pictures are drawn from: other weights or data are other pictures.
    drawer : callable
        Draws what is not there.
    on_fault : callable, optional
        Told that a chunk could not be kept, and the drawing goes on; without it that stops the drawing.

    Raises
    ------
    DataInvalid
        A kept file is damaged.
    OutputError
        There is no room, or the folder cannot be written; what was kept stays.
    """

    def draw(planned: Sequence[Chunk], progress: Progress) -> Iterator[tuple[int, UInt8Array]]:
        files = [folder / f"{chunk.condition}-{_key(chunk, stamped(chunk.request))}.npy" for chunk in planned]
        todo = [place for place, file in enumerate(files) if not file.is_file()]
        for place in sorted(set(range(len(planned))) - set(todo)):
            yield place, _read(files[place], len(planned[place].nsd_ids))
        left = len(todo) / len(planned)
        for place, pictures in drawer([planned[place] for place in todo], lambda share, line: progress(1 - left * (1 - share), line)) if todo else ():
            try:
                _write(files[todo[place]], pictures)
            except OutputError as fault:
                if on_fault is None:
                    raise
                on_fault(fault)
            yield todo[place], pictures

    return draw


def _key(chunk: Chunk, made_from: str) -> str:
    text = json.dumps({"scores_version": SCORES_VERSION, "made_from": made_from, **dataclasses.asdict(chunk)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read(file: Path, count: int) -> UInt8Array:
    try:
        pictures: UInt8Array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as fault:
        msg = f"the kept pictures {file} cannot be read ({fault}); delete that file: its pictures are drawn anew"
        raise DataInvalid(msg) from fault
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or len(pictures) != count:
        msg = f"the kept pictures {file} are {pictures.dtype} {pictures.shape}, not {count} pictures; delete that file: its pictures are drawn anew"
        raise DataInvalid(msg)
    return pictures


def _write(file: Path, pictures: UInt8Array) -> None:
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.part")  # its own, because two evaluations may keep their pictures in one folder
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as opened:
            np.save(opened, pictures)
        part.replace(file)
    except OSError as fault:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        msg = f"cannot keep pictures in {file.parent}: {reason(fault)}; what was kept stays"
        raise OutputError(msg) from fault
