"""Examine a checkpoint without loading it: every part's presence, format, shapes against what the code needs, and checksum."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from havir_explorer.diffuse import extras, parts, towers
from havir_explorer.diffuse.source import DRAWING, EXTRAS, PARTS, Source, record
from havir_explorer.errors import HavirError

Progress = Callable[[float, str], None]
_BLOCK = 16 * 2**20


@dataclass(frozen=True)
class PartReport:
    """What was found of one part.

    Parameters
    ----------
    part, use : str
        Its name, and what it is needed for.
    state : {'fine', 'left out', 'faulty'}
        A tower that is left out stops no picture when the checkpoint carries what the tower would say of nothing.
    file : str
        Its main file, relative to the folder; empty when there is none.
    dtype : str
        Number format most of its tensors have.
    tensors, used, bytes : int
        Tensors in its file, those the code reads, and the file's size.
    sha256 : str
        Checksum of the file; empty where it was not asked for.
    compared_with : str
        Where a checksum to compare with was found; empty where there is none.
    faults : tuple of str
        One sentence each.
    """

    part: str
    use: str
    state: str
    file: str = ""
    dtype: str = ""
    tensors: int = 0
    used: int = 0
    bytes: int = 0
    sha256: str = ""
    compared_with: str = ""
    faults: tuple[str, ...] = ()


def examine(source: Source, *, checksums: bool = True, progress: Progress | None = None) -> tuple[PartReport, ...]:
    """Return a report a part; nothing is raised for what is wrong with a part.

    Parameters
    ----------
    source : Source
    checksums : bool
        Read every file to its end; else only what their headers say.
    progress : callable, optional
        Called with the share done in [0, 1] and a line of text.
    """
    show = progress or (lambda _share, _line: None)
    unet = _blank(source, "image_unet")
    spare = (source.root / EXTRAS).is_file()
    reports = []
    for number, part in enumerate(PARTS):
        show(number / (len(PARTS) + 1), f"checking {part}")
        left_out = spare and part not in DRAWING and not source.has(part)
        reports.append(PartReport(part, PARTS[part].use, "left out") if left_out else _report(source, part, unet, checksums=checksums))
    show(len(PARTS) / (len(PARTS) + 1), f"checking {EXTRAS}")
    return (*reports, *([_extras(source, checksums=checksums)] if spare else []))


def sha256(file: Path) -> str:
    """Return the checksum of a file, hex."""
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _report(source: Source, part: str, unet: Any, *, checksums: bool) -> PartReport:  # noqa: ANN401 - a VersatileUNet or a sentence
    about = PARTS[part]
    try:
        file = source.weights(part) if about.safetensors else source.file(part, about.config)
        found = parts.contents(source, part) if about.safetensors else {}
        faults = _shape_faults(source, part, unet, file) if about.safetensors else _companion_faults(source, part)
    except HavirError as fault:
        return PartReport(part, about.use, "faulty", faults=(str(fault),))
    checksum, where, differs = _checked(source, part, file) if checksums else ("", "", ())
    faults = (*faults, *differs)
    kinds = Counter(kept.dtype for kept in found.values())
    return PartReport(
        part,
        about.use,
        "faulty" if faults else "fine",
        file=str(file.relative_to(source.root)),
        dtype=kinds.most_common(1)[0][0] if kinds else "",
        tensors=len(found),
        used=len(parts.present(part, found)),
        bytes=file.stat().st_size,
        sha256=checksum,
        compared_with=where,
        faults=faults,
    )


def _blank(source: Source, part: str) -> Any:  # noqa: ANN401 - the part, or the sentence that says why there is none
    try:
        return parts.blank(source, part)
    except HavirError as fault:
        return str(fault)


def _shape_faults(source: Source, part: str, unet: Any, file: Path) -> tuple[str, ...]:  # noqa: ANN401 - as above
    module = unet if part.endswith("_unet") else _blank(source, part)
    if isinstance(module, str):
        return (module,)
    return parts.faults(source, part, file.name, parts.needed(part, module), parts.contents(source, part))


def _companion_faults(source: Source, part: str) -> tuple[str, ...]:
    try:
        source.config(part)
        if part == "tokenizer":
            towers.tokenizer(source)
        if part == "image_feature_extractor":
            towers.image_processor(source)
    except HavirError as fault:
        return (str(fault),)
    return ()


def _extras(source: Source, *, checksums: bool) -> PartReport:
    use, file = "reconstruction without the CLIP towers", source.root / EXTRAS
    try:
        found = extras.of(source)
    except HavirError as fault:
        return PartReport("extras", use, "faulty", EXTRAS, faults=(str(fault),))
    checksum, where, faults = _checked(source, "extras", file) if checksums else ("", "", ())
    state = "faulty" if faults else "fine"
    return PartReport("extras", use, state, EXTRAS, "float32", len(found), len(found), file.stat().st_size, checksum, where, faults)


def _checked(source: Source, part: str, file: Path) -> tuple[str, str, tuple[str, ...]]:
    """The file's checksum, where another one to compare with is written, and what is to be said if they differ."""
    found, name = sha256(file), str(file.relative_to(source.root))
    expected, where = _recorded(source, file, name)
    if expected in {None, found}:
        return found, where, ()
    msg = f"part {part} of the {source}: {name} has the SHA-256 {found}, expected {expected} ({where}): the file was changed or damaged; {source.remedy}"
    return found, where, (msg,)


def _recorded(source: Source, file: Path, name: str) -> tuple[str | None, str]:
    known = record(source.root).get("sha256")
    if isinstance(known, dict) and isinstance(known.get(name), str):
        return str(known[name]), "the folder's record"
    blob = file.resolve().name  # the hub's cache calls a large file by its checksum
    return (blob, "the hub") if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob) else (None, "")
