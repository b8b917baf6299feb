"""The pictures the subjects saw, and what people wrote about them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from havir_explorer.data import files
from havir_explorer.errors import DataInvalid, DataMissing, RequestError
from havir_explorer.records import IntArray, UInt8Array

BRICK = Path("nsddata_stimuli", "stimuli", "nsd", "nsd_stimuli.hdf5")
SIDE = 425
PRESENT = "present"
"""Data set beside ``imgBrick`` in a brick of which only some pictures were fetched: uint8 (pictures,), 1 for those it holds."""
CAPTIONS = (
    Path("nsddata_stimuli", "captions.json"),
    Path("annotations", "captions_train2017.json"),
    Path("annotations", "captions_val2017.json"),
    Path("..", "annotations", "captions_train2017.json"),
    Path("..", "annotations", "captions_val2017.json"),
)
"""Where captions are looked for, relative to the tree: our own file, then COCO's in the tree or beside it."""


def read_stimuli(root: Path, nsd_ids: IntArray) -> UInt8Array:
    """Read pictures of the stimulus brick.

    Parameters
    ----------
    root : Path
    nsd_ids : int (n,)
        0-based; any order, repeats allowed.

    Returns
    -------
    uint8 (n, 425, 425, 3)

    Raises
    ------
    DataMissing, DataInvalid
        No brick, or one into which a picture was not fetched; truncated or of another shape.
    RequestError
        An id outside the brick.
    """
    path = root / BRICK
    todo = "download nsd_stimuli.hdf5 (39.6 GB, shared by all subjects), or the pictures in use with havir fetch nsd --images needed"
    file, brick = files.hdf5(path, "stimulus file", todo, "imgBrick")
    with file:
        if brick.ndim != 4 or brick.shape[1:] != (SIDE, SIDE, 3) or brick.dtype != np.uint8:
            msg = f"stimulus file holds {brick.dtype} {brick.shape}, expected uint8 (pictures, {SIDE}, {SIDE}, 3): {path}; it is not NSD's, so {todo}"
            raise DataInvalid(msg)
        unique, back = np.unique(np.asarray(nsd_ids, np.int64).ravel(), return_inverse=True)
        if len(unique) and not 0 <= unique[0] <= unique[-1] < len(brick):
            wrong = unique[0] if unique[0] < 0 else unique[-1]
            msg = f"no stimulus has nsd_id {wrong}: {path} holds 0 to {len(brick) - 1}"
            raise RequestError(msg)
        _check_present(file, unique, root)
        return _pictures(brick, unique, path)[back]


def _check_present(file: h5py.File, ids: IntArray, root: Path) -> None:
    """Raise when a picture was left out of a brick fetched in part: what would be read is grey."""
    if PRESENT not in file:
        return
    held = file[PRESENT][()]
    gone = ids[held[ids] == 0]
    if len(gone):
        more = f" (and {len(gone) - 1:,} more)" if len(gone) > 1 else ""
        msg = (
            f"picture {gone[0]}{more} was not fetched: {root / BRICK} holds {int(held.sum()):,} of {len(held):,}; "
            f"run havir fetch nsd --images needed --to {root} with the subjects and sessions you use, or --images all"
        )
        raise DataMissing(msg)


def _pictures(brick: h5py.Dataset, ids: IntArray, path: Path) -> UInt8Array:
    """Read sorted, distinct pictures one by one: h5py's list selection is quadratic in their number."""
    pictures = np.empty((len(ids), *brick.shape[1:]), np.uint8)
    try:
        for i, nsd_id in enumerate(ids.tolist()):
            brick.read_direct(pictures, np.s_[nsd_id], np.s_[i])
    except OSError as error:
        raise DataInvalid(files.unreadable("stimulus file", path, error)) from error
    return pictures


def read_captions(root: Path) -> dict[int, tuple[str, ...]]:
    """Read the captions at hand, by COCO picture number; empty when there are none.

    Files have COCO's captions format: ``{"annotations": [{"image_id": 1, "caption": "…"}, …]}``.

    Raises
    ------
    DataInvalid
        A file is not in that format.
    """
    found: dict[int, list[str]] = {}
    for path in (root / p for p in CAPTIONS):
        if not path.is_file():
            continue
        try:
            for entry in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
                found.setdefault(int(entry["image_id"]), []).append(str(entry["caption"]).strip())
        except OSError as error:
            raise DataInvalid(files.unreadable("captions", path, error)) from error
        except (ValueError, KeyError, TypeError) as error:
            msg = f"captions cannot be read: {path} ({type(error).__name__}: {error}); expected COCO's captions format"
            raise DataInvalid(msg) from error
    return {coco_id: tuple(texts) for coco_id, texts in found.items()}
