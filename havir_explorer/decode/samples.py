"""Responses arranged for training: every picture with its repeats, mixed afresh each time it is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from havir_explorer.data.dataset import Dataset
from havir_explorer.errors import DataInvalid
from havir_explorer.records import BoolArray, IntArray

MIXED, AVERAGED = 0.5, 0.3
"""Probability that a sample is a random convex combination of the repeats, and that it is their mean; otherwise it is one repeat (MindEye)."""
_AT_ONCE = 1500
"""Trials read together."""


@dataclass(frozen=True, eq=False)
class Samples:
    """A subject's training pictures and their repeats.

    Parameters
    ----------
    dataset : Dataset
    subject : str
    nsd_ids : int64 (n,)
        Ascending.
    trials : int64 (n_trials,)
        Every trial of these pictures.
    repeats : int64 (n, most repeats)
        Places in ``trials``; padded with the picture's first.
    counts : int64 (n,)
        How many of the repeats are real.
    """

    dataset: Dataset
    subject: str
    nsd_ids: IntArray
    trials: IntArray
    repeats: Tensor
    counts: Tensor

    def columns(self, voxels: BoolArray) -> Tensor:
        """Return the responses of some voxels, float32 (n_trials, n); all voxels of a few trials at a time are in memory beside them."""
        columns = torch.empty(len(self.trials), int(voxels.sum()))
        for start in range(0, len(self.trials), _AT_ONCE):
            some = self.trials[start : start + _AT_ONCE]
            columns[start : start + len(some)] = torch.from_numpy(self.dataset.responses(self.subject, some)[:, voxels])
        return columns

    def mix(self, weights: Tensor, pictures: Tensor, columns: Tensor) -> Tensor:
        """Return the weighted repeats of ``pictures``, float32 (B, n), from what :meth:`columns` gave."""
        return torch.einsum("br,brv->bv", weights, columns[self.repeats[pictures]])

    def means(self, pictures: Tensor) -> Tensor:
        """Return the weights (B, most repeats) of plain averages over the real repeats."""
        real = torch.arange(self.repeats.shape[1]) < self.counts[pictures, None]
        return real / self.counts[pictures, None]

    def averages(self, voxels: BoolArray) -> Tensor:
        """Return every picture's mean response in some voxels, float32 (n, n_voxels chosen); a few pictures' trials at a time are in memory beside them."""
        averages = torch.empty(len(self.nsd_ids), int(voxels.sum()))
        for pictures in torch.split(torch.arange(len(self.nsd_ids)), _AT_ONCE // self.repeats.shape[1]):
            places, where = torch.unique(self.repeats[pictures], return_inverse=True)
            read = torch.from_numpy(self.dataset.responses(self.subject, self.trials[places.numpy()])[:, voxels])
            averages[pictures] = torch.einsum("br,brv->bv", self.means(pictures), read[where])
        return averages

    def random_weights(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Return weights (B, most repeats), each row summing to 1: mixed, averaged or single, as the module's probabilities say."""
        batch, most = len(pictures), self.repeats.shape[1]
        kind = torch.rand(batch, 1, generator=generator)
        convex = torch.rand(batch, most, generator=generator) * (torch.arange(most) < self.counts[pictures, None])
        single = torch.rand(batch, generator=generator).mul(self.counts[pictures]).long()
        one = torch.nn.functional.one_hot(single, most).float()
        averaged = torch.where(kind < MIXED + AVERAGED, self.means(pictures), one)
        return torch.where(kind < MIXED, convex / convex.sum(1, keepdim=True).clamp_min(1e-6), averaged)


def collect(dataset: Dataset, subject: str, nsd_ids: IntArray, sessions: int = 0) -> Samples:
    """Find all trials of the training pictures among ``nsd_ids``; shared (test) pictures are left out.

    Parameters
    ----------
    dataset : Dataset
    subject : str
    nsd_ids : int64 (n,)
        Pictures that have targets.
    sessions : int
        Of the first so many sessions alone; 0 for all.

    Returns
    -------
    Samples

    Raises
    ------
    DataInvalid
        Fewer than 20 training pictures.
    """
    trials = dataset.trials(subject)
    if sessions:
        trials = trials[trials["session"] <= sessions]
    chosen = trials[~trials["shared"].to_numpy(dtype=bool) & trials["nsd_id"].isin(nsd_ids).to_numpy()]
    ids, inverse, counts = np.unique(chosen["nsd_id"].to_numpy(dtype=np.int64), return_inverse=True, return_counts=True)
    if len(ids) < 20:
        msg = f"a decoder of {subject} needs at least 20 pictures that are not shared test pictures; {dataset.name} has {len(ids)} with targets: add sessions"
        raise DataInvalid(msg)
    order = np.argsort(inverse, kind="stable")
    real = np.arange(counts.max()) < counts[:, None]
    repeats = np.empty(real.shape, dtype=np.int64)
    repeats[real] = order
    repeats = np.where(real, repeats, repeats[:, :1])
    return Samples(dataset, subject, ids, chosen.index.to_numpy(dtype=np.int64), torch.from_numpy(repeats), torch.from_numpy(counts))


def held_count(count: int, share: float) -> int:
    """Return how many of ``count`` pictures are held out: at least 5."""
    return max(5, round(count * share))


def hold_out(count: int, share: float, generator: torch.Generator) -> BoolArray:
    """Return a mask of :func:`held_count` randomly held-out pictures among ``count``."""
    held: BoolArray = np.zeros(count, dtype=np.bool_)
    held[torch.randperm(count, generator=generator)[: held_count(count, share)].numpy()] = True
    return held
