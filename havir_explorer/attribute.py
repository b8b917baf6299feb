"""6. Which voxels and ROIs feed a branch.

Only weight-based contributions so far (percentiles of first-layer weight norms). Weight size is not information: correlated voxels share
weight, and by construction each branch shows only its own voxels. Read the ROI table's voxel counts and noise ceilings beside it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd

from havir_explorer.data.ceiling import noise_ceiling
from havir_explorer.data.dataset import Atlas
from havir_explorer.errors import RequestError
from havir_explorer.records import BoolArray, Branch, Contribution, FloatArray, IntArray

COLUMNS = ("roi", "file", "hemisphere", "n_voxels", "n_in_branch", "mean", "sem", "noise_ceiling")


class Decoder(Protocol):
    """What can say how much each voxel feeds a branch."""

    def contribution(self, branch: Branch) -> Contribution:
        """Return the contribution of every voxel."""


def contribution(decoder: Decoder, branch: Branch) -> Contribution:
    """Return how much each voxel feeds a branch of a decoder.

    Parameters
    ----------
    decoder : Decoder
    branch : {'structural', 'semantic'}

    Returns
    -------
    Contribution

    Raises
    ------
    RequestError
        Unknown branch.
    """
    if branch not in ("structural", "semantic"):
        msg = f"branch must be 'structural' or 'semantic'; got {branch!r}"
        raise RequestError(msg)
    return decoder.contribution(branch)


def tested_repeats(trials: pd.DataFrame) -> IntArray:
    """Return how many trials at hand show each shared picture, int64 (n,); each picture where none is shared. Columns as a data set's ``trials``."""
    tested = trials[trials["shared"].to_numpy(dtype=bool)]
    counts: IntArray = (tested if len(tested) else trials).drop_duplicates("nsd_id")["n_repeats"].to_numpy(dtype=np.int64)
    return counts


def roi_table(found: Contribution, atlas: Atlas, ncsnr: FloatArray, repeats: IntArray) -> pd.DataFrame:
    """Return mean contributions per ROI and hemisphere.

    Parameters
    ----------
    found : Contribution
    atlas : Atlas
    ncsnr : float32 (n_voxels,)
    repeats : int64 (n_images,)
        Trials that each image's response averages, for the noise ceiling; see :func:`tested_repeats`.

    Returns
    -------
    DataFrame
        Columns ``roi``, ``file``, ``hemisphere`` (both, lh, rh), ``n_voxels``, ``n_in_branch`` (voxels the branch reads), ``mean`` and
        ``sem`` of the contribution over those voxels (NaN without any; sem NaN below two), ``noise_ceiling`` (mean over the ROI's voxels,
        percent, ``repeats`` averaged). ROIs in the atlas's order; hemispheres without a voxel are left out.

    Raises
    ------
    RequestError
        The three arguments are of different subjects.
    """
    if not len(found.values) == len(atlas.right) == len(ncsnr):
        msg = (
            f"contribution, atlas and ncsnr must have one voxel count; got {len(found.values)}, {len(atlas.right)} and {len(ncsnr)}: take all from one subject"
        )
        raise RequestError(msg)
    ceiling = noise_ceiling(ncsnr, repeats)
    sides = {"both": np.ones(len(atlas.right), np.bool_), "lh": ~atlas.right, "rh": atlas.right}
    rows = [
        (roi.name, roi.file, side, *_summary(found.values, roi.voxels & where, ceiling))
        for roi in atlas.rois
        for side, where in sides.items()
        if (roi.voxels & where).any()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _summary(values: FloatArray, voxels: BoolArray, ceiling: FloatArray) -> tuple[int, int, float, float, float]:
    read = values[voxels & np.isfinite(values)].astype(np.float64)
    mean = float(read.mean()) if len(read) else float("nan")
    sem = float(read.std(ddof=1) / np.sqrt(len(read))) if len(read) > 1 else float("nan")
    return int(voxels.sum()), len(read), mean, sem, float(ceiling[voxels].mean())
