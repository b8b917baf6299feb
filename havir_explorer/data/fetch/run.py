"""From what an order comes to, to a tree that holds it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from havir_explorer.data.fetch import folder, pictures, verify
from havir_explorer.data.fetch.bucket import Bucket, Remote
from havir_explorer.data.fetch.keys import BRICK_KEY
from havir_explorer.data.fetch.survey import Survey
from havir_explorer.data.fetch.transfer import Piece, Tally, download, patiently, side_by_side, whole
from havir_explorer.errors import DataInvalid
from havir_explorer.records import IntArray

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Report:
    """What a fetch did.

    Parameters
    ----------
    files : int
        Files that came or were found good.
    pictures : int
        Pictures that came.
    moved : int
        Bytes that came.
    seconds : float
        Wall time.
    checked : tuple of (str, int)
        How files were checked, and how many that way.
    """

    files: int
    pictures: int
    moved: int
    seconds: float
    checked: tuple[tuple[str, int], ...]


def fetch(bucket: Bucket, found: Survey, progress: Progress | None = None) -> Report:
    """Bring what a folder lacks.

    Files come side by side and each appears under its name only once it is whole and checked. Whatever stops this, what has come stays, and the
    next call goes on from there.

    Parameters
    ----------
    bucket : Bucket
    found : Survey
        Its folder is made already (:func:`~havir_explorer.data.fetch.folder.make`).
    progress : callable, optional
        Called in this thread with the share done and a phrase, some times a second; an exception it raises stops the work.

    Raises
    ------
    OutputError
        Not enough room, or the folder cannot be written, or another fetch is at work in it.
    DataMissing, SourceUnavailable
        An object is gone; the network broke for good.
    DataInvalid
        An object arrived damaged: its part is deleted.
    """
    started, stop, tally = time.perf_counter(), threading.Event(), Tally(found.left)
    with folder.alone(found.root):
        folder.check_room(found.root, found.room)
        book = _Book(found.root)
        look = partial(_look, tally, progress) if progress else _nothing
        works = [partial(_bring, bucket, item.remote, book, tally, stop) for item in found.items if item.state != "here"]
        side_by_side(works, stop, look)
        count = 0
        if found.some is not None:
            ids = pictures.lacking(found.root / BRICK_KEY, found.some.remote, pictures.wanted(found.root, found.order))
            count = len(ids)
            if count:
                side_by_side([partial(_bring_pictures, bucket, Piece(found.some.remote, found.root / BRICK_KEY, ()), ids, tally, stop)], stop, look)
    seconds = round(time.perf_counter() - started, 2)
    return Report(len(works), count, tally.moved, seconds, tuple(sorted(Counter(book.checked).items())))


class _Book:
    """What came into a folder, written down after each file."""

    def __init__(self, root: Path) -> None:
        self.root, self.checked = root, list[str]()
        self._arrivals, self._lock = folder.read_arrivals(root), threading.Lock()

    def enter(self, remote: Remote, checked: str) -> None:
        with self._lock:
            self.checked.append(checked)
            self._arrivals[remote.key] = folder.arrival(self.root / remote.key, remote, checked)
            folder.write_arrivals(self.root, self._arrivals)


def _bring(bucket: Bucket, remote: Remote, book: _Book, tally: Tally, stop: threading.Event) -> None:
    piece = whole(remote, book.root)
    checked = _good(piece)
    if checked is None:
        part = download(bucket, piece, tally, stop)
        try:
            checked = verify.check(part, remote)
            if "MD5" not in checked:
                _same_still(bucket, remote, tally, stop)
        except DataInvalid as damage:
            part.unlink()
            msg = f"{damage}; the part was deleted: run the same command again, and if it happens again suspect a proxy or the disk"
            raise DataInvalid(msg) from damage
        with folder.writing(piece.target):
            part.replace(piece.target)
    book.enter(remote, checked)


def _good(piece: Piece) -> str | None:
    """Say how a file that was there before is known to be good; None when it is not."""
    try:
        return verify.check(piece.target, piece.remote)
    except (FileNotFoundError, DataInvalid):
        return None


def _bring_pictures(bucket: Bucket, brick: Piece, ids: IntArray, tally: Tally, stop: threading.Event) -> None:
    tally.phrase = "looking up pictures in the brick"
    where = pictures.layout(bucket, brick.remote, ids)
    piece = replace(brick, spans=where.spans)
    tally.total = tally.moved + piece.left  # now it is known how large they are
    part = download(bucket, piece, tally, stop)
    tally.phrase = f"putting {len(ids):,} pictures into {brick.target.name}"
    try:
        _same_still(bucket, brick.remote, tally, stop)
        pictures.assemble(part, where, brick.remote, brick.target)
    except DataInvalid as damage:
        part.unlink()
        msg = f"{damage}; the part was deleted: run the same command again"
        raise DataInvalid(msg) from damage


def _same_still(bucket: Bucket, remote: Remote, tally: Tally, stop: threading.Event) -> None:
    """Raise when an object was replaced while it was fetched; where there is an MD5 of it, that says so already."""
    if not patiently(partial(bucket.unchanged, remote), tally, stop):
        msg = f"{remote.key} was replaced in the bucket while it was being fetched"
        raise DataInvalid(msg)


def _look(tally: Tally, progress: Progress) -> None:
    progress(min(1.0, tally.moved / tally.total) if tally.total else 1.0, f"{folder.size(tally.moved)} of {folder.size(tally.total)}: {tally.phrase}")


def _nothing() -> None:
    """Nobody looks."""
