"""The two large kinds of file of NSD's layout, written chunk by chunk: the picture brick and the sessions' betas."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from havir_explorer.data.demo import scenes
from havir_explorer.data.demo.design import N_STIMULI
from havir_explorer.records import IntArray

STIMULUS_SIDE = 425
GREY = 127
_LEVEL = 3


def write_stimuli(path: Path, nsd_ids: IntArray, progress: Callable[[float], None], stop: threading.Event) -> None:
    """Write ``nsd_stimuli.hdf5``: ``imgBrick`` uint8 (73000, 425, 425, 3), grey where a picture was never shown.

    Parameters
    ----------
    path : Path
    nsd_ids : int64 (n,)
        0-based ids to draw, ascending.
    progress : callable (float) -> None
        Called with the share done since the last call.
    stop : threading.Event
        When set, ends after the picture at hand.
    """
    path.parent.mkdir(parents=True)
    shape = (STIMULUS_SIDE, STIMULUS_SIDE, 3)
    with h5py.File(path, "w", locking=False) as file:
        brick = file.create_dataset("imgBrick", (N_STIMULI, *shape), np.uint8, chunks=(1, *shape), compression="gzip", compression_opts=_LEVEL, fillvalue=GREY)
        for done, nsd_id in enumerate(nsd_ids, start=1):
            picture = scenes.draw(scenes.scene(int(nsd_id)), STIMULUS_SIDE)
            brick.id.write_direct_chunk((int(nsd_id), 0, 0, 0), zlib.compress(picture.tobytes(), _LEVEL))
            if stop.is_set():
                return
            if done % 100 == 0:
                progress(100 / len(nsd_ids))


def write_betas(path: Path, betas: npt.NDArray[np.int16], flat_index: IntArray, shape: tuple[int, int, int]) -> None:
    """Write ``betas_sessionNN.hdf5``: ``betas`` int16, in h5py's order (trials, Z, Y, X), one chunk a voxel; unwritten voxels read 0.

    Parameters
    ----------
    path : Path
    betas : int16 (n_trials, n_voxels)
        Percent signal change times 300.
    flat_index : int64 (n_voxels,)
        C-order indices into the (X, Y, Z) grid.
    shape : (int, int, int)
        X, Y, Z.
    """
    x, y, z = np.unravel_index(flat_index, shape)
    columns = np.ascontiguousarray(betas.T)
    with h5py.File(path, "w", locking=False) as file:
        data = file.create_dataset("betas", (len(betas), *shape[::-1]), np.int16, chunks=(len(betas), 1, 1, 1))
        for voxel in np.lexsort((x, y, z)):  # file order, which keeps the chunk index compact
            data.id.write_direct_chunk((0, int(z[voxel]), int(y[voxel]), int(x[voxel])), columns[voxel].tobytes())
