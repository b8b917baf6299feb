"""A condition's pictures against the stimuli: one row an image, one column a metric."""

from __future__ import annotations

import pandas as pd

from havir_explorer import measure
from havir_explorer.records import UInt8Array


def score(pictures: UInt8Array, stimuli: UInt8Array, tower: measure.Tower) -> pd.DataFrame:
    """Score every picture of one condition.

    Parameters
    ----------
    pictures, stimuli : uint8 (n, H, W, 3)
        Row i of one belongs to row i of the other; n at least 2, all test images together: identification compares each with all others.
    tower : Tower
        The feature network of the CLIP scores.

    Returns
    -------
    DataFrame
        n rows; a column a metric of :data:`~havir_explorer.measure.METRICS`.

    Raises
    ------
    RequestError
        Sizes differ, or there are fewer than two.
    """
    found, true = tower.features(pictures), tower.features(stimuli)
    return pd.DataFrame(
        {
            "PixCorr": measure.pixcorr(pictures, stimuli),
            "SSIM": measure.ssim(pictures, stimuli),
            "CLIP": measure.two_way(found, true),
            "CLIP-cos": measure.cosine(found, true),
        }
    )
