"""The scores a single reconstruction is shown with, each beside what an unrelated stimulus scores."""

from __future__ import annotations

import numpy as np

from havir_explorer.errors import RequestError
from havir_explorer.measure.compare import cosine, two_way_one
from havir_explorer.measure.pixels import SMALL, pixcorr, ssim
from havir_explorer.measure.protocols import OWN
from havir_explorer.measure.records import Features, Metric
from havir_explorer.records import FloatArray, Score, UInt8Array

METRICS = {measure.metric.name: measure.metric for measure in OWN.measures}
"""Every score, by name."""


def score(
    picture: UInt8Array,
    stimulus: UInt8Array,
    features: Features | None,
    others: UInt8Array,
    *,
    other_features: FloatArray | None = None,
) -> tuple[Score, ...]:
    """Score one reconstruction.

    Parameters
    ----------
    picture, stimulus : uint8 (H, W, 3)
        Of one size.
    features : callable or None
        The feature network of the CLIP scores; without one there are none.
    others : uint8 (n, H, W, 3)
        The other test stimuli: distractors of the identification, and what chance is measured against. n at least 1.
    other_features : float32 (n, D), optional
        ``features(others)``, when the caller has kept it.

    Returns
    -------
    tuple of Score
        In the order of :data:`METRICS`, those of CLIP left out without a feature network.

    Raises
    ------
    RequestError
        Sizes differ, or there is no other stimulus.
    """
    if not len(others):
        msg = "scores need at least one other test stimulus to measure chance against; got none"
        raise RequestError(msg)
    pair, some = stimulus[None], _some(others)
    values = {
        "PixCorr": (float(pixcorr(picture[None], pair)[0]), float(pixcorr(picture[None], some).mean())),
        "SSIM": (float(ssim(picture[None], pair)[0]), float(ssim(picture[None], some).mean())),
    }
    counts = dict.fromkeys(values, len(some))
    if features is not None:
        mine, true = features(np.stack((picture, stimulus)))
        theirs = features(others) if other_features is None else other_features
        values["CLIP"] = (two_way_one(mine, true, theirs), 0.5)
        values["CLIP-cos"] = (float(cosine(mine[None], true[None])[0]), float(cosine(np.broadcast_to(mine, theirs.shape), theirs).mean()))
    counts |= dict.fromkeys(set(values) - set(counts), len(others))
    return tuple(Score(m.name, *values[m.name], m.higher_is_better, m.protocol + _against(m, counts[m.name])) for m in METRICS.values() if m.name in values)


def _some(others: UInt8Array) -> UInt8Array:
    """Return those of the stimuli whose pixels are compared, evenly spaced: all small ones, and ten of the published size, which take as long."""
    height, width = others.shape[1:3]
    count = max(10, round(100 * SMALL**2 / max(height * width, SMALL**2)))
    return others[np.linspace(0, len(others) - 1, min(count, len(others))).round().astype(int)]


def _against(metric: Metric, count: int) -> str:
    return f"; chance is the mean over {count} other stimuli" if metric.chance is None else f" ({count})"
