"""Whether a file is the object it was fetched from: by the bucket's own checksum where it has one, else by size and content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
from isal import igzip

from havir_explorer.data import files
from havir_explorer.data.fetch.bucket import Remote
from havir_explorer.errors import DataInvalid

_MD5 = re.compile(r"[0-9a-f]{32}")
_MULTIPART = re.compile(r"([0-9a-f]{32})-(\d+)")
_PART_SIZES = tuple(count * 2**20 for count in (8, 5, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 250, 256, 500, 512, 1000, 1024))
"""Bytes of a part in the S3 clients in use; the command line client's 8 MiB first."""
_BLOCK = 2**20


def check(file: Path, remote: Remote) -> str:
    """Compare a file with its object and return how that was done.

    The ETag of an object uploaded in one piece is the MD5 of its content; uploaded in parts, it is the MD5 of the parts' MD5s and the number of
    parts, which can be recomputed when the parts had one of the usual sizes. Where neither says anything, a gzip stream's own checksum and an
    HDF5 file's own idea of its end stand in.

    Parameters
    ----------
    file : Path
        Its name may carry further endings; the object's key says what it is.
    remote : Remote

    Returns
    -------
    {'MD5', 'MD5 of parts', 'gzip checksum', 'header', 'size'}

    Raises
    ------
    DataInvalid
        Another size or content.
    """
    size = file.stat().st_size
    if size != remote.size:
        msg = f"{remote.key} arrived damaged: {size:,} bytes came, the bucket holds {remote.size:,}"
        raise DataInvalid(msg)
    if _MD5.fullmatch(remote.etag):
        found = _digest(file, size).hex()
        if found != remote.etag:
            msg = f"{remote.key} arrived damaged: its MD5 is {found}, the bucket's {remote.etag}"
            raise DataInvalid(msg)
        return "MD5"
    return "MD5 of parts" if _in_parts(file, remote) else _content(file, remote)


def _digest(file: Path, part: int) -> bytes:
    return next(_digests(file, part), hashlib.md5(usedforsecurity=False).digest())


def _digests(file: Path, part: int) -> Iterator[bytes]:
    """Yield the MD5 of each part of a file."""
    with file.open("rb") as stream:
        left, whole = part, hashlib.md5(usedforsecurity=False)
        while block := stream.read(min(_BLOCK, left)):
            whole.update(block)
            left -= len(block)
            if left == 0:
                yield whole.digest()
                left, whole = part, hashlib.md5(usedforsecurity=False)
        if left < part:
            yield whole.digest()


def _in_parts(file: Path, remote: Remote) -> bool:
    """Say whether a file is the object for certain; False where the parts' size cannot be guessed."""
    match = _MULTIPART.fullmatch(remote.etag)
    if match is None:
        return False
    count = int(match[2])
    for part in (size for size in _PART_SIZES if -(-remote.size // size) == count):
        if hashlib.md5(b"".join(_digests(file, part)), usedforsecurity=False).hexdigest() == match[1]:
            return True
    return False


def _content(file: Path, remote: Remote) -> str:
    """Look for a truncation or damage that the file itself can tell of."""
    try:
        if remote.key.endswith((".gz", ".mgz")):
            with igzip.open(file) as stream:  # type: ignore[no-untyped-call]
                while stream.read(_BLOCK):
                    pass
            return "gzip checksum"
        if remote.key.endswith(".hdf5"):
            with h5py.File(file, "r", locking=False) as content:
                list(content)
            return "header"
    except (OSError, EOFError, files.BROKEN_GZIP, RuntimeError) as error:
        msg = f"{remote.key} arrived damaged: it cannot be opened ({error})"
        raise DataInvalid(msg) from error
    return "size"
