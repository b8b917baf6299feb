"""The teaching world's experiment: which picture every subject sees on every trial, in the form of NSD's design files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from havir_explorer.records import IntArray

SESSIONS, TRIALS_PER_SESSION, RUNS = 11, 750, 12
SHARED, OWN, REPEATS = 100, 2650, 3
PICTURES = SHARED + OWN
TRIALS = SESSIONS * TRIALS_PER_SESSION
N_STIMULI = 73_000
N_SUBJECTS = 8
_SEED = 8_250
_COCO_BASE = 900_000  # synthetic COCO ids, above the real ones


@dataclass(frozen=True, eq=False)
class Design:
    """The experiment.

    Parameters
    ----------
    ordering : int64 (8250,)
        Picture number 1 to 2750 of every trial, the same for all subjects; every number three times, the first trial is number 1.
    ids : int64 (8, 2750)
        **0-based** NSD id of every picture number; the first 100 columns are shared by all subjects.
    """

    ordering: IntArray
    ids: IntArray

    @property
    def shown(self) -> IntArray:
        """NSD ids the two synthetic subjects see, ascending."""
        return np.unique(self.ids[:2])

    def trials(self, subject: int) -> IntArray:
        """0-based NSD id of every trial of subject 0 to 7."""
        return np.asarray(self.ids[subject, self.ordering - 1])


def design() -> Design:
    """Return the experiment; always the same."""
    rng = np.random.default_rng(_SEED)
    ordering = rng.permutation(np.repeat(np.arange(1, PICTURES + 1), REPEATS))
    first = int(np.flatnonzero(ordering == 1)[0])
    ordering[[0, first]] = ordering[[first, 0]]
    chosen = rng.permutation(N_STIMULI)[: SHARED + N_SUBJECTS * OWN]
    own = chosen[SHARED:].reshape(N_SUBJECTS, OWN)
    ids = np.concatenate([np.tile(np.sort(chosen[:SHARED]), (N_SUBJECTS, 1)), own], axis=1)
    return Design(ordering.astype(np.int64), ids.astype(np.int64))


def coco_ids(nsd_ids: IntArray) -> IntArray:
    """Return the synthetic COCO id of NSD ids."""
    return np.asarray(nsd_ids) + _COCO_BASE


def matlab_variables(plan: Design) -> dict[str, IntArray]:
    """Return the five variables of ``nsd_expdesign.mat``, 1-based as there."""
    ordering, first = plan.ordering, np.zeros((3, SESSIONS), np.int64)
    for session in range(SESSIONS):
        counts = np.bincount(ordering[session * TRIALS_PER_SESSION :][:TRIALS_PER_SESSION])
        first[:, session] = [(counts == k).sum() for k in (1, 2, 3)]
    per_run = np.array([63, 62] * (RUNS // 2))
    pattern = np.zeros((SESSIONS, RUNS, 75), np.int64)
    for run, count in enumerate(per_run):
        pattern[:, run, 4 : 4 + count] = 1  # blanks at the start and end of a run
    return {
        "masterordering": ordering[None],
        "subjectim": plan.ids + 1,
        "sharedix": plan.ids[:1, :SHARED] + 1,
        "basiccnt": first,
        "stimpattern": pattern,
    }


def stimulus_table(plan: Design) -> pd.DataFrame:
    """Return ``nsd_stim_info_merged.csv``: 73,000 rows, NSD's columns; repeats are 1-based trial numbers, 0 where never shown."""
    nsd_id = np.arange(N_STIMULI)
    shared = np.isin(nsd_id, plan.ids[0, :SHARED])
    columns: dict[str, object] = {
        "cocoId": coco_ids(nsd_id),
        "cocoSplit": "train2017",
        "cropBox": "(0.0, 0.0, 0.0, 0.0)",
        "loss": 0.0,
        "nsdId": nsd_id,
        "flagged": False,
        "BOLD5000": False,
        "shared1000": shared,
    }
    order = np.argsort(plan.ordering, kind="stable").reshape(PICTURES, REPEATS) + 1
    repeats = {}
    for subject in range(N_SUBJECTS):
        trial = np.zeros((N_STIMULI, REPEATS), np.int64)
        trial[plan.ids[subject]] = order
        columns[f"subject{subject + 1}"] = (trial[:, 0] > 0).astype(int)
        repeats.update({f"subject{subject + 1}_rep{k}": trial[:, k] for k in range(REPEATS)})
    return pd.DataFrame({**columns, **repeats})


def behaviour(plan: Design, subject: int) -> pd.DataFrame:
    """Return ``responses.tsv``: a row a trial; the recognition answers are those of a fair observer with some forgetting."""
    rng = np.random.default_rng([_SEED, subject])
    trial = np.arange(TRIALS)
    session, within = np.divmod(trial, TRIALS_PER_SESSION)
    ends = np.cumsum([63, 62] * (RUNS // 2))
    run = np.searchsorted(ends, within, side="right")
    previous = pd.Series(trial).groupby(plan.ordering).shift(1)
    old, old_today = previous.notna().to_numpy(), (previous // TRIALS_PER_SESSION).eq(session).to_numpy()
    missed = rng.random(TRIALS) < 0.02
    says_old = np.where(rng.random(TRIALS) < np.where(old, 0.78, 0.15), 1, 0)
    answered = np.where(missed, np.nan, 1.0)
    seen_first = pd.Series(trial).groupby(plan.ordering).transform("min").to_numpy()
    return pd.DataFrame(
        {
            "SUBJECT": subject + 1,
            "SESSION": session + 1,
            "RUN": run + 1,
            "TRIAL": within - np.concatenate([[0], ends])[run] + 1,
            "73KID": plan.trials(subject) + 1,
            "10KID": plan.ordering,
            "TIME": 7.0 * session + (within * 4.0 + run * 60.0) / 86_400.0,
            "ISOLD": old.astype(int),
            "ISCORRECT": answered * (says_old == old),
            "RT": answered * np.round(rng.gamma(9.0, 95.0, TRIALS)),
            "CHANGEMIND": answered * 0,
            "MEMORYRECENT": (trial - previous.to_numpy() - 1),
            "MEMORYFIRST": np.where(old, trial - seen_first - 1, np.nan),
            "ISOLDCURRENT": old_today.astype(int),
            "ISCORRECTCURRENT": answered * (says_old == old_today),
            "TOTAL1": np.where(missed, 0, 1 - says_old),
            "TOTAL2": np.where(missed, 0, says_old),
            "BUTTON": answered * (1 + says_old),
            "MISSINGDATA": 0,
        }
    )
