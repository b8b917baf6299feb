"""A subject's responses under a convention: values from the prepared store or the cache, z-scored by the statistics the convention names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import sparse

from havir_explorer.data import betas, prepared, responses
from havir_explorer.data.conventions import Convention
from havir_explorer.data.dataset import Geometry
from havir_explorer.errors import DataInvalid
from havir_explorer.records import BoolArray, FloatArray, IntArray


def available(root: Path, subject: str, convention: Convention) -> tuple[int, ...]:
    """Return the sessions at hand, in NSD's files or in the prepared store, that a convention reads.

    Raises
    ------
    DataInvalid
        The store's record is damaged.
    """
    here = {*betas.sessions(root, subject, convention.preparation), *prepared.sessions(root, subject, convention.preparation)}
    return tuple(sorted(number for number in here if number <= convention.last_session))


def image_moments(values: Sequence[betas.Stored], nsd_ids: IntArray, block: int = 256) -> FloatArray:
    """Return mean and standard deviation over pictures of the average response to each.

    Parameters
    ----------
    values : sequence of int16 or float32 (750, n_voxels)
        One a session.
    nsd_ids : int64 (n_sessions, 750)
        Picture of each trial; -1 for trials that do not count.
    block : int
        Voxels at a time: all trials of one block are in memory, in float64 (60 MB for 40 sessions).

    Returns
    -------
    float32 (2, n_voxels)
        In percent signal change; standard deviation with ddof 1.

    Raises
    ------
    DataInvalid
        Fewer than two pictures count.
    """
    pictures, row = np.unique(nsd_ids, return_inverse=True)
    first = int(pictures[0] == -1)
    if len(pictures) - first < 2:
        msg = f"statistics over training pictures need two or more; the sessions at hand show {len(pictures) - first}: get more sessions"
        raise DataInvalid(msg)
    shown = sparse.csr_array((np.ones(nsd_ids.size), (row.ravel(), np.arange(nsd_ids.size))))[first:]
    counts = shown.sum(axis=1)[:, None]
    result = np.empty((2, values[0].shape[1]), np.float32)
    for start in range(0, result.shape[1], block):
        trials = np.concatenate([betas.whole_units(stored[:, start : start + block]) for stored in values])
        means = (shown @ trials) / counts
        result[:, start : start + block] = means.mean(axis=0) / betas.PERCENT, means.std(axis=0, ddof=1) / betas.PERCENT
    return result


@dataclass(eq=False)
class SubjectResponses:
    """A subject's responses, read session by session when first asked for.

    Parameters
    ----------
    root, cache : Path
    subject : str
    convention : Convention
    geometry : Geometry
    nsd_ids : int64 (n_trials,)
        Picture of every trial of the experiment.
    training : bool (n_trials,)
        True where the picture is not shared.
    """

    root: Path
    cache: Path
    subject: str
    convention: Convention
    geometry: Geometry
    nsd_ids: IntArray
    training: BoolArray
    _opened: dict[int, betas.Session] = field(default_factory=dict, init=False)

    def read(self, trials: IntArray) -> FloatArray:
        """Return z-scored responses, float32 (n, n_voxels), of trials known to be at hand; raises as :meth:`session`."""
        session = trials // betas.TRIALS + 1
        result = np.empty((len(trials), len(self.geometry.flat_index)), np.float32)
        for number in np.unique(session).tolist():
            rows = np.flatnonzero(session == number)
            result[rows] = self.session(number).zscored(trials[rows] % betas.TRIALS)
        return result

    def session(self, number: int) -> betas.Session:
        """Return one session.

        Raises
        ------
        DataMissing, DataInvalid
            Its file is absent, damaged or of another grid; the prepared store is damaged or of other voxels.
        """
        if number not in self._opened:
            values, statistics = self.values(number)
            known = statistics if statistics is not None else self.moments(number, values)
            self._opened[number] = betas.scored(values, self._spanning if known is None else known)
        return self._opened[number]

    def values(self, number: int) -> tuple[betas.Stored, FloatArray | None]:
        """Return a session's values (750, n_voxels), and its moments where they are known under this convention."""
        name = self.convention.preparation
        if self._store is not None and number in self._store.sessions:
            values, found = prepared.read_session(self.root, self._store, number)
            return values, found if self._store.convention == self.convention.name else None
        raw, whole = responses.load(self.root, self.subject, number, self.geometry.flat_index, self.geometry.shape, self.cache, name)
        return raw, whole if self.convention.statistics == "session" else None

    @cached_property
    def _store(self) -> prepared.Record | None:
        record = prepared.read_record(self.root, self.subject, self.convention.preparation)
        if record is not None:
            prepared.check_voxels(self.root, record, self.geometry.flat_index, self.geometry.shape)
        return record

    def moments(self, number: int, values: betas.Stored) -> FloatArray | None:
        """Return mean and deviation of one session's values under the convention; None where its statistics span the sessions."""
        if self.convention.statistics == "training images":
            return None
        first = (number - 1) * betas.TRIALS
        trials = self.training[first : first + betas.TRIALS] if self.convention.statistics == "training trials" else None
        return betas.moments(values, trials=trials)

    @cached_property
    def _spanning(self) -> FloatArray:
        """Statistics over every session at hand."""
        numbers = available(self.root, self.subject, self.convention)
        store = self._store
        if store is not None and store.moments and (store.convention, tuple(store.sessions)) == (self.convention.name, numbers):
            return prepared.read_moments(self.root, store)
        return spanning_moments([self.values(number)[0] for number in numbers], numbers, self.nsd_ids, self.training)


def spanning_moments(values: Sequence[betas.Stored], numbers: Sequence[int], nsd_ids: IntArray, training: BoolArray) -> FloatArray:
    """Return :func:`image_moments` of the sessions ``numbers`` over the pictures that are not shared."""
    counted = np.where(training, nsd_ids, -1)
    ids = np.stack([counted[(number - 1) * betas.TRIALS : number * betas.TRIALS] for number in numbers])
    return image_moments(values, ids)
