"""The mathematics of the scores: arrays to one number a pair.

As MindEye2's and Brain-Diffuser's evaluations have it: two-way identification column-wise (for a fixed reconstruction the distractors are
other stimuli), ties counted as misses; distances are one minus Pearson's r.
"""

from __future__ import annotations

import numpy as np

from havir_explorer.errors import RequestError
from havir_explorer.records import FloatArray

BLOCK = 2**27
"""Bytes of float64 features that are centred at once: AlexNet's 184,512 for 982 pictures and stimuli would be 2.9 GB."""

_FLAT = 1e-9
"""Length below which a row is rounding residue, which must not be blown up to a direction."""


def cosine(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the cosine of each pair of rows.

    Parameters
    ----------
    left, right : float32 (n, D)

    Returns
    -------
    float32 (n,)
        In [-1, 1]; 0 where a row is all zeros.
    """
    return _dot(_unit(left), _unit(right))


def two_way(pictures: FloatArray, stimuli: FloatArray) -> FloatArray:
    """Return how often each reconstruction correlates better with its stimulus than with another reconstruction's stimulus.

    Parameters
    ----------
    pictures, stimuli : float32 (n, D)
        Features; row i of one belongs to row i of the other. n at least 2.

    Returns
    -------
    float32 (n,)
        In [0, 1], chance 0.5; a tie is a miss.

    Raises
    ------
    RequestError
        Fewer than two pairs.
    """
    if len(pictures) < 2:
        msg = f"two-way identification needs at least 2 pictures to tell apart; got {len(pictures)}"
        raise RequestError(msg)
    similar = _every_r(stimuli, pictures)
    beaten = similar < np.diag(similar)
    np.fill_diagonal(beaten, val=False)
    shares: FloatArray = (beaten.sum(0) / (len(pictures) - 1)).astype(np.float32)
    return shares


def _every_r(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return Pearson's r of every row of one with every row of the other, float64 (n, m); some features at a time, each standardised once."""
    width = max(1, BLOCK // (8 * (len(left) + len(right))))
    parts = [slice(start, start + width) for start in range(0, left.shape[1], width)]
    means = [rows.mean(1, keepdims=True, dtype=np.float64) for rows in (left, right)]
    similar = np.zeros((len(left), len(right)))
    squares = [np.zeros((len(rows), 1)) for rows in (left, right)]
    for part in parts:
        one, other = (rows[:, part] - mean for rows, mean in zip((left, right), means, strict=True))
        similar += one @ other.T
        for total, centred in zip(squares, (one, other), strict=True):
            np.add(total, np.square(centred, out=centred).sum(1, keepdims=True), out=total)
    one, other = (np.where(total > _FLAT**2, np.sqrt(total), np.inf) for total in squares)
    return similar / (one @ other.T)


def two_way_one(picture: FloatArray, stimulus: FloatArray, others: FloatArray) -> float:
    """Return the share of other stimuli that one reconstruction resembles less than its own stimulus.

    Parameters
    ----------
    picture, stimulus : float32 (D,)
    others : float32 (n, D)
        Features of the other test stimuli.

    Returns
    -------
    float
        In [0, 1], chance 0.5; a tie is a miss.
    """
    similar = _unit(_centred(np.concatenate((stimulus[None], others)))) @ _unit(_centred(picture[None]))[0]
    return float((similar[1:] < similar[0]).mean())


def correlation_distance(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return one minus Pearson's r of each pair of rows, as SciPy's ``correlation``.

    Parameters
    ----------
    left, right : float32 (n, D)

    Returns
    -------
    float32 (n,)
        In [0, 2], 0 for the same features; 1 where a row is one flat value.
    """
    return np.float32(1) - paired_r(left, right)


def paired_r(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return Pearson's r of each pair of rows, float32 (n,) of (n, D); 0 where a row is one flat value."""
    return _dot(_unit(_centred(left)), _unit(_centred(right)))


def crossed_r(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return Pearson's r of every row of one (m, D) with every row of the other (n, D), float32 (m, n)."""
    product: FloatArray = (_unit(_centred(left)) @ _unit(_centred(right)).T).astype(np.float32)
    return product


def _dot(left: FloatArray, right: FloatArray) -> FloatArray:
    product: FloatArray = np.einsum("nd,nd->n", left, right).astype(np.float32)
    return product


def _centred(rows: FloatArray) -> FloatArray:
    wide: FloatArray = rows.astype(np.float64) - rows.mean(1, keepdims=True, dtype=np.float64)
    return wide


def _unit(rows: FloatArray) -> FloatArray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > _FLAT)
    return unit
