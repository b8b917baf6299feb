"""Download a feature network's checkpoint from where it is published, because the user asked: on from the byte where an earlier try stopped."""

from __future__ import annotations

import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from havir_explorer.errors import OutputError, SourceUnavailable, WeightsInvalid
from havir_explorer.measure.networks import Network

Progress = Callable[[float, str], None]
_PIECE = 2**20
_SECONDS = 60


def fetch(wanted: Network, to: Path, progress: Progress) -> Path:
    """Bring a network's checkpoint into a folder.

    Parameters
    ----------
    wanted : Network
    to : Path
        Made when it is not there.
    progress : callable
        Called with the share done in [0, 1] and a line of text; raising stops the download, and what has come is kept.

    Returns
    -------
    Path
        The checkpoint, whole; left as it is when it was there.

    Raises
    ------
    SourceUnavailable
        The server cannot be reached or stopped in the middle; what has come is kept.
    WeightsInvalid
        The file is not what its name says (torch's hub puts the first digits of the SHA-256 there); it is thrown away.
    OutputError
        There is no room, or the folder cannot be written.
    """
    target = to / wanted.file
    if target.is_file():
        return target
    part = target.with_name(f".{target.name}.part")
    try:
        to.mkdir(parents=True, exist_ok=True)
        _bring(wanted, part, progress)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as fault:
        msg = f"cannot bring {wanted.url} ({fault}); run the same command again, or copy the file to {target} from a machine that has it"
        raise SourceUnavailable(msg) from fault
    except OSError as fault:
        msg = f"cannot write {target}: {fault.strerror or fault}; make room, or name another folder with --to"
        raise OutputError(msg) from fault
    _check(wanted, part)
    part.replace(target)
    return target


def _bring(wanted: Network, part: Path, progress: Progress) -> None:
    came = part.stat().st_size if part.is_file() else 0
    named = {"User-Agent": "havir_explorer"}  # some servers turn away what does not say its name
    asked = urllib.request.Request(wanted.url, headers={**named, "Range": f"bytes={came}-"} if came else named)  # noqa: S310 - the table's own addresses
    try:
        opening = urllib.request.urlopen(asked, timeout=_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as fault:
        if came and fault.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it had come
            return
        raise
    with opening as answer:
        going_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        came = came if going_on else 0
        whole = came + int(answer.headers.get("Content-Length") or 0)
        _has_room(part.parent, whole - came)
        with part.open("ab" if going_on else "wb") as opened:
            while piece := answer.read(_PIECE):
                opened.write(piece)
                came += len(piece)
                progress(min(came / max(whole, came), 1.0), f"{wanted.file}, {came / 1e6:.0f} of {whole / 1e6:.0f} MB")
    if came < whole:
        msg = f"the connection ended after {came} of {whole} bytes"
        raise ConnectionError(msg)


def _check(wanted: Network, part: Path) -> None:
    promised = re.search(r"-([0-9a-f]{8,})\.pth$", wanted.file)
    if promised is None:
        return
    with part.open("rb") as opened:
        digest = sha256()
        while piece := opened.read(_PIECE):
            digest.update(piece)
    if not digest.hexdigest().startswith(promised[1]):
        part.unlink()
        msg = f"{wanted.file} arrived damaged: its SHA-256 does not begin with {promised[1]}; run the same command again"
        raise WeightsInvalid(msg)


def _has_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        msg = f"cannot write to {folder}: {needed / 1e6:.0f} MB are to come and {free / 1e6:.0f} MB are free there; make room or name another with --to"
        raise OutputError(msg)
