"""What is remembered: results by request, and recipes in and out of PNG and JSON.

A recipe is the request and what came of it, written into the picture itself (an iTXt chunk) and beside it (JSON), so that a picture found
years later can be drawn again. A recipe that is read is untrusted: it is measured before it is read, nothing in it is executed, unknown
keys and wrong types are refused, and no picture is decoded to find it.
"""

from __future__ import annotations

import io
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from havir_explorer.errors import HavirError, OutputError, RequestError, reason
from havir_explorer.paths import cache_folder, shipped_weights, stamp
from havir_explorer.records import Kind, Reconstruction, Request, Score, UInt8Array

KEYWORD = "havir_explorer recipe"
"""Keyword of the PNG text chunk that holds the recipe."""
LARGEST_RECIPE = 1_000_000  # bytes; a recipe is about 2 kB, so anything larger than this was not written here
LARGEST_SIDE = 4096  # pixels; no remembered picture is larger
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Recipe(BaseModel):
    """A request and what came of it, without the pictures.

    Parameters
    ----------
    havir_recipe : int
        Version of this record: 1.
    request : Request
    kind, synthetic, trained_on, scores, seconds, steps_run, signal
        As in :class:`~havir_explorer.records.Reconstruction`; None and empty in a recipe that was not drawn yet.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    havir_recipe: Literal[1] = 1
    request: Request
    kind: Kind | None = None
    synthetic: bool | None = None
    trained_on: bool | None = None
    scores: tuple[Score, ...] = ()
    seconds: tuple[tuple[str, float], ...] = ()
    steps_run: int | None = Field(None, ge=0)
    signal: float | None = None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    stamp: str
    recipe: Recipe


class Store:
    """Finished reconstructions on disk, one file a request.

    Parameters
    ----------
    folder : Path, optional
        Made when first written to; ``results`` in the cache folder when left out.
    limit : int
        Most results kept; beyond it the oldest are deleted.
    """

    def __init__(self, folder: Path | None = None, *, limit: int = 2000) -> None:
        self.folder = cache_folder() / "results" if folder is None else Path(folder)
        self.limit = limit

    def path(self, request: Request) -> Path:
        """Where the result of a request is kept."""
        return self.folder / f"{request.key}.npz"

    def get(self, request: Request) -> Reconstruction | None:
        """Return the remembered result, or None.

        An entry that cannot be read, or that other weights or betas than today's have made, is deleted: it will be computed again.
        """
        path = self.path(request)
        try:
            found = _unpack(path.read_bytes(), request)
        except FileNotFoundError:
            return None
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it can be made again
            found = None
        if found is None:
            _remove(path)
        return found

    def put(self, reconstruction: Reconstruction) -> None:
        """Remember a result.

        Raises
        ------
        OutputError
            The folder cannot be written; no half entry stays behind.
        """
        write_files({self.path(reconstruction.request): _pack(reconstruction)}, make_folder=True)
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        entries = list(self.folder.glob("*.npz"))
        if len(entries) > self.limit:
            with suppress(OSError):  # another process has just removed one
                for path in sorted(entries, key=lambda path: path.stat().st_mtime)[: len(entries) - self.limit]:
                    _remove(path)


def write_png(reconstruction: Reconstruction, path: Path | str, *, recipe: bool = True) -> None:
    """Write the picture with its recipe inside and, beside it, the same recipe as JSON; both or neither.

    Parameters
    ----------
    reconstruction : Reconstruction
    path : Path or str
        Ends in ``.png``; its folder must exist. An existing file is replaced.
    recipe : bool
        False writes the bare picture: no recipe inside and no JSON.

    Raises
    ------
    OutputError
        Not a ``.png`` name, it cannot be written there, or what is called like its JSON is not a recipe of ours.
    """
    path = _named(path, ".png", "a picture is saved as PNG")
    files = {path: png(reconstruction, recipe=recipe)}
    if recipe:
        check_sidecar(path)
        files[path.with_suffix(".json")] = _as_json(_recipe(reconstruction)).encode()
    write_files(files)


def check_sidecar(path: Path) -> None:
    """Make sure that the JSON beside a picture may be written: nothing has its name, or an earlier recipe, which is replaced.

    Raises
    ------
    OutputError
        A folder has the name, or a file that is not a recipe of ours.
    """
    beside = path.with_suffix(".json")
    if not beside.exists():
        return
    try:
        read_recipe(beside)
    except RequestError as error:
        msg = f"cannot write {path}: its recipe goes to {beside}, and what is there may not be replaced ({error}); choose another name"
        raise OutputError(msg) from error


def write_recipe(request: Request, path: Path | str) -> None:
    """Write a request as a JSON recipe that :func:`read_recipe` reads.

    Raises
    ------
    OutputError
        Not a ``.json`` name, or it cannot be written there.
    """
    path = _named(path, ".json", "a recipe is saved as JSON")
    write_files({path: _as_json(Recipe(request=request)).encode()})


def read_recipe(path: Path | str) -> Request:
    """Return the request in a recipe, from a PNG or a JSON file that :func:`write_png` or :func:`write_recipe` wrote.

    Raises
    ------
    RequestError
        No such file, not a recipe of ours, or one that asks for something out of range.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = _text_in(file, path)
    except OSError as error:
        msg = f"cannot read a recipe from {path}: {reason(error)}"
        raise RequestError(msg) from error
    try:
        return Recipe.model_validate_json(text).request
    except (ValidationError, RecursionError) as error:
        msg = f"{path} is not a recipe of havir_explorer: {_fault(error)}"
        raise RequestError(msg) from error


def _text_in(file: BinaryIO, path: Path) -> bytes:
    head = file.read(len(_SIGNATURE))
    if head != _SIGNATURE:
        text = head + file.read(LARGEST_RECIPE)
        if len(text) > LARGEST_RECIPE:
            msg = f"{path} is not a recipe of havir_explorer: a recipe has at most {LARGEST_RECIPE:,} bytes"
            raise RequestError(msg)
        return text
    for content in _text_chunks(file):
        keyword, _, rest = content.partition(b"\0")
        # compression flag and method, then language and translated keyword, each ended by a zero
        if keyword == KEYWORD.encode() and rest[:2] == b"\0\0":
            return rest[2:].split(b"\0", 2)[-1]
    msg = f"{path} carries no recipe: it was not saved by havir_explorer, or its recipe was stripped; look for the JSON file beside it"
    raise RequestError(msg)


def _text_chunks(file: BinaryIO) -> Iterator[bytes]:
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name != b"iTXt" or length > LARGEST_RECIPE:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        content, checksum = file.read(length), file.read(4)
        if zlib.crc32(name + content).to_bytes(4, "big") == checksum:
            yield content


def _fault(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def _recipe(r: Reconstruction) -> Recipe:
    facts = {"kind": r.kind, "synthetic": bool(r.synthetic), "trained_on": bool(r.trained_on), "steps_run": int(r.steps_run), "signal": float(r.signal)}
    return Recipe.model_validate({"request": r.request, "scores": r.scores, "seconds": r.seconds, **facts})


def _as_json(recipe: Recipe) -> str:
    values = {name: asdict(value) if name == "request" else value for name, value in recipe} | {"scores": [asdict(score) for score in recipe.scores]}
    return json.dumps(values, indent=1, ensure_ascii=False, default=np.generic.item)  # NumPy's own numbers as Python's


def png(reconstruction: Reconstruction, *, recipe: bool = True) -> bytes:
    """Return the picture as PNG, with its recipe inside or bare."""
    info = PngImagePlugin.PngInfo()
    if recipe:
        info.add_itxt(KEYWORD, _as_json(_recipe(reconstruction)))
    buffer = io.BytesIO()
    Image.fromarray(reconstruction.picture).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _pack(r: Reconstruction) -> bytes:
    entry = {"stamp": _stamp(r.request), "recipe": json.loads(_as_json(_recipe(r)))}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.frombuffer(json.dumps(entry).encode(), np.uint8), picture=r.picture, structure=r.structure, stimulus=r.stimulus)
    return buffer.getvalue()


def _unpack(content: bytes, request: Request) -> Reconstruction | None:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        entry = _Entry.model_validate_json(arrays["about"].tobytes())
        picture, structure, stimulus = (_checked(arrays[name]) for name in ("picture", "structure", "stimulus"))
    r = entry.recipe
    if entry.stamp != _stamp(request) or r.request != request or r.kind is None or r.steps_run is None or r.signal is None:
        return None
    facts = (r.kind, bool(r.synthetic), bool(r.trained_on), r.scores, r.seconds, r.steps_run, r.signal)
    return Reconstruction(request, picture, structure, stimulus, *facts)


def _checked(picture: np.ndarray) -> UInt8Array:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or max(picture.shape) > LARGEST_SIDE:
        msg = f"a remembered picture has shape {picture.shape} and type {picture.dtype}"
        raise ValueError(msg)
    return picture


def _stamp(request: Request) -> str:
    """Digest of the files and of the device a request uses: a result of others is not this request's result."""
    from havir_explorer.diffuse import device  # here, because it loads torch, which reading a recipe does not need

    try:
        place = f"{device.device().type} {device.dtype()}"
    except HavirError:  # the run that follows says it
        place = ""
    return f"{stamp(*sources(request))} {place}"


def sources(request: Request) -> tuple[Path, ...]:
    """Return the folders of a request's generator, decoder and responses; none when one of them is not there."""
    from havir_explorer import data, pipeline  # as above
    from havir_explorer.data import betas
    from havir_explorer.diffuse import source

    measured: tuple[Path, ...] = (betas.folder(data.demo_folder(), request.subject),)
    decoder = shipped_weights() / (request.decoder or "havir") / request.subject
    try:
        generator = source.locate(request.generator).root
        if request.dataset != data.DEMO:  # the teaching world is not opened: that would build it
            dataset = data.open_dataset(request.dataset)
            measured, decoder = dataset.sources(request.subject), pipeline.decoder_folder(dataset, request.subject, request.decoder)
    except HavirError:  # whoever reads the weights or the data says it better, and a remembered result does not survive it
        return ()
    return generator, decoder if request.decoder in ("", pipeline.LINEAR) else Path(request.decoder), *measured


def _named(path: Path | str, ending: str, why: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != ending:
        msg = f"{why}; got the name {path.name!r}: end it in {ending}"
        raise OutputError(msg)
    return path


def write_files(files: Mapping[Path, bytes], *, make_folder: bool = False) -> None:
    """Write all files or none: each under a temporary name in its own folder first, then renamed; OutputError says why not."""
    waiting = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part") for path in files}
    path = next(iter(files))
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            waiting[path].write_bytes(content)
        for path, part in waiting.items():
            part.replace(path)
    except OSError as error:
        for part in waiting.values():
            _remove(part)
        msg = f"cannot write {path}: {reason(error)}"
        raise OutputError(msg) from error


def _remove(path: Path) -> None:
    with suppress(OSError):  # an entry that cannot be removed is overwritten or ignored next time
        path.unlink(missing_ok=True)
