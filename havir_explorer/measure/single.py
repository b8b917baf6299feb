"""The scores a single reconstruction is shown with, each beside what an unrelated stimulus scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from havir_explorer.errors import RequestError
from havir_explorer.measure.compare import cosine, two_way_one
from havir_explorer.measure.pixels import SMALL, crossed
from havir_explorer.measure.protocols import OWN
from havir_explorer.measure.records import Features, Metric
from havir_explorer.records import FloatArray, Score, UInt8Array

METRICS = {measure.metric.name: measure.metric for measure in OWN.measures}
"""Every score, by name."""


def score(
    pictures: UInt8Array,
    stimulus: UInt8Array,
    features: Features | None,
    others: UInt8Array,
    *,
    other_features: FloatArray | None = None,
) -> list[tuple[Score, ...]]:
    """Score reconstructions of one stimulus, each for itself.

    Parameters
    ----------
    pictures : uint8 (m, H, W, 3)
    stimulus : uint8 (H, W, 3)
    features : callable or None
        The feature network of the CLIP scores; without one there are none.
    others : uint8 (n, H, W, 3)
        The other test stimuli: distractors of the identification, and what chance is measured against. n at least 1.
    other_features : float32 (n, D), optional
        ``features(others)``, when the caller has kept it.

    Returns
    -------
    list of tuple of Score
        For each picture, in the order of :data:`METRICS`, those of CLIP left out without a feature network.

    Raises
    ------
    RequestError
        Sizes differ, or there is no other stimulus.
    """
    if not len(others):
        msg = "scores need at least one other test stimulus to measure chance against; got none"
        raise RequestError(msg)
    some = _some(others)
    tables = crossed(pictures, np.concatenate((stimulus[None], some)))
    found = [_Found(METRICS[name], table[:, 0], table[:, 1:].mean(1), len(some)) for name, table in zip(("PixCorr", "SSIM"), tables, strict=True)]
    if features is not None:
        *ours, true = features(np.concatenate((pictures, stimulus[None])))
        theirs = features(others) if other_features is None else other_features
        mine = np.stack(ours)
        identified = np.array([two_way_one(one, true, theirs) for one in mine])
        alike = np.array([cosine(np.broadcast_to(one, theirs.shape), theirs).mean() for one in mine])
        found.append(_Found(METRICS["CLIP"], identified, np.full(len(mine), 0.5), len(others)))
        found.append(_Found(METRICS["CLIP-cos"], cosine(mine, np.broadcast_to(true, mine.shape)), alike, len(others)))
    return [tuple(row.score(picture) for row in found) for picture in range(len(pictures))]


class _Found(NamedTuple):
    """One metric of all pictures: values and chance (m,), and against how many stimuli."""

    metric: Metric
    values: FloatArray
    chance: FloatArray
    against: int

    def score(self, row: int) -> Score:
        protocol = self.metric.protocol + _against(self.metric, self.against)
        return Score(self.metric.name, float(self.values[row]), float(self.chance[row]), self.metric.higher_is_better, protocol)


def _some(others: UInt8Array) -> UInt8Array:
    """Return those of the stimuli whose pixels are compared, evenly spaced: all small ones, and ten of the published size, which take as long."""
    height, width = others.shape[1:3]
    count = max(10, round(100 * SMALL**2 / max(height * width, SMALL**2)))
    return others[np.linspace(0, len(others) - 1, min(count, len(others))).round().astype(int)]


def _against(metric: Metric, count: int) -> str:
    return f"; chance is the mean over {count} other stimuli" if metric.chance is None else f" ({count})"
