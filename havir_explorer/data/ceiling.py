"""How much of a voxel's variance any model could explain, from NSD's noise-ceiling signal-to-noise ratio."""

from __future__ import annotations

import numpy as np

from havir_explorer.errors import RequestError
from havir_explorer.records import FloatArray, IntArray


def noise_ceiling(ncsnr: FloatArray, repeats: IntArray) -> FloatArray:
    """Return the noise ceiling of responses averaged over repeats.

    Parameters
    ----------
    ncsnr : float32 (n_voxels,)
    repeats : int (n_images,)
        How many trials each image's response averages, 1 or more; 3 for all, or the mixed counts of a partial data set.

    Returns
    -------
    float32 (n_voxels,)
        Percent of variance, 0 to 100: ``100 n² / (n² + mean(1 / k))``, which for A images of three, B of two and C of one trial is NSD's
        ``(A/3 + B/2 + C) / (A + B + C)`` (Allen et al. 2022, Methods).

    Raises
    ------
    RequestError
        No image, or one without a trial.
    """
    counts = np.atleast_1d(np.asarray(repeats))
    if not counts.size or counts.min() < 1:
        msg = f"a noise ceiling needs images averaged over 1 trial or more; got {'none' if not counts.size else f'one of {counts.min()}'}"
        raise RequestError(msg)
    power = np.square(np.asarray(ncsnr, np.float64))
    return (100 * power / (power + np.mean(1 / counts))).astype(np.float32)
