"""How much each voxel feeds a branch, from the size of its weights."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from scipy import stats

from havir_explorer.errors import RequestError
from havir_explorer.records import BoolArray, Branch, Contribution, FloatArray

_One = TypeVar("_One")
_Other = TypeVar("_Other")


def of_branch(branch: Branch, structural: _One, semantic: _Other) -> _One | _Other:
    """Return what belongs to a branch.

    Raises
    ------
    RequestError
        Unknown branch.
    """
    if branch not in ("structural", "semantic"):
        msg = f"branch must be 'structural' or 'semantic'; got {branch!r}"
        raise RequestError(msg)
    return structural if branch == "structural" else semantic


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
