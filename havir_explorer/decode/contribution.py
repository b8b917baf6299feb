"""How much each voxel feeds a branch, from the size of its weights."""

from __future__ import annotations

import numpy as np
from scipy import stats

from havir_explorer.records import BoolArray, Branch, Contribution, FloatArray


def percentiles(branch: Branch, sizes: FloatArray, mask: BoolArray) -> Contribution:
    """Rank the voxels of a branch by their weights.

    Parameters
    ----------
    branch : {'structural', 'semantic'}
    sizes : float (n,)
        Of the weights of the branch's voxels, in any monotone unit.
    mask : bool (n_voxels,)
        Which voxels those are.

    Returns
    -------
    Contribution
        In [0, 1] (ties share their mean rank), NaN outside the mask.
    """
    values = np.full(len(mask), np.nan, dtype=np.float32)
    values[mask] = (stats.rankdata(sizes) - 1) / max(len(sizes) - 1, 1)
    return Contribution(branch, "weights", values)
