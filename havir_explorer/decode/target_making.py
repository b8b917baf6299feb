"""Make a target store: a shard at a time, each under its name only when whole, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from havir_explorer.data import storing
from havir_explorer.data.dataset import Dataset
from havir_explorer.decode.manifest import alike
from havir_explorer.decode.target_store import MANIFEST, Manifest, Records, Shard, TargetStore, read_manifest, read_shard, shard_file
from havir_explorer.decode.targets import Rows, used_captions
from havir_explorer.errors import DataInvalid, DataMissing, OutputError, RequestError
from havir_explorer.records import IntArray

STORE = "target store"
SHARD = 256
"""Pictures in a file: 140 MB at the published size. A stop loses the last file; many small ones cost training an opening each."""
Progress = Callable[[float, str], None]
EncodeBatches = Callable[[IntArray], Iterator[tuple[range, Rows]]]
"""Encodes the pictures of these nsd_ids, some at a time, and yields which of them are done with their targets."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What making a store, or adding to it, will take.

    Parameters
    ----------
    dataset : Dataset
    folder : Path
    manifest : Manifest
        The store as it stands.
    wanted : int
        Pictures asked for.
    todo : dict of int to int64 (n,)
        Shards to make, by number: which pictures each will hold.
    damaged : tuple of int
        Those of them that are there, but are not what was written or are of pictures or captions since replaced.
    bytes_to_write, bytes_free : int
        Both 0 where nothing is left to do: a finished store may lie where it cannot be written.
    """

    dataset: Dataset
    folder: Path
    manifest: Manifest
    wanted: int
    todo: dict[int, IntArray]
    damaged: tuple[int, ...]
    bytes_to_write: int
    bytes_free: int

    @property
    def pictures(self) -> IntArray:
        """The pictures to encode, int64."""
        return np.concatenate([np.empty(0, np.int64), *self.todo.values()])


def plan(dataset: Dataset, nsd_ids: IntArray, folder: Path, blank: Manifest, *, shard: int = SHARD, progress: Progress | None = None) -> Plan:
    """Look at what is there, compare checksums, and count what is left to encode.

    Parameters
    ----------
    dataset : Dataset
    nsd_ids : int64 (n,)
        Pictures that the store shall hold; those it holds already are not encoded again, unless the checksum of the file that holds them is wrong.
    folder : Path
    blank : Manifest
        What the store is to be, without shards.
    shard : int
        Pictures in a new file.
    progress : callable, optional
        Called with the share of the store that was looked at and a phrase.

    Raises
    ------
    RequestError
        The store there was made by another generator or rule, or for another data set.
    DataMissing
        A picture to encode has no caption.
    DataInvalid
        The manifest is damaged.
    OutputError
        The folder cannot be written, or has no room.
    """
    manifest = read_manifest(folder) or blank
    if other := difference(manifest, blank):
        msg = f"the {STORE} {folder} was made {other}; the two are never mixed: give another folder with --out"
        raise RequestError(msg)
    wanted = np.unique(np.asarray(nsd_ids, np.int64))
    damaged = _damaged(dataset, folder, manifest, wanted, progress)
    new = wanted[~np.isin(wanted, manifest.nsd_ids)]
    first = max(manifest.shards, default=-1) + 1
    todo = {number: np.array(manifest.shards[number].nsd_ids, np.int64) for number in damaged}
    todo |= {first + place: new[start : start + shard] for place, start in enumerate(range(0, len(new), shard))}
    count = sum(len(ids) for ids in todo.values())
    free = storing.room(folder, STORE, "give another folder with --out") if todo else 0
    made = Plan(dataset, folder, manifest, len(wanted), todo, damaged, count * manifest.dtype.itemsize, free)
    if made.bytes_to_write > free:
        msg = f"the {STORE} needs {made.bytes_to_write / 1e9:.1f} GB more in {folder}, where {free / 1e9:.1f} GB are free; make room first or use --out"
        raise OutputError(msg)
    used_captions(dataset, made.pictures, manifest.caption_target)  # before hours go into the others
    return made


def make(made: Plan, encode: EncodeBatches, *, progress: Progress | None = None) -> TargetStore:
    """Carry out a plan.

    Parameters
    ----------
    made : Plan
    encode : callable
        See :data:`EncodeBatches`.
    progress : callable, optional
        Called with the share done and a phrase. What it raises stops the work; finished shards stay.

    Returns
    -------
    TargetStore

    Raises
    ------
    DataInvalid
        A target is not finite, or beyond what float16 holds.
    OutputError
        The store cannot be written, or another run is writing it or has written it since the plan was made.
    """
    if not made.todo:
        return TargetStore(made.folder, made.manifest)
    with storing.alone(made.folder, "havir targets"):
        if (read_manifest(made.folder) or made.manifest) != made.manifest:
            msg = f"the {STORE} {made.folder} was written by another run meanwhile; run the same command again: what is finished stays"
            raise OutputError(msg)
        return TargetStore(made.folder, _made(made, encode, progress or _silent))


def _made(made: Plan, encode: EncodeBatches, tell: Progress) -> Manifest:
    manifest, done, count = made.manifest, 0, len(made.pictures)
    for number, ids in made.todo.items():
        records = np.zeros(len(ids), manifest.dtype)
        for places, rows in encode(ids):
            _put(records, places, rows, ids)
            done += len(places)
            tell(done / count, f"encoded {done:,} of {count:,} pictures")
        checksum = storing.save(shard_file(made.folder, number), records, STORE)
        shard = Shard(nsd_ids=tuple(ids.tolist()), checksum=checksum, source=_source(made.dataset, manifest, ids), made_with=_versions())
        manifest = manifest.model_copy(update={"shards": dict(sorted({**manifest.shards, number: shard}.items()))})
        storing.save_record(made.folder / MANIFEST, manifest, STORE)
    return manifest


def _put(records: Records, places: range, rows: Rows, ids: IntArray) -> None:
    for name, values in rows._asdict().items():
        with np.errstate(over="ignore"):
            records[name][places.start : places.stop] = values
        kept = records[name][places.start : places.stop]
        fine = np.isfinite(kept).reshape(len(kept), -1).all(1)
        if not fine.all():
            wrong = ids[places.start + int(np.argmin(fine))]
            msg = f"the generator's {name} of picture {wrong} hold a value not finite or too large for float16; use HAVIR_DTYPE=float32 or other weights"
            raise DataInvalid(msg)


def difference(found: Manifest, blank: Manifest) -> str:
    """Return in what a store differs from what is asked for, as part of a sentence; empty when nothing."""
    if found.shapes != blank.shapes or not alike(found.generator, blank.generator):
        return f"with the generator {found.generator_name}, whose autoencoder or CLIP are not those of {blank.generator_name}"
    for what, there, asked in (
        ("for the data set", found.dataset, blank.dataset),
        ("with captions", found.caption_target, blank.caption_target),
        ("with images", found.image_source, blank.image_source),
        ("with images drawn in", found.drawing, blank.drawing),
    ):
        if there != asked:
            return f"{what} {there!r}, and {asked!r} is asked for"
    return ""


def _damaged(dataset: Dataset, folder: Path, manifest: Manifest, wanted: IntArray, progress: Progress | None) -> tuple[int, ...]:
    """Return the shards that must be made again, of those that hold something wanted."""
    found = []
    looked_at = [number for number, shard in manifest.shards.items() if np.isin(shard.nsd_ids, wanted).any()]
    for done, number in enumerate(looked_at, start=1):
        try:
            read_shard(folder, manifest, number)
        except DataInvalid:
            found.append(number)
        else:
            if _replaced(dataset, manifest, manifest.shards[number]):
                found.append(number)
        (progress or _silent)(done / len(looked_at), f"checked {done} of {len(looked_at)} files of targets")
    return tuple(found)


def _replaced(dataset: Dataset, manifest: Manifest, shard: Shard) -> bool:
    """True when the data set now gives other captions or pictures; False where it gives none any more: the targets outlive them."""
    try:
        return _source(dataset, manifest, np.array(shard.nsd_ids, np.int64)) != shard.source
    except DataMissing:
        return False


def _source(dataset: Dataset, manifest: Manifest, nsd_ids: IntArray) -> str:
    found = hashlib.sha256("\0".join("\n".join(group) for group in used_captions(dataset, nsd_ids, manifest.caption_target)).encode())
    found.update(dataset.stimuli(nsd_ids[:1]).tobytes())
    return found.hexdigest()


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("havir_explorer", "torch", "diffusers", "transformers"))


def _silent(_share: float, _phrase: str) -> None:
    """Tell nobody."""
