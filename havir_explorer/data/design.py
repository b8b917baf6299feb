"""Which image was on screen in which trial: NSD's experiment design and stimulus information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from havir_explorer.data import files
from havir_explorer.data.betas import TRIALS
from havir_explorer.errors import DataInvalid
from havir_explorer.records import IntArray

_FOLDER = Path("nsddata", "experiments", "nsd")
DESIGN = _FOLDER / "nsd_expdesign.mat"
STIM_INFO = _FOLDER / "nsd_stim_info_merged.csv"
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
"""Sessions that subjects 1 to 8 completed."""
_REMEDY = "download it from the natural-scenes-dataset bucket (nsddata/experiments/nsd)"


@dataclass(frozen=True, eq=False)
class Design:
    """The experiment's ordering, all 0-based (the file is 1-based).

    Parameters
    ----------
    ordering : int64 (n_trials,)
        Image number of each trial, the same for every subject.
    images : int64 (n_subjects, n_images)
        nsd_id of each subject's image numbers.
    shared : int64 (n_shared,)
        nsd_ids that every subject sees.
    """

    ordering: IntArray
    images: IntArray
    shared: IntArray

    def nsd_ids(self, subject: str) -> IntArray:
        """Return the nsd_id of every trial of the experiment, int64 (n_trials,)."""
        ids: IntArray = self.images[int(subject.removeprefix("subj")) - 1, self.ordering]
        return ids


def read_design(root: Path) -> Design:
    """Read ``nsd_expdesign.mat``.

    Raises
    ------
    DataMissing, DataInvalid
        Absent; unreadable, without one of its arrays, or with numbers that point nowhere.
    """
    file = files.require(root / DESIGN, "experiment design", _REMEDY)
    try:
        content = loadmat(file, variable_names=("masterordering", "subjectim", "sharedix"))
        ordering, images, shared = (np.asarray(content[k]).astype(np.int64) - 1 for k in ("masterordering", "subjectim", "sharedix"))
    except (MatReadError, *files.UNREADABLE) as error:
        raise DataInvalid(files.unreadable("experiment design", file, error)) from error
    if images.ndim != 2 or not ordering.size or ordering.min() < 0 or ordering.max() >= images.shape[1] or images.min() < 0:
        msg = f"experiment design is inconsistent: {ordering.size} trials over subjectim of shape {images.shape} in {file}; download it again"
        raise DataInvalid(msg)
    return Design(ordering.ravel(), images, shared.ravel())


def read_coco_ids(root: Path) -> pd.Series:
    """Read the COCO picture number of every stimulus.

    Returns
    -------
    Series of int64
        Indexed by 0-based nsd_id.

    Raises
    ------
    DataMissing, DataInvalid
    """
    file = files.require(root / STIM_INFO, "stimulus information", _REMEDY)
    try:
        table = pd.read_csv(file, usecols=["nsdId", "cocoId"], dtype=np.int64)
    except (ValueError, OSError) as error:  # includes pandas' own parser errors
        msg = f"stimulus information cannot be read: {file} ({error}); it needs integer columns nsdId and cocoId, so download it again"
        raise DataInvalid(msg) from error
    return table.set_index("nsdId")["cocoId"]


def trial_table(design: Design, coco_ids: pd.Series, subject: str, sessions: Sequence[int]) -> pd.DataFrame:
    """List the trials of the sessions at hand; columns as :meth:`havir_explorer.data.dataset.Dataset.trials`.

    ``repeat`` counts presentations over the whole experiment; ``n_repeats`` only those in ``sessions``.
    """
    ids = design.nsd_ids(subject)
    trial = np.arange(len(ids))
    table = pd.DataFrame({"session": trial // TRIALS + 1, "trial_in_session": trial % TRIALS, "nsd_id": ids}, index=pd.Index(trial, name="trial"))
    table["repeat"] = table.groupby("nsd_id").cumcount()
    table = table[table["session"].isin(sessions)]
    unknown = table.loc[~table["nsd_id"].isin(coco_ids.index), "nsd_id"]
    if len(unknown):
        msg = f"stimulus information does not list nsd_id {unknown.iloc[0]}, shown in trial {unknown.index[0]} of {subject}; download {STIM_INFO.name} again"
        raise DataInvalid(msg)
    return table.assign(
        n_repeats=table.groupby("nsd_id")["nsd_id"].transform("size"),
        shared=table["nsd_id"].isin(design.shared),
        coco_id=coco_ids.reindex(table["nsd_id"]).to_numpy(),
    )
