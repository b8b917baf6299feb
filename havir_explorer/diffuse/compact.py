"""Write a checkpoint again with only what is used: one folder of safetensors that loads as the whole does and gives the same pictures."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from havir_explorer.diffuse import checkpoint, extras, parts
from havir_explorer.diffuse.checkpoint import Progress
from havir_explorer.diffuse.source import DRAWING, EXTRAS, PARTS, RECORD, Source
from havir_explorer.errors import OutputError, WeightsMissing

_ABOUT = ("model_index.json", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")


@dataclass(frozen=True)
class Compacted:
    """A written folder.

    Parameters
    ----------
    folder : Path
    before, after : tuple of (str, int)
        Parts and their sizes in bytes.
    """

    folder: Path
    before: tuple[tuple[str, int], ...]
    after: tuple[tuple[str, int], ...]


def compact(source: Source, out: Path, *, dtype: torch.dtype = torch.float16, towers: bool = False, progress: Progress | None = None) -> Compacted:
    """Write the parts that draw pictures, with the encoded unconditional embeddings and the preview map.

    The autoencoder keeps the number format it has: it is small, and float16 has not its range. In ``dtype`` the compact folder gives the same
    bytes as the source.

    Parameters
    ----------
    source : Source
    out : Path
        Must not exist, or be an empty folder.
    dtype : torch.dtype
        Of the denoiser and of the towers.
    towers : bool
        Keep the CLIP towers, which training targets and CLIP scores need.
    progress : callable, optional
        Called with the share done in [0, 1] and a line of text.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        A part of the source is absent or damaged.
    OutputError
        The folder has something in it, or cannot be written; nothing half-written stays.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"cannot write {out}: there is something of that name already; give the name of a new folder"
        raise OutputError(msg)
    kept = tuple(part for part in PARTS if towers or part in DRAWING)
    for part in kept:
        source.weights(part) if PARTS[part].safetensors else source.file(part, PARTS[part].config)  # before anything is written
    part_folder = out.with_name(f".{out.name}.part")
    shutil.rmtree(part_folder, ignore_errors=True)
    try:
        part_folder.mkdir(parents=True)
        _write(source, part_folder, kept, dtype, progress or (lambda _share, _line: None))
        _record(source, part_folder, out, f"--dtype {str(dtype).removeprefix('torch.')}{' --towers' if towers else ''}")
        if out.exists():
            out.rmdir()
        part_folder.replace(out)
    except WeightsMissing:
        raise  # an OSError too, but not of what is written
    except OSError as fault:
        msg = f"cannot write {out}: {fault.strerror or fault}; make room or choose another folder"
        raise OutputError(msg) from fault
    finally:
        shutil.rmtree(part_folder, ignore_errors=True)
    return Compacted(out, sizes(source.root), sizes(out))


def sizes(root: Path) -> tuple[tuple[str, int], ...]:
    """Return the size in bytes of each part that is there, and of the extras."""
    folders = {part: [file for file in (root / part).iterdir() if file.is_file()] for part in PARTS if (root / part).is_dir()}
    found = {**folders, "extras": [root / EXTRAS] if (root / EXTRAS).is_file() else []}
    return tuple((part, sum(file.stat().st_size for file in files)) for part, files in found.items() if files)


def _write(source: Source, out: Path, kept: tuple[str, ...], dtype: torch.dtype, show: Progress) -> None:
    show(0.0, "encoding the unconditional embeddings")
    extras.write(extras.of(source), out / EXTRAS)
    unet = parts.blank(source, "image_unet")
    for number, part in enumerate(kept, start=1):
        show(number / (len(kept) + 1), f"writing {part}")
        (out / part).mkdir()
        for file in (source.root / part).iterdir():
            if file.suffix in {".json", ".txt"} and not file.name.endswith(".index.json"):
                shutil.copyfile(file, out / part / file.name)
        if PARTS[part].safetensors:
            module = unet if part.endswith("_unet") else parts.blank(source, part)
            _save(source, part, module, out / part, None if part == "vae" else parts.Place(torch.device("cpu"), dtype))
    for name in _ABOUT:
        if (source.root / name).is_file():
            shutil.copyfile(source.root / name, out / name)


def _save(source: Source, part: str, module: Any, folder: Path, place: parts.Place | None) -> None:  # noqa: ANN401 - any part
    tensors = parts.read(source, part, module, place)
    save_file(tensors, folder / f"{PARTS[part].safetensors}.safetensors", metadata={"format": "pt"})


def _record(source: Source, folder: Path, out: Path, options: str) -> None:
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix == ".safetensors")
    sums = {name: checkpoint.sha256(folder / name) for name in names}
    made_by = f"havir weights compact {shlex.quote(source.name)} --to {shlex.quote(str(out))} {options}"
    (folder / RECORD).write_text(json.dumps({"made_by": made_by, "sha256": sums}, indent=2) + "\n")
