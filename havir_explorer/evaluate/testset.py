"""The images a decoder is tested on, and the responses to them."""

from __future__ import annotations

import dataclasses

import numpy as np

from havir_explorer.data.dataset import Dataset
from havir_explorer.errors import RequestError
from havir_explorer.pipeline import at_side
from havir_explorer.records import FloatArray, IntArray, UInt8Array


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
    """Test images as they were shown.

    Parameters
    ----------
    nsd_ids : int64 (n,)
        In ascending order.
    trials : int64 (n,)
        The first trial of each.
    stimuli : uint8 (n, H, W, 3)
        At the pictures' size.
    """

    nsd_ids: IntArray
    trials: IntArray
    stimuli: UInt8Array


def collect(dataset: Dataset, subject: str, limit: int, side: int) -> TestSet:
    """Return the first ``limit`` shared images a subject saw.

    Raises
    ------
    RequestError
        ``limit`` or the number of shared images is below 2.
    """
    trials = dataset.trials(subject)
    shared = trials[trials["shared"].to_numpy(dtype=bool)]
    ids, first = np.unique(shared["nsd_id"].to_numpy(dtype=np.int64), return_index=True)
    if len(ids[: max(limit, 0)]) < 2:
        msg = f"an evaluation needs at least 2 shared test images; limit is {limit} and {subject} saw {len(ids)} in {dataset.name}"
        raise RequestError(msg)
    ids, first = ids[:limit], shared.index.to_numpy(dtype=np.int64)[first[:limit]]
    return TestSet(ids, first, at_side(dataset.stimuli(ids), side))


def mean_responses(dataset: Dataset, subject: str, nsd_ids: IntArray) -> FloatArray:
    """Return the response to each image, float32 (n, n_voxels), averaged over all its presentations."""
    trials = dataset.trials(subject)
    shown, index = trials["nsd_id"].to_numpy(dtype=np.int64), trials.index.to_numpy(dtype=np.int64)
    return np.stack([dataset.responses(subject, index[shown == nsd_id]).mean(0) for nsd_id in nsd_ids])
