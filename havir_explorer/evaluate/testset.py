"""The images a decoder is tested on, and the responses to them."""

from __future__ import annotations

import dataclasses

import numpy as np

from havir_explorer.data.dataset import Dataset
from havir_explorer.errors import RequestError
from havir_explorer.records import FloatArray, IntArray, Repeats, UInt8Array


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
        As the data set has them.
    """

    nsd_ids: IntArray
    trials: IntArray
    stimuli: UInt8Array


def collect(dataset: Dataset, subject: str, limit: int | None, split: str = "") -> TestSet:
    """Return the test images a subject saw, in ascending order of their ids.

    Parameters
    ----------
    dataset : Dataset
    subject : str
    limit : int or None
        Only the first so many, at least 2; all when None.
    split : str
        ``shared1000``, ``shared982`` or ``special515`` (:mod:`havir_explorer.data.splits`); every shared image when empty.

    Raises
    ------
    RequestError
        No such split; ``limit`` or the number of images is below 2.
    """
    trials = dataset.trials(subject)
    tested = trials["nsd_id"].isin(dataset.split(subject, split)) if split else trials["shared"]
    tested = trials[tested.to_numpy(dtype=bool)]
    ids, first = np.unique(tested["nsd_id"].to_numpy(dtype=np.int64), return_index=True)
    if len(ids[:limit]) < 2 or (limit is not None and limit < 2):
        which = f"images of {split}" if split else "shared images"
        asked = "" if limit is None else f"limit is {limit} and "
        msg = f"an evaluation needs at least 2 test images; {asked}{subject} saw {len(ids)} {which} in {dataset.name}"
        raise RequestError(msg)
    ids, first = ids[:limit], tested.index.to_numpy(dtype=np.int64)[first[:limit]]
    return TestSet(ids, first, dataset.stimuli(ids))


def training_images(dataset: Dataset, subject: str) -> IntArray:
    """Return the images the subject saw that are no test image of any split, int64 (n,), ascending."""
    trials = dataset.trials(subject)
    return np.unique(trials.loc[~trials["shared"].to_numpy(dtype=bool), "nsd_id"].to_numpy(dtype=np.int64))


def mean_responses(dataset: Dataset, subject: str, nsd_ids: IntArray, repeats: Repeats = "mean") -> FloatArray:
    """Return the response to each image, float32 (n, n_voxels): averaged over all its presentations, or that of the first alone."""
    trials = dataset.trials(subject)
    shown, index = trials["nsd_id"].to_numpy(dtype=np.int64), trials.index.to_numpy(dtype=np.int64)
    groups = [index[shown == nsd_id][: 1 if repeats == "single" else None] for nsd_id in nsd_ids]
    return np.stack([dataset.responses(subject, group).mean(0) for group in groups])
