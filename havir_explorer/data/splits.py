"""Test pictures by the rules the literature uses: which of the shared pictures a decoder must not have seen."""

from __future__ import annotations

from functools import reduce

import numpy as np

from havir_explorer.data.betas import TRIALS
from havir_explorer.data.design import SESSIONS, Design
from havir_explorer.errors import RequestError, nearest
from havir_explorer.records import IntArray

SPLITS = ("shared1000", "shared982", "special515")
RELEASED = 37
"""Sessions of subjects 1, 2, 5 and 7 that were public before 2023-08-20: the reason for two sizes of test set."""


def split_pictures(design: Design, subject: str, name: str) -> IntArray:
    """Return the pictures of a split.

    Parameters
    ----------
    design : Design
    subject : str
    name : {'shared1000', 'shared982', 'special515'}
        All pictures that every subject was to see; those of them this subject saw at least once in its first 37 sessions (Brain-Diffuser,
        MindEye); those that all eight subjects saw three times in the sessions they completed (Allen et al. 2022).

    Returns
    -------
    int64 (n,)
        nsd_ids in ascending order. 1000, 982 and 515 in the real design for subjects 1, 2, 5 and 7.

    Raises
    ------
    RequestError
        No such split.
    """
    if name == "shared1000":
        return np.unique(design.shared)
    if name == "shared982":
        return np.intersect1d(design.shared, design.nsd_ids(subject)[: RELEASED * TRIALS])
    if name == "special515":
        thrice = (_shown(design, number, times=3) for number in range(len(design.images)))
        return reduce(np.intersect1d, thrice, np.unique(design.shared))
    msg = f"no split is called {name!r}; {nearest(name, SPLITS)}"
    raise RequestError(msg)


def _shown(design: Design, number: int, times: int) -> IntArray:
    """Return the nsd_ids that the ``number``-th subject saw at least ``times`` in its sessions."""
    ids, count = np.unique(design.nsd_ids(f"subj{number + 1:02d}")[: SESSIONS[number] * TRIALS], return_counts=True)
    return ids[count >= times]
