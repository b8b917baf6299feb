"""Bytes from the bucket into a part of a file: in order, so that a part's length says what it still lacks after a cut at any byte."""

from __future__ import annotations

import glob
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from havir_explorer.data.fetch.bucket import Bucket, Interrupted, Remote, Span
from havir_explorer.data.fetch.folder import writing
from havir_explorer.errors import Cancelled

Answer = TypeVar("Answer")

BLOCK = 2 * 2**20
"""Most bytes of one request."""
BATCH = 8 * 2**20
"""Bytes asked for side by side before any of them is written; a stop waits for one batch."""
WORKERS = 3
"""Files fetched side by side."""
PAUSES = (1.0, 5.0, 15.0, 30.0)
"""Seconds to wait before another try when the network broke."""


@dataclass(frozen=True)
class Piece:
    """What shall come, and where it goes.

    Parameters
    ----------
    remote : Remote
    target : Path
        The finished file.
    spans : tuple of (int, int)
        Ranges of the object, in the order in which they are written.
    """

    remote: Remote
    target: Path
    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(stop - start for start, stop in self.spans)

    @property
    def part(self) -> Path:
        """The unfinished file, whose name says of which content and ranges it is a part: an object that changed starts anew."""
        about = f"{self.remote.etag} {self.remote.size} {self.spans}"
        return self.target.with_name(f"{self.target.name}.{hashlib.sha256(about.encode()).hexdigest()[:12]}.part")

    @property
    def left(self) -> int:
        """Bytes still to come."""
        try:
            return max(0, self.size - self.part.stat().st_size)
        except FileNotFoundError:
            return self.size


def whole(remote: Remote, root: Path) -> Piece:
    """Return the piece that is all of an object, at its place in the tree."""
    return Piece(remote, root / remote.key, ((0, remote.size),))


class Tally:
    """Bytes that came, counted by several threads, and what is being done."""

    def __init__(self, total: int) -> None:
        self.total, self.moved, self.phrase = total, 0, ""
        self._lock = threading.Lock()

    def add(self, count: int, phrase: str) -> None:
        """Count bytes that came."""
        with self._lock:
            self.moved += count
            self.phrase = phrase


def download(bucket: Bucket, piece: Piece, tally: Tally, stop: threading.Event) -> Path:
    """Bring what a part lacks and return the complete part.

    Parameters
    ----------
    bucket : Bucket
    piece : Piece
    tally : Tally
    stop : threading.Event
        When set, ends after the batch at hand.

    Returns
    -------
    Path
        ``piece.part``, of ``piece.size`` bytes, flushed to the disk.

    Raises
    ------
    Cancelled
        ``stop`` was set.
    DataMissing, SourceUnavailable
        The object is gone; it cannot be read, after some patience.
    OutputError
        The disk is full or cannot be written.
    """
    part = piece.part
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        _clear(piece)
        done = part.stat().st_size if part.exists() else 0
    for batch in _batches(_blocks(_joined(piece.spans), done)):
        contents = patiently(partial(bucket.read, piece.remote, batch), tally, stop)
        with writing(part), part.open("ab") as file:
            file.writelines(contents)
        tally.add(sum(len(content) for content in contents), piece.target.name)
    with writing(part), part.open("ab") as file:
        os.fsync(file.fileno())
    return part


def side_by_side(works: Sequence[Callable[[], None]], stop: threading.Event, look: Callable[[], None]) -> None:
    """Run works on a few threads, calling ``look`` from this one meanwhile; the first exception, also of ``look``, stops all and is raised."""
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="havir-fetch") as pool:
        pending = {pool.submit(work) for work in works}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                look()
        except BaseException:
            stop.set()
            for future in pending:
                future.cancel()
            raise


def _clear(piece: Piece) -> None:
    """Delete parts of other contents of the same file, and one that is longer than it can be."""
    for old in piece.target.parent.glob(f"{glob.escape(piece.target.name)}.*.part"):
        if old != piece.part or old.stat().st_size > piece.size:
            old.unlink()


def _joined(spans: Sequence[Span]) -> Iterator[Span]:
    """Yield ranges with those that touch made one: a request costs more than a kilobyte does."""
    waiting: Span | None = None
    for start, stop in spans:
        if waiting is not None and waiting[1] != start:
            yield waiting
            waiting = None
        waiting = (start if waiting is None else waiting[0], stop)
    if waiting is not None:
        yield waiting


def _blocks(spans: Iterable[Span], done: int) -> Iterator[Span]:
    """Yield the ranges that are still to be read, none longer than a block."""
    for start, stop in spans:
        skipped = min(done, stop - start)
        done -= skipped
        for first in range(start + skipped, stop, BLOCK):
            yield first, min(first + BLOCK, stop)


def _batches(blocks: Iterator[Span]) -> Iterator[list[Span]]:
    batch: list[Span] = []
    for start, stop in blocks:
        batch.append((start, stop))
        if sum(last - first for first, last in batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def patiently(ask: Callable[[], Answer], tally: Tally, stop: threading.Event) -> Answer:
    """Ask again after a while when the network broke, and say so; a stop ends the waiting with Cancelled."""
    for pause in (*PAUSES, None):
        if stop.is_set():
            raise Cancelled
        try:
            return ask()
        except Interrupted:
            if pause is None:
                raise
            tally.phrase = f"the network broke, another try in {pause:.0f} s"
            stop.wait(pause)
    raise AssertionError
