"""Download a published Versatile Diffusion from the hub: only the files that are used, checked, and going on after an interruption.

The hub's own library begins a large file anew after an interruption (since its version 1); here the bytes that have come are kept.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # of whichever HTTP library it is built on
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, tqdm  # type: ignore[attr-defined]  # documented, and loaded lazily

from havir_explorer.diffuse.checkpoint import sha256
from havir_explorer.diffuse.source import PARTS, RECORD, fetched_folder, files_to_copy
from havir_explorer.errors import OutputError, RequestError, WeightsInvalid, WeightsMissing


@dataclass(frozen=True)
class Remote:
    """One file to download; ``bytes`` and ``sha256`` are 0 and empty where the hub does not say."""

    name: str
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Plan:
    """What a download will bring.

    Parameters
    ----------
    name : str
        Hub id, with its revision.
    commit : str
        What the revision is today.
    files : tuple of Remote
    variant : str, optional
        The weight files that were asked for, e.g. ``fp16``.
    """

    name: str
    commit: str
    files: tuple[Remote, ...]
    variant: str | None = None

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)


def plan(name: str, variant: str | None = None) -> Plan:
    """Ask the hub what a checkpoint holds, and choose the files that are used.

    Parameters
    ----------
    name : str
        ``owner/name``, optionally with ``@revision``.
    variant : str, optional
        E.g. ``fp16``; the plain files when left out.

    Raises
    ------
    RequestError
        The hub has no such checkpoint, or does not give it to everyone.
    WeightsInvalid
        It is not in the published layout.
    WeightsMissing
        The hub cannot be reached; says which files to put where instead.
    """
    repository, _, revision = name.partition("@")
    with _reaching(name):
        about = HfApi(endpoint=_endpoint()).model_info(repository, revision=revision or None, files_metadata=True)
    there = {file.rfilename: Remote(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "") for file in about.siblings or []}
    return Plan(name, about.sha or revision or "main", tuple(there[file] for file in wanted(name, there, variant)), variant)


def wanted(name: str, there: Iterable[str], variant: str | None = None) -> tuple[str, ...]:
    """Choose from a repository's file names: every part's small files, one weight file a part, and what the checkpoint says of itself.

    Raises
    ------
    WeightsInvalid
        A part has none of the names it may have.
    """
    names = sorted(there)
    chosen = [file for file in names if "/" not in file and (file in {"model_index.json", "README.md"} or file.startswith("LICENSE"))]
    for part, about in PARTS.items():
        chosen += [file for file in names if file.startswith(f"{part}/") and file.endswith((".json", ".txt")) and not file.endswith(".index.json")]
        weights = [f"{part}/{file}" for file in about.weight_files(variant)] if about.safetensors else []
        expected = [f"{part}/{about.config}"] if about.config else []
        found = next((file for file in weights if file in names), None)
        absent = [*(file for file in expected if file not in names), *(weights[:2] if weights and not found else [])]
        if absent:
            msg = f"{name} is no Versatile Diffusion in the published layout: it lacks its part {part}, expected {' or '.join(absent)}; choose another id"
            raise WeightsInvalid(msg)
        chosen += [found] if found else []
    return tuple(chosen)


def download(plan: Plan, to: Path, progress: Callable[[float, str], None]) -> None:
    """Bring the files of a plan into a folder, going on at the byte where an earlier download stopped.

    Parameters
    ----------
    plan : Plan
    to : Path
    progress : callable
        Called with the share done in [0, 1] and a line of text.

    Raises
    ------
    OutputError
        There is no room, or the folder cannot be written.
    WeightsMissing
        The hub cannot be reached; what has arrived is kept.
    WeightsInvalid
        A file arrived damaged; it is thrown away.
    """
    waiting = [file for file in plan.files if not _is_whole(to / file.name, file)]
    _has_room(to, sum(file.bytes for file in waiting))
    whole, done = max(plan.bytes, 1), plan.bytes - sum(file.bytes for file in waiting)
    for file in waiting:
        line = f"{file.name}, {file.bytes / 1e6:.0f} MB"
        with _reaching(plan.name, to):
            _bring(plan, file, to / file.name, lambda came, before=done, line=line: progress(min((before + came) / whole, 1.0), line))  # type: ignore[misc]
        done += file.bytes
    with _reaching(plan.name, to):
        _record(plan, to)
    progress(1.0, "all is there")


def _bring(plan: Plan, file: Remote, target: Path, progress: Callable[[int], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{(file.sha256 or plan.commit)[:12]}.part")  # of these bytes and no others
    came = part.stat().st_size if part.is_file() else 0
    progress(came)

    def moved(count: int) -> None:
        nonlocal came
        came += count
        progress(came)

    asked = hf_hub_url(plan.name.partition("@")[0], file.name, revision=plan.commit, endpoint=_endpoint())
    place = get_hf_file_metadata(asked, endpoint=_endpoint()).location
    headers = build_hf_headers() if urlparse(place).netloc == urlparse(asked).netloc else {}  # the user's token is for the hub, not for its mirrors
    with part.open("ab") as opened:
        http_get(place, opened, resume_size=came, headers=headers, expected_size=file.bytes or None, tqdm_class=_bar(moved))
    if not _is_whole(part, file):
        part.unlink()
        msg = f"{file.name} of {plan.name} arrived damaged: its SHA-256 is not {file.sha256}; run the same command again"
        raise WeightsInvalid(msg)
    part.replace(target)


def _is_whole(path: Path, file: Remote) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return not file.sha256 or sha256(path) == file.sha256


def _record(plan: Plan, to: Path) -> None:
    option = ("" if to == fetched_folder(plan.name) else f" --to {shlex.quote(str(to))}") + (f" --variant {plan.variant}" if plan.variant else "")
    sums = {file.name: file.sha256 for file in plan.files if file.sha256}
    (to / RECORD).write_text(json.dumps({"made_by": f"havir weights fetch {plan.name}{option}", "commit": plan.commit, "sha256": sums}, indent=2) + "\n")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _bar(moved: Callable[[int], None]) -> type[tqdm]:
    """A bar that is not drawn: it says how many bytes have come."""

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            moved(int(n or 0))
            return None

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            pass

    return Bar


def _has_room(folder: Path, needed: int) -> None:
    known = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(known).free
    if free < needed:
        msg = f"cannot write {folder}: {needed / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free there; make room or give another folder with --to"
        raise OutputError(msg)


@contextmanager
def _reaching(name: str, folder: Path | None = None) -> Iterator[None]:
    try:
        yield
    except GatedRepoError as fault:
        msg = f"the hub gives {name!r} only to those who have agreed to its terms; do so on its page and log in with: hf auth login"
        raise RequestError(msg) from fault
    except (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError, HFValidationError) as fault:
        msg = f"the hub has no checkpoint {name!r}, or does not show it to you ({_line(fault)}); give an id such as owner/name or owner/name@revision"
        raise RequestError(msg) from fault
    except (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError) as fault:
        raise WeightsMissing(_unreached(name, fault)) from fault
    except OSError as fault:
        if fault.errno is None:  # the library's own word for a file that came in part
            raise WeightsMissing(_unreached(name, fault)) from fault
        msg = f"cannot write {folder}: {fault.strerror or fault}; make room, or give another folder with --to"
        raise OutputError(msg) from fault


def _unreached(name: str, fault: Exception) -> str:
    return (
        f"cannot reach the hub at {_endpoint() or constants.ENDPOINT} for {name!r} ({_line(fault)}); try again, and the download goes on where it "
        f"stopped; without a network, copy these files from a machine that has them into a folder and give its name: {files_to_copy()}"
    )


def _line(fault: Exception) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0]
