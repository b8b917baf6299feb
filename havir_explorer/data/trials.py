"""What readers share about trials: the table of them, and the check of those asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from havir_explorer.data.betas import TRIALS
from havir_explorer.errors import RequestError
from havir_explorer.records import IntArray


def table_of(nsd_ids: IntArray, shared: IntArray) -> pd.DataFrame:
    """List trials that follow each other from the first; columns as :meth:`havir_explorer.data.dataset.Dataset.trials`, coco_id unknown (-1)."""
    trial = np.arange(len(nsd_ids))
    table = pd.DataFrame({"session": trial // TRIALS + 1, "trial_in_session": trial % TRIALS, "nsd_id": nsd_ids}, index=pd.Index(trial, name="trial"))
    same = table.groupby("nsd_id")["nsd_id"]
    return table.assign(repeat=same.cumcount(), n_repeats=same.transform("size"), shared=np.isin(nsd_ids, shared), coco_id=-1)


def checked_trials(trials: IntArray, known: pd.Index, subject: str, root: Path) -> IntArray:
    """Return the trials asked for as int64 (n,).

    Raises
    ------
    RequestError
        They are no whole numbers in one dimension, or lie past the last trial at hand.
    """
    wanted = np.atleast_1d(np.asarray(trials))
    if wanted.ndim != 1 or (wanted.size and not np.issubdtype(wanted.dtype, np.integer)):
        msg = f"trials must be whole numbers in one dimension; got {wanted.dtype} of shape {wanted.shape}"
        raise RequestError(msg)
    outside = wanted[(wanted < 0) | (wanted > known[-1])]
    if len(outside):
        sessions = len(np.unique(known.to_numpy() // TRIALS))
        msg = f"trial {outside[0]} of {subject} is out of range: the {sessions} session{'s' * (sessions > 1)} in {root} end with trial {known[-1]}"
        raise RequestError(msg)
    return wanted.astype(np.int64)
