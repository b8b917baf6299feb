"""Ridge regression of many targets on one kernel, each with its own regularisation, by himalaya's solvers (Dupré la Tour et al. 2022, NeuroImage)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from himalaya.backend import get_backend, set_backend
from himalaya.kernel_ridge import solve_kernel_ridge_cv_eigenvalues
from himalaya.scoring import l2_neg_loss
from torch import Tensor

from havir_explorer.records import IntArray

GRID = torch.logspace(-2, 3, 11)
"""Regularisations tried, in units of the mean squared length of a response; Brain-Diffuser's 6e4 at 15,724 z-scored voxels is about 4."""
_SOLVING = Lock()  # himalaya's backend is one for the whole process

Split = tuple[IntArray, IntArray]


class Ridge(NamedTuple):
    """What came of a fit.

    Parameters
    ----------
    alphas : float32 (n_targets,)
        The regularisation chosen for each target.
    dual : float32 (n, n_targets)
        ``X.T @ dual`` are the weights.
    held_out : float32 (n, n_targets)
        What each row's prediction was when its fold was left out.
    """

    alphas: Tensor
    dual: Tensor
    held_out: Tensor

    def explained(self, targets: Tensor) -> Tensor:
        """Return the share of each target's variance that the held-out predictions explain, float32 (n_targets,), at most 1."""
        return 1 - (targets - self.held_out).square().sum(0) / targets.square().sum(0)


def folds(count: int, number: int, seed: int) -> list[Split]:
    """Return ``number`` pairs of training and held-out rows; every row is held out once."""
    parts = np.array_split(np.random.default_rng(seed).permutation(count), number)
    return [(np.sort(np.concatenate(parts[:place] + parts[place + 1 :])), np.sort(part)) for place, part in enumerate(parts)]


def solve(kernel: Tensor, targets: Tensor, splits: Sequence[Split], *, device: str = "cpu", tick: Callable[[float], None] | None = None) -> Ridge:
    """Choose each target's regularisation by cross-validation and fit it to all rows.

    Parameters
    ----------
    kernel : float32 (n, n)
        ``X @ X.T`` of responses whose columns have mean 0.
    targets : float32 (n, n_targets)
        Columns of mean 0, at least one.
    splits : sequence of (training rows, held-out rows)
    device : str
        Where himalaya computes.
    tick : callable, optional
        Called with the share of the cross-validation done in (0, 1]; raising stops the fit.

    Returns
    -------
    Ridge
        In the CPU's memory. On the way about five kernels of memory, and one ``targets`` for each of :data:`GRID`.
    """
    alphas = GRID * kernel.diagonal().mean()
    kept: list[Tensor] = []

    def score(true: Tensor, predicted: Tensor) -> Tensor:
        kept.append(predicted[0].cpu())
        if tick:
            tick(len(kept) / (len(splits) * len(alphas)))
        return l2_neg_loss(true, predicted)

    with _backend(device):
        best, dual, _ = solve_kernel_ridge_cv_eigenvalues(kernel, targets, alphas=alphas, cv=list(splits), score_func=score, n_alphas_batch=1)
    chosen = torch.argmin((alphas[:, None].log() - best.cpu().log()).abs(), 0)
    held_out = torch.zeros_like(targets)
    for place, (_, rows) in enumerate(splits):
        every = torch.stack(kept[place * len(alphas) : (place + 1) * len(alphas)])
        held_out[torch.from_numpy(rows)] = every.gather(0, chosen.expand(1, len(rows), -1))[0]
    return Ridge(alphas[chosen], dual, held_out)


@contextmanager
def _backend(device: str) -> Iterator[None]:
    with _SOLVING:
        before = get_backend()
        set_backend("torch_cuda" if device.startswith("cuda") else "torch")
        try:
            yield
        finally:
            set_backend(before)
