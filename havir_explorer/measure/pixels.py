"""What is compared as pixels: Pearson's r and SSIM."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray

from havir_explorer.errors import RequestError
from havir_explorer.measure.compare import paired_r
from havir_explorer.measure.resize import interpolated
from havir_explorer.records import FloatArray, UInt8Array

SMALL = 128
"""Pictures up to this side are compared at their own size; larger ones as the field does, at 256 and then 425 pixels."""
_WINDOW = {"sigma": 1.5, "truncate": 3.5}
_BORDER = 5
_C1, _C2 = 0.01**2, 0.03**2
"""SSIM's Gaussian window of 11 pixels, the border in which it reaches outside, and constants, for a data range of 1."""
_TOGETHER = 64
"""Pairs compared at once."""


def pixcorr(pictures: UInt8Array, stimuli: UInt8Array) -> FloatArray:
    """Return Pearson's r of the pixels of each pair.

    Parameters
    ----------
    pictures, stimuli : uint8 (n, H, W, 3)
        A single picture is compared with every stimulus.

    Returns
    -------
    float32 (n,)
        In [-1, 1]; 0 where a picture is one flat value, which correlates with nothing.
    """
    return pixel_r(*_standard(pictures, stimuli))


def ssim(pictures: UInt8Array, stimuli: UInt8Array) -> FloatArray:
    """Return the structural similarity of each pair in grey (Wang et al. 2004, equation 13), as scikit-image computes it.

    Plain two-dimensional SSIM as MindEye's; Brain-Diffuser's pinned scikit-image averages one-dimensional SSIMs of columns instead, so its
    numbers are higher and do not compare.

    Parameters
    ----------
    pictures, stimuli : uint8 (n, H, W, 3)
        H and W at least 11; a single picture is compared with every stimulus.

    Returns
    -------
    float32 (n,)
        In [-1, 1].
    """
    return grey_ssim(*_standard(pictures, stimuli))


def pixel_r(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return Pearson's r over all RGB values of each pair, float32 (n,), of pictures (n, H, W, 3); 0 where one is flat."""
    return paired_r(left.reshape(len(left), -1), right.reshape(len(right), -1))


def grey_ssim(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the two-dimensional SSIM of each pair in grey, float32 (n,), of pictures (n, H, W, 3) in [0, 1]."""
    return _ssim(left, right, columns=False)


def column_ssim(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the mean over columns of the one-dimensional SSIM of each pair in grey, float32 (n,), of pictures (n, H, W, 3) in [0, 1].

    What scikit-image 0.17, which Brain-Diffuser pins, makes of ``multichannel=True`` with a grey picture: its columns are taken for channels.
    """
    return _ssim(left, right, columns=True)


def _ssim(left: FloatArray, right: FloatArray, *, columns: bool) -> FloatArray:
    one, others = rgb2gray(left), rgb2gray(right)
    parts = [slice(start, start + _TOGETHER) for start in range(0, len(others), _TOGETHER)]
    return np.concatenate([_ssim_of_grey(one if len(one) == 1 else one[part], others[part], columns=columns) for part in parts])


def _ssim_of_grey(x: FloatArray, y: FloatArray, *, columns: bool) -> FloatArray:
    """Return SSIM, float32 (n,), of grey pictures (n or 1, H, W) and (n, H, W); ``columns`` are taken one by one."""

    def mean(values: FloatArray) -> FloatArray:
        over = (1,) if columns else (1, 2)
        inside: FloatArray = gaussian_filter(values, axes=over, **_WINDOW)[:, _BORDER:-_BORDER]
        return inside if columns else inside[:, :, _BORDER:-_BORDER]

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    similar = (2 * mx * my + _C1) * (2 * vxy + _C2) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    found: FloatArray = similar.mean((1, 2), dtype=np.float64).astype(np.float32)
    return found


def _standard(pictures: UInt8Array, stimuli: UInt8Array) -> tuple[FloatArray, FloatArray]:
    if pictures.shape[1:] != stimuli.shape[1:] or len(pictures) not in (1, len(stimuli)) or pictures.ndim != 4:
        msg = f"pictures and stimuli must both be (n, H, W, 3) of one shape; got {pictures.shape} and {stimuli.shape}: resize the stimuli to the pictures' size"
        raise RequestError(msg)
    left, right = (np.asarray(values, np.float32) / np.float32(255) for values in (pictures, stimuli))
    if max(pictures.shape[1:3]) <= SMALL:
        return left, right
    return interpolated(left, 256, 425), interpolated(right, 256, 425)
