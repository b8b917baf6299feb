"""Some pictures of the 39.6 GB brick, by ranged reads, into a local brick that holds only them.

The remote file's header says where the chunks of each picture lie; their bytes are copied as they are, compressed or not, and put into a
chunked file of the full shape. Its data set ``present`` says which pictures it holds, so that one that was not fetched is never taken for grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from havir_explorer.data import design
from havir_explorer.data.betas import TRIALS
from havir_explorer.data.fetch.bucket import Bucket, Remote, Span
from havir_explorer.data.fetch.folder import writing
from havir_explorer.data.fetch.keys import Order
from havir_explorer.data.stimuli import PRESENT
from havir_explorer.errors import DataInvalid
from havir_explorer.records import IntArray, UInt8Array

IMAGES = "imgBrick"
_SOURCE = "source"  # attribute of ``present``: ETag of the brick that the pictures are of
Corner = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the chunks of some pictures lie in the remote brick.

    Parameters
    ----------
    shape : (int, int, int, int)
        Of the whole brick.
    properties : h5py.h5p.PropDCID
        Creation properties of a chunked data set that takes the chunks as they are.
    corners : tuple of tuple of int
        First element of each chunk.
    masks : tuple of int
        HDF5's filter mask of each chunk.
    spans : tuple of (int, int)
        Bytes of each chunk.
    ids : int64 (n,)
        Pictures that the chunks make whole.
    sample : uint8 (H, W, 3)
        The first of them, read by HDF5 itself.
    """

    shape: tuple[int, ...]
    properties: h5py.h5p.PropDCID
    corners: tuple[Corner, ...]
    masks: tuple[int, ...]
    spans: tuple[Span, ...]
    ids: IntArray
    sample: UInt8Array


def wanted(root: Path, order: Order) -> IntArray:
    """Return the sorted nsd_ids an order comes to, once the experiment's design is in the folder; raises as ``read_design``."""
    plan = design.read_design(root)
    if order.images == "shared":
        return np.unique(plan.shared)
    shown = [plan.nsd_ids(subject)[(number - 1) * TRIALS : number * TRIALS] for subject in order.subjects for number in order.sessions_of(subject)]
    return np.unique(np.concatenate(shown))


def lacking(file: Path, remote: Remote, ids: IntArray) -> IntArray:
    """Return those of ``ids`` that a local brick does not hold; pictures of another release of the brick do not count."""
    try:
        with h5py.File(file, "r", locking=False) as content:
            if PRESENT not in content:
                return ids if IMAGES not in content else ids[ids >= len(content[IMAGES])]
            held: IntArray = np.flatnonzero(content[PRESENT][()])
            return np.setdiff1d(ids, held) if content[PRESENT].attrs.get(_SOURCE) == remote.etag else ids
    except OSError:
        return ids


def layout(bucket: Bucket, remote: Remote, ids: IntArray) -> Layout:
    """Find pictures in the remote brick by reading its header.

    Parameters
    ----------
    bucket : Bucket
    remote : Remote
    ids : int64 (n,)
        Sorted nsd_ids, at least one.

    Raises
    ------
    DataMissing, SourceUnavailable
    DataInvalid
        It is not NSD's brick.
    """
    with bucket.opened(remote) as stream, h5py.File(stream, "r") as file:
        brick = file.get(IMAGES)
        if not isinstance(brick, h5py.Dataset) or brick.ndim != 4 or brick.dtype != np.uint8 or not 0 <= ids[0] <= ids[-1] < len(brick):
            msg = f"{remote.key} of {bucket.name} is not NSD's picture brick: it holds no {IMAGES}, uint8 (pictures, H, W, 3), up to picture {ids[-1]}"
            raise DataInvalid(msg)
        if brick.chunks is None:
            return _contiguous(brick, ids)
        rows = np.unique(ids // brick.chunks[0])
        held = (rows[:, None] * brick.chunks[0] + np.arange(brick.chunks[0])).ravel()
        held = held[held < len(brick)]
        chunks = _chunks(brick, set((rows * brick.chunks[0]).tolist()))  # those that were written: the others are fill, there as here
        spans = tuple((info.byte_offset, info.byte_offset + info.size) for info in chunks)
        corners, masks = tuple(info.chunk_offset for info in chunks), tuple(info.filter_mask for info in chunks)
        return Layout(brick.shape, brick.id.get_create_plist(), corners, masks, spans, held, brick[int(held[0])])


def _contiguous(brick: h5py.Dataset, ids: IntArray) -> Layout:
    """Treat each picture of an unchunked brick as a chunk without compression."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, *brick.shape[1:]))
    sample = brick[int(ids[0])]
    first, size = brick.id.get_offset(), sample.nbytes
    spans = tuple((first + i * size, first + (i + 1) * size) for i in ids.tolist())
    return Layout(brick.shape, properties, tuple((i, 0, 0, 0) for i in ids.tolist()), (0,) * len(ids), spans, ids, sample)


def _chunks(brick: h5py.Dataset, firsts: set[int]) -> list[h5py.h5d.StoreInfo]:
    """Find the chunks whose first picture is one of ``firsts``, in one walk through the index: looking up each walks through it anew."""
    found: list[h5py.h5d.StoreInfo] = []

    def keep(info: h5py.h5d.StoreInfo) -> None:
        if info.chunk_offset[0] in firsts:
            found.append(info)

    brick.id.chunk_iter(keep)
    return sorted(found, key=lambda info: info.chunk_offset)


def assemble(part: Path, plan: Layout, remote: Remote, target: Path) -> None:
    """Put fetched chunks, and those a local brick already holds, into a new local brick, which then takes the old one's place.

    Parameters
    ----------
    part : Path
        The chunks' bytes, one after the other as in ``plan.spans``.
    plan : Layout
    remote : Remote
    target : Path

    Raises
    ------
    DataInvalid
        The first picture is not the one that HDF5 reads from the remote brick.
    OutputError
        The disk is full or cannot be written.
    """
    fresh = target.with_name(f".{target.name}.part")  # one fetch at a time is here: what a killed one left is written over
    try:
        with writing(target):
            with h5py.File(fresh, "w", locking=False) as file:
                space, kind = h5py.h5s.create_simple(plan.shape), h5py.h5t.NATIVE_UINT8
                brick = h5py.h5d.create(file.id, IMAGES.encode(), kind, space, plan.properties)
                present = file.create_dataset(PRESENT, plan.shape[:1], np.uint8, chunks=True, compression="gzip")
                present.attrs[_SOURCE] = remote.etag
                present[...] = _copy(target, remote, brick, np.zeros(plan.shape[0], np.uint8))
                _write(part, plan, brick)
                present[plan.ids] = 1
            _compare(fresh, plan, remote)
            fresh.replace(target)
            part.unlink()
    finally:
        fresh.unlink(missing_ok=True)


def _write(part: Path, plan: Layout, brick: h5py.h5d.DatasetID) -> None:
    with part.open("rb") as chunks:
        for corner, (start, stop), mask in zip(plan.corners, plan.spans, plan.masks, strict=True):
            brick.write_direct_chunk(corner, chunks.read(stop - start), mask)


def _copy(old: Path, remote: Remote, brick: h5py.h5d.DatasetID, present: UInt8Array) -> UInt8Array:
    """Copy the chunks of an earlier local brick of the same release, and return which pictures those are."""
    if not old.is_file():
        return present
    with h5py.File(old, "r", locking=False) as file:
        if PRESENT not in file or file[PRESENT].attrs.get(_SOURCE) != remote.etag:
            return present
        source: list[Corner] = []
        chunks = file[IMAGES].id
        chunks.chunk_iter(lambda info: source.append(info.chunk_offset))
        for corner in source:
            mask, content = chunks.read_direct_chunk(corner)
            brick.write_direct_chunk(corner, content, mask)
        return np.asarray(file[PRESENT][()], np.uint8)


def _compare(file: Path, plan: Layout, remote: Remote) -> None:
    with h5py.File(file, "r", locking=False) as content:
        first = content[IMAGES][int(plan.ids[0])]
    if not np.array_equal(first, plan.sample):
        msg = f"picture {plan.ids[0]} of {remote.key} is not what the bucket shows: its HDF5 layout is not understood; fetch the whole brick with --images all"
        raise DataInvalid(msg)
