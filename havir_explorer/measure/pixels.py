"""What is compared as pixels: Pearson's r and SSIM."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray

from havir_explorer.errors import RequestError
from havir_explorer.measure.compare import crossed_r, paired_r
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

    Returns
    -------
    float32 (n,)
        In [-1, 1]; 0 where a picture is one flat value, which correlates with nothing.
    """
    return pixel_r(*_pairs(pictures, stimuli))


def ssim(pictures: UInt8Array, stimuli: UInt8Array) -> FloatArray:
    """Return the structural similarity of each pair in grey (Wang et al. 2004, equation 13), as scikit-image computes it.

    Plain two-dimensional SSIM as MindEye's; Brain-Diffuser's pinned scikit-image averages one-dimensional SSIMs of columns instead, so its
    numbers are higher and do not compare.

    Parameters
    ----------
    pictures, stimuli : uint8 (n, H, W, 3)
        H and W at least 11.

    Returns
    -------
    float32 (n,)
        In [-1, 1].
    """
    return grey_ssim(*_pairs(pictures, stimuli))


def crossed(pictures: UInt8Array, stimuli: UInt8Array) -> tuple[FloatArray, FloatArray]:
    """Return :func:`pixcorr` and :func:`ssim` of every picture with every stimulus; what each of them needs alone is computed once.

    Parameters
    ----------
    pictures : uint8 (m, H, W, 3)
    stimuli : uint8 (n, H, W, 3)

    Returns
    -------
    float32 (m, n), float32 (m, n)
    """
    left, right = _standard(pictures, stimuli)
    correlated = crossed_r(left.reshape(len(left), -1), right.reshape(len(right), -1))
    ours, theirs = (_Local.of(rgb2gray(values), columns=False) for values in (left, right))
    return correlated, np.stack([_similar(ours.one(row), theirs, columns=False) for row in range(len(left))])


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


class _Local(NamedTuple):
    """Grey pictures (n, H, W) with the means and variances of their surroundings, inside the border."""

    values: FloatArray
    mean: FloatArray
    variance: FloatArray

    @classmethod
    def of(cls, values: FloatArray, *, columns: bool) -> _Local:
        mean = _blurred(values, columns=columns)
        return cls(values, mean, _blurred(values * values, columns=columns) - mean * mean)

    def one(self, row: int) -> _Local:
        """Return one picture, first axis kept."""
        return _Local(*(part[row : row + 1] for part in self))


def _ssim(left: FloatArray, right: FloatArray, *, columns: bool) -> FloatArray:
    parts = [slice(start, start + _TOGETHER) for start in range(0, len(right), _TOGETHER)]
    return np.concatenate([_similar(*(_Local.of(rgb2gray(values[part]), columns=columns) for values in (left, right)), columns=columns) for part in parts])


def _similar(x: _Local, y: _Local, *, columns: bool) -> FloatArray:
    """Return SSIM, float32 (n,), of grey pictures (n or 1, H, W) and (n, H, W); ``columns`` are taken one by one."""
    product = x.mean * y.mean
    shared = _blurred(x.values * y.values, columns=columns) - product
    similar = (2 * product + _C1) * (2 * shared + _C2) / ((x.mean * x.mean + y.mean * y.mean + _C1) * (x.variance + y.variance + _C2))
    found: FloatArray = similar.mean((1, 2), dtype=np.float64).astype(np.float32)
    return found


def _blurred(values: FloatArray, *, columns: bool) -> FloatArray:
    over = (1,) if columns else (1, 2)
    inside: FloatArray = gaussian_filter(values, axes=over, **_WINDOW)[:, _BORDER:-_BORDER]
    return inside if columns else inside[:, :, _BORDER:-_BORDER]


def _pairs(pictures: UInt8Array, stimuli: UInt8Array) -> tuple[FloatArray, FloatArray]:
    if len(pictures) != len(stimuli):
        msg = f"as many pictures as stimuli are needed; got {len(pictures)} and {len(stimuli)}"
        raise RequestError(msg)
    return _standard(pictures, stimuli)


def _standard(pictures: UInt8Array, stimuli: UInt8Array) -> tuple[FloatArray, FloatArray]:
    if pictures.shape[1:] != stimuli.shape[1:] or pictures.ndim != 4:
        msg = f"pictures and stimuli must both be (n, H, W, 3) of one shape; got {pictures.shape} and {stimuli.shape}: resize the stimuli to the pictures' size"
        raise RequestError(msg)
    left, right = (np.asarray(values, np.float32) / np.float32(255) for values in (pictures, stimuli))
    if max(pictures.shape[1:3]) <= SMALL:
        return left, right
    return interpolated(left, 256, 425), interpolated(right, 256, 425)
