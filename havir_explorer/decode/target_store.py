"""Targets on disk, larger than memory: made once a picture whatever the subject, mapped into memory, with a checksum a shard.

A store is a folder of ``store.json`` (the manifest) and ``shard00000.npy``, ``shard00001.npy``, …, each some pictures, whose rows are records of float16
``latents``, ``image_embeds`` and ``text_embeds``, so that one picture lies in one piece (0.55 MB at the published size). Training reads it as any
:class:`~havir_explorer.decode.targets.TargetSource`::

    store = TargetStore.open(folder)
    store.nsd_ids, store.shapes, store.generator, store.caption_target, store.image_source
    rows = store.rows(np.array([5, 2, 7]))        # float16, places in nsd_ids; touches these rows of the files alone
    latents = store.column("latents", np.array([5]))  # these alone, for a branch that learns nothing else
    targets = store.read(np.array([46002, 61882]))  # float32 Targets of these pictures, in memory
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from havir_explorer.data import storing
from havir_explorer.decode.targets import CaptionTarget, HeldArray, ImageSource, Kind, Rows, Shapes, Targets
from havir_explorer.errors import DataInvalid, DataMissing, RequestError
from havir_explorer.records import IntArray

MANIFEST = "store.json"
OPEN = 64
"""Shards kept open: a store of all pictures has 286, and macOS lets a process open 256 files."""
AGAIN = "make it again with: havir targets"
Records = npt.NDArray[np.void]
Mapped = np.memmap[Any, np.dtype[np.void]]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Frozen):
    """One file.

    Parameters
    ----------
    nsd_ids : tuple of int
        Which picture each row belongs to, ascending.
    checksum : str
        SHA-256 of the file.
    source : str
        SHA-256 of the captions of all these pictures and the pixels of the first: tells that the data set was replaced.
    made_with : str
        Versions.
    """

    nsd_ids: tuple[int, ...]
    checksum: str
    source: str
    made_with: str


class Manifest(_Frozen):
    """What a store holds.

    Parameters
    ----------
    dataset : str
    generator : tuple of float
        Fingerprint of the autoencoder and CLIP (``diffuse.fingerprint``).
    generator_name : str
        As it was asked for.
    caption_target : {'mean', 'first'}
        How several captions became one text target.
    image_source : {'stimulus', 'synthesised'}
        Which picture the image tokens are of: the one the subject saw, or one that the generator drew from the text target alone.
    drawing : str
        How it drew; empty for the stimulus.
    shapes : Shapes
        Of one picture's targets.
    shards : dict of int to Shard
        Finished files, by their number.
    """

    format: Literal[1] = 1
    kind: Literal["targets"] = "targets"
    dataset: str
    generator: tuple[float, ...]
    generator_name: str
    caption_target: CaptionTarget
    image_source: ImageSource
    drawing: str = ""
    shapes: Shapes
    shards: dict[int, Shard] = {}

    @property
    def nsd_ids(self) -> IntArray:
        """The pictures it holds, int64, in the order of the shards."""
        return np.concatenate([np.empty(0, np.int64), *(np.array(shard.nsd_ids, np.int64) for shard in self.shards.values())])

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Record of one picture."""
        return np.dtype([(name, np.float16, shape) for name, shape in self.shapes._asdict().items()])


class TargetStore:
    """A store opened for reading; safe from several threads, and cheap to hand to another process.

    Parameters
    ----------
    folder : Path
    manifest : Manifest

    Raises
    ------
    DataInvalid
        A picture is in it twice.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        ids = manifest.nsd_ids
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        if np.any(self._ids[1:] == self._ids[:-1]):
            msg = f"the target store {folder} lists a picture twice: its {MANIFEST} was altered; delete the folder, then {AGAIN}"
            raise DataInvalid(msg)
        sizes = [len(shard.nsd_ids) for shard in manifest.shards.values()]
        self._shard = np.repeat(np.array(list(manifest.shards), np.int64), sizes)[order]
        self._row = np.concatenate([np.empty(0, np.int64), *(np.arange(size) for size in sizes)])[order]
        self._records = lru_cache(OPEN)(partial(read_shard, folder, manifest))

    @classmethod
    def open(cls, folder: Path) -> TargetStore:
        """Open a store; each shard's checksum is compared when it is first read.

        Raises
        ------
        DataMissing
            There is none.
        DataInvalid
            Its manifest is damaged.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            msg = f"no target store at {folder}: it has no {MANIFEST}; {AGAIN} --out {folder}"
            raise DataMissing(msg)
        return cls(folder, manifest)

    def __reduce__(self) -> tuple[type[TargetStore], tuple[Path, Manifest]]:
        return TargetStore, (self.folder, self.manifest)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def nsd_ids(self) -> IntArray:
        """The pictures it holds, int64 (n,), ascending."""
        return self._ids

    @property
    def shapes(self) -> Shapes:
        """Sizes of one picture's targets."""
        return self.manifest.shapes

    @property
    def generator(self) -> tuple[float, ...]:
        """Fingerprint of the autoencoder and CLIP they were made with."""
        return self.manifest.generator

    @property
    def caption_target(self) -> CaptionTarget:
        """How several captions became one text target."""
        return self.manifest.caption_target

    @property
    def image_source(self) -> ImageSource:
        """Which picture the image tokens are of."""
        return self.manifest.image_source

    def rows(self, indices: IntArray) -> Rows:
        """Return the targets at some places of ``nsd_ids``, float16, copied.

        Parameters
        ----------
        indices : int (B,)
            0-based; any order, repeats allowed.

        Raises
        ------
        DataInvalid
            A shard is absent or damaged.
        """
        return Rows(*(self.column(kind, indices) for kind in get_args(Kind)))

    def column(self, kind: Kind, indices: IntArray) -> HeldArray:
        """Return one of the three targets at some places of ``nsd_ids``, float16, copied; what else a picture has is not read."""
        places = np.asarray(indices, np.int64)
        shards, rows = self._shard[places].tolist(), self._row[places].tolist()
        order = sorted(range(len(places)), key=lambda to: (shards[to], rows[to]))  # as they lie on disk
        gathered = np.empty((len(places), *getattr(self.shapes, kind)), np.float16)
        for start in range(0, len(order), OPEN):
            some = order[start : start + OPEN]
            held = [self._records(shards[to]) for to in some]
            for to, records in zip(some, held, strict=True):
                _announce(records, rows[to], kind)
            for to, records in zip(some, held, strict=True):
                gathered[to] = records[rows[to]][kind]
        return gathered

    def read(self, nsd_ids: IntArray) -> Targets:
        """Return the targets of some pictures in memory, float32, ascending.

        Raises
        ------
        RequestError
            A picture is not in the store.
        DataInvalid
            A shard is absent or damaged.
        """
        wanted = np.unique(np.asarray(nsd_ids, np.int64))
        missing = wanted[~np.isin(wanted, self._ids)]
        if len(missing):
            msg = f"the target store {self.folder} lacks {len(missing):,} of {len(wanted):,} pictures, the first {missing[0]}; add them with: havir targets"
            raise RequestError(msg)
        places = np.searchsorted(self._ids, wanted)
        latents, images, texts = (np.empty((len(wanted), *shape), np.float32) for shape in self.shapes)
        for start in range(0, len(places), 64):  # a few at a time: float16 and float32 of all would be half as much again
            some = slice(start, start + 64)
            latents[some], images[some], texts[some] = self.rows(places[some])
        return Targets(latents, images, texts, wanted, self.generator)


def read_manifest(folder: Path) -> Manifest | None:
    """Read a store's manifest; None when there is no store.

    Raises
    ------
    DataInvalid
        It is damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        msg = f"the target store cannot be used: its manifest is damaged: {file} ({why}); delete the folder, then {AGAIN}"
        raise DataInvalid(msg) from error


def shard_file(folder: Path, number: int) -> Path:
    """Return where a shard lies."""
    return folder / f"shard{number:05d}.npy"


def read_shard(folder: Path, manifest: Manifest, number: int) -> Mapped:
    """Map a shard into memory, after its checksum was compared.

    Returns
    -------
    records (n,), memory-mapped
        See :attr:`Manifest.dtype`.

    Raises
    ------
    DataInvalid
        It is absent, or not what was written.
    """
    file, shard = shard_file(folder, number), manifest.shards[number]
    try:
        about = file.stat()
        whole = _checksum(file, about.st_size, about.st_mtime_ns) == shard.checksum
        records = np.load(file, mmap_mode="r") if whole else None
    except (OSError, ValueError, EOFError) as error:
        msg = f"the target store is damaged: {file} cannot be read ({error}); mend it with the havir targets command that made it"
        raise DataInvalid(msg) from error
    if records is None or records.dtype != manifest.dtype or records.shape != (len(shard.nsd_ids),):
        msg = f"the target store is damaged: {file} is not what was written (its checksum differs); mend it with the havir targets command that made it"
        raise DataInvalid(msg)
    return records


def _announce(records: Mapped, row: int, kind: Kind) -> None:
    """Tell the system that a target will be read, so that it fetches many rows from disk side by side; from memory this costs nothing."""
    kinds: Mapping[str, Any] = records.dtype.fields or {}
    size, start = kinds[kind][0].itemsize, records.offset + row * records.dtype.itemsize + kinds[kind][1]
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    held: object = records.base
    if isinstance(held, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):  # Windows has none
        held.madvise(mmap.MADV_WILLNEED, first, start + size - first)


@lru_cache(maxsize=4096)
def _checksum(file: Path, _size: int, _mtime_ns: int) -> str:
    """The SHA-256 of a file, computed once as long as the file stays as it is: 5 GB take seconds."""
    return storing.digest(file)
