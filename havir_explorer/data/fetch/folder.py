"""The folder that is fetched into: whose terms were accepted there, what came and how it was checked, and whether there is room."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from havir_explorer.claim import claimed
from havir_explorer.data.fetch.bucket import Remote
from havir_explorer.errors import HavirError, OutputError, RequestError

STATE = ".havir-fetch"
TERMS_PAGE = "https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions"
ACCESS_FORM = "https://docs.google.com/forms/d/e/1FAIpQLSduTPeZo54uEMKD-ihXmRhx0hBDdLHNsVyeo_kCb8qbyAkXuQ/viewform"
TERMS = f"""The Natural Scenes Dataset is free, under terms that are accepted before it is downloaded. In short: for research and education only;
no part of it is passed on or sold; nobody tries to find out who the subjects are; what is published with it cites Allen et al. 2022
(Nature Neuroscience 25:116-126) and acknowledges NSF IIS-1822683 and IIS-1822929.
  terms:       {TERMS_PAGE}
  access form: {ACCESS_FORM}"""
_SPARE = 64 * 2**20  # bytes left free on the disk, for everybody else on it


class Arrival(BaseModel):
    """A file that came and was checked.

    Parameters
    ----------
    size, etag
        Of the object.
    modified : int
        The file's time of modification, in ns: a file that was changed since is checked again.
    checked : str
        How, as :func:`~havir_explorer.data.fetch.verify.check` says.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    size: int
    etag: str
    modified: int
    checked: str


_ARRIVALS = TypeAdapter(dict[str, Arrival])


def accept_terms(root: Path, *, accepted: bool) -> None:
    """Make sure that NSD's terms were accepted for a folder, now or in an earlier run, and remember it there.

    Raises
    ------
    RequestError
        They were not.
    OutputError
        The folder cannot be written.
    """
    marker = root / STATE / "terms.json"
    if marker.is_file():
        return
    if not accepted:
        msg = f"fetching needs your agreement to the Natural Scenes Dataset's terms ({TERMS_PAGE}): read them, fill in the access form, add --accept-nsd-terms"
        raise RequestError(msg)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    save(marker, json.dumps({"accepted": TERMS_PAGE, "form": ACCESS_FORM, "when": when}, indent=1))


def terms_accepted(root: Path) -> bool:
    """Say whether NSD's terms were accepted for a folder."""
    return (root / STATE / "terms.json").is_file()


def read_arrivals(root: Path) -> dict[str, Arrival]:
    """Return what came into a folder so far, by key; a record that cannot be read is as good as none, since files can be checked again."""
    try:
        return _ARRIVALS.validate_json((root / STATE / "arrivals.json").read_bytes())
    except (OSError, ValidationError):
        return {}


def write_arrivals(root: Path, arrivals: dict[str, Arrival]) -> None:
    """Remember what came; raises OutputError."""
    save(root / STATE / "arrivals.json", _ARRIVALS.dump_json(arrivals, indent=1).decode())


def arrived(file: Path, remote: Remote, arrival: Arrival | None) -> bool:
    """Say whether a file is known to be the object as it is now."""
    if arrival is None or (arrival.size, arrival.etag) != (remote.size, remote.etag) or not file.is_file():
        return False
    about = file.stat()
    return (about.st_size, about.st_mtime_ns) == (arrival.size, arrival.modified)


def arrival(file: Path, remote: Remote, checked: str) -> Arrival:
    """Describe a file that has just been checked."""
    return Arrival(size=remote.size, etag=remote.etag, modified=file.stat().st_mtime_ns, checked=checked)


def make(root: Path) -> None:
    """Make the folder and see that it can be written.

    Raises
    ------
    OutputError
    """
    state = root / STATE
    with writing(root):
        state.mkdir(parents=True, exist_ok=True)
        probe = state / f".{uuid.uuid4().hex[:8]}"
        probe.touch()
        probe.unlink()


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep other fetches out of the folder.

    Raises
    ------
    OutputError
        One is at work there.
    """
    taken = f"another fetch is writing to {root}; let it finish, or stop it and run this again"
    with claimed(root / STATE / "lock", taken, "give another folder with --to"):
        yield


def check_room(root: Path, needed: int) -> None:
    """Make sure that the disk has room.

    Parameters
    ----------
    root : Path
    needed : int
        Bytes still to come.

    Raises
    ------
    OutputError
    """
    free = shutil.disk_usage(root).free
    if needed + _SPARE > free and needed:
        msg = f"not enough room in {root}: {size(needed)} are needed and {size(free)} are free; free some, ask for less, or give another folder with --to"
        raise OutputError(msg)


def size(count: int) -> str:
    """Write a number of bytes for people, in powers of a thousand as disks and networks are sold."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def save(file: Path, text: str) -> None:
    """Write a small file, whole or not at all; raises OutputError."""
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.part")
    with writing(file):
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn what a disk answers into one sentence.

    Raises
    ------
    OutputError
    """
    try:
        yield
    except HavirError:  # some of them are OSErrors too, and already say it
        raise
    except (OSError, RuntimeError) as error:  # HDF5 tells of a full disk in a RuntimeError, its number in the text
        full = f"errno = {errno.ENOSPC}" in str(error)
        if isinstance(error, RuntimeError) and not full:
            raise
        reason = os.strerror(errno.ENOSPC) if full else getattr(error, "strerror", None) or str(error)
        msg = f"cannot write {what}: {reason}; free some space or give another folder with --to, and run the same command again: what has come so far is kept"
        raise OutputError(msg) from error
