"""What the subjects answered: NSD's continuous recognition task, "have you seen this picture before?"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from havir_explorer.data import files
from havir_explorer.data.betas import TRIALS
from havir_explorer.errors import DataInvalid
from havir_explorer.records import IntArray

_COLUMNS = ["SUBJECT", "SESSION", "RUN", "73KID", "ISOLD", "ISCORRECT", "RT", "MISSINGDATA"]


def read_behaviour(root: Path, subject: str, nsd_ids: IntArray) -> pd.DataFrame:
    """Read ``responses.tsv``.

    Parameters
    ----------
    root : Path
    subject : str
    nsd_ids : int64 (n_trials,)
        Picture of every trial of the experiment, by the design.

    Returns
    -------
    DataFrame
        Index: 0-based trial of the experiment. Columns run (1-based, int64), is_old (bool: shown before), is_correct (float64: 1, 0, or NaN without a
        button press), reaction_time (float64, milliseconds, NaN likewise), missing (bool: the recording of the button failed).

    Raises
    ------
    DataMissing, DataInvalid
        Absent; not NSD's table; of another subject.
    """
    file = files.require(root / "nsddata" / "ppdata" / subject / "behav" / "responses.tsv", f"behaviour of {subject}", "download it; it is optional")
    try:
        table = pd.read_csv(file, sep="\t", usecols=_COLUMNS)
        trial = (table["SESSION"].astype(np.int64) - 1) * TRIALS + table.groupby("SESSION").cumcount()
        numbers = table[["SUBJECT", "RUN", "73KID"]].astype(np.int64)
        answers = table[["ISCORRECT", "RT"]].astype(np.float64).set_axis(["is_correct", "reaction_time"], axis=1)
    except (ValueError, OSError) as error:
        msg = f"behaviour of {subject} cannot be read: {file} ({error}); it needs the columns {', '.join(_COLUMNS)}, so download it again"
        raise DataInvalid(msg) from error
    _check(file, subject, trial, numbers, nsd_ids)
    found = answers.assign(run=numbers["RUN"], is_old=table["ISOLD"] == 1, missing=table["MISSINGDATA"] == 1)
    return found[["run", "is_old", "is_correct", "reaction_time", "missing"]].set_axis(pd.Index(trial, name="trial"))


def _check(file: Path, subject: str, trial: pd.Series, numbers: pd.DataFrame, nsd_ids: IntArray) -> None:
    """Make sure that the pictures are those of this subject's design."""
    known = trial.between(0, len(nsd_ids) - 1)
    shown = nsd_ids[trial[known]] + 1
    wrong = (numbers["73KID"][known] != shown) | (numbers["SUBJECT"][known] != int(subject.removeprefix("subj")))
    if not known.all() or wrong.any():
        at = int(trial[known][wrong].iloc[0]) if wrong.any() else int(trial[~known].iloc[0])
        msg = f"behaviour of {subject} does not follow its design: trial {at} differs in {file}; it belongs to another subject, so download it again"
        raise DataInvalid(msg)
