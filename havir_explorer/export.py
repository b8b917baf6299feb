"""A data set's numbers for any other program: responses in percent signal change, ROIs, trials, and the pictures that were shown."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from havir_explorer.data import betas
from havir_explorer.data.dataset import Dataset
from havir_explorer.data.nsd import NSD
from havir_explorer.errors import HavirError, OutputError, RequestError
from havir_explorer.records import BoolArray, FloatArray, IntArray

_BATCH = 32  # pictures in memory at a time


@dataclass(frozen=True, eq=False)
class Responses:
    """Single-trial responses as they were estimated, before any z-scoring.

    Parameters
    ----------
    trial_index : int64 (n_trials,)
        0-based over the experiment, in the order asked for.
    voxel_flat_index : int64 (n_voxels,)
        C-order index into the NIfTI grid (X, Y, Z), ascending.
    percent_signal_change : float32 (n_trials, n_voxels)
        NSD's int16 values over 300.
    """

    trial_index: IntArray
    voxel_flat_index: IntArray
    percent_signal_change: FloatArray


@dataclass(frozen=True, eq=False)
class Regions:
    """A subject's ROIs over its voxels.

    Parameters
    ----------
    roi_name, roi_file : str (n_rois,)
        Name, and the atlas file that draws it.
    roi_voxels : bool (n_rois, n_voxels)
    voxel_flat_index : int64 (n_voxels,)
        C-order index into the NIfTI grid (X, Y, Z), ascending.
    right_hemisphere : bool (n_voxels,)
    grid : int64 (3,)
        X, Y, Z.
    affine : float64 (4, 4)
        Of the NIfTI files; NSD's carries voxel sizes, not a place in the scanner or in MNI space.
    """

    roi_name: np.ndarray
    roi_file: np.ndarray
    roi_voxels: BoolArray
    voxel_flat_index: IntArray
    right_hemisphere: BoolArray
    grid: IntArray
    affine: np.ndarray


def responses(dataset: Dataset, subject: str, trials: Sequence[int] | None = None, rois: Sequence[str] = ()) -> Responses:
    """Read responses of some trials in some ROIs.

    Parameters
    ----------
    dataset : Dataset
        An NSD tree or the teaching world; its prepared store serves where the originals were deleted.
    subject : str
    trials : sequence of int, optional
        0-based over the experiment; all at hand when left out.
    rois : sequence of str
        Names, unions or files as :meth:`~havir_explorer.data.dataset.Atlas.voxels` takes them, ``lh.`` or ``rh.`` before them for one hemisphere;
        the voxels of all of them together. Empty for every voxel of the data set.

    Raises
    ------
    RequestError
        Unknown subject, a trial that is not at hand, an unknown ROI; a data set whose responses came normalised.
    DataMissing, DataInvalid
        A beta file is absent or malformed.
    """
    if not isinstance(dataset, NSD):
        msg = f"{dataset.name} at {dataset.root} holds z-scored responses only, so their percent signal change is not known; export betas of an NSD tree"
        raise RequestError(msg)
    index, atlas = _at_hand(dataset, subject, trials), dataset.atlas(subject)
    flat = dataset.geometry(subject).flat_index
    chosen = np.logical_or.reduce([atlas.voxels(name) for name in rois]) if rois else np.ones(len(flat), bool)
    values = np.empty((len(index), int(chosen.sum())), np.float32)
    session, measured = index // betas.TRIALS + 1, dataset.measured(subject)
    for number in np.unique(session).tolist():
        stored, _ = measured.values(number)
        rows = np.flatnonzero(session == number)
        values[rows] = stored[index[rows] % betas.TRIALS][:, chosen] / np.float32(betas.unit(stored.dtype))
    return Responses(index, flat[chosen], values)


def regions(dataset: Dataset, subject: str) -> Regions:
    """Read a subject's ROIs; raises as :meth:`~havir_explorer.data.dataset.Dataset.atlas`."""
    atlas, place = dataset.atlas(subject), dataset.geometry(subject)
    names, files = (np.array([getattr(roi, field) for roi in atlas.rois], dtype=np.str_) for field in ("name", "file"))
    masks = np.stack([roi.voxels for roi in atlas.rois])
    return Regions(names, files, masks, place.flat_index, atlas.right, np.array(place.shape, np.int64), place.affine)


def trials(dataset: Dataset, subject: str, wanted: Sequence[int] | None = None) -> pd.DataFrame:
    """Return the trial table, indexed by the 0-based trial of the experiment, or some rows of it in the order asked for; raises as :func:`responses`."""
    return dataset.trials(subject).loc[_at_hand(dataset, subject, wanted)]


def stimuli(
    dataset: Dataset,
    subject: str,
    folder: Path,
    wanted: Sequence[int] | None = None,
    *,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[Path, ...]:
    """Write the pictures of some trials as PNG, one file a picture however often it was shown.

    Parameters
    ----------
    dataset : Dataset
    subject : str
    folder : Path
        Made here; it appears complete or not at all, and must not exist unless it is empty. Files are called ``nsd00042.png`` by 0-based nsd_id.
    wanted : sequence of int, optional
        Trials, 0-based over the experiment; all at hand when left out.
    progress : callable, optional
        Called with the share done and a phrase; an exception it raises stops the work and leaves nothing.

    Returns
    -------
    tuple of Path

    Raises
    ------
    RequestError, DataMissing, DataInvalid
        As :func:`responses`; a picture is not in the tree.
    OutputError
        The folder holds something already, or cannot be written.
    """
    ids = np.unique(trials(dataset, subject, wanted)["nsd_id"].to_numpy(dtype=np.int64))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"cannot write pictures to {folder}: there is something already; give the name of a new folder"
        raise OutputError(msg)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir()
        for start in range(0, len(ids), _BATCH):
            if progress is not None:
                progress(start / len(ids), f"{start:,} of {len(ids):,} pictures")
            some = ids[start : start + _BATCH]
            for nsd_id, picture in zip(some.tolist(), dataset.stimuli(some), strict=True):
                Image.fromarray(picture).save(part / _name(nsd_id))
        part.replace(folder)
    except HavirError:
        raise
    except OSError as error:
        msg = f"cannot write pictures to {folder}: {error.strerror or error}; free some space or write somewhere else"
        raise OutputError(msg) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return tuple(folder / _name(nsd_id) for nsd_id in ids.tolist())


def _name(nsd_id: int) -> str:
    return f"nsd{nsd_id:05d}.png"


def _at_hand(dataset: Dataset, subject: str, wanted: Sequence[int] | None) -> IntArray:
    """Return trials once it is known that they are there."""
    known = dataset.trials(subject).index.to_numpy(dtype=np.int64)
    if wanted is None:
        return known
    index = np.asarray(wanted, np.int64)
    gone = index[~np.isin(index, known)]
    if len(gone):
        msg = f"no trial {gone[0]} of {subject} in {dataset.root}: it holds {_spans(known)}; trials count from 0 over the experiment, 750 a session"
        raise RequestError(msg)
    return index


def _spans(known: IntArray) -> str:
    """Write sorted numbers as ranges."""
    pieces = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    return "trials " + ", ".join(f"{piece[0]}-{piece[-1]}" for piece in pieces)
