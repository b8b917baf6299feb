"""Pictures at the sizes that scores are taken at: by torch's interpolation, as MindEye2, or by Pillow, as Brain-Diffuser."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from havir_explorer.records import FloatArray, UInt8Array


def as_is(pictures: UInt8Array) -> UInt8Array:
    """Return the pictures."""
    return pictures


def tensors(*sides: int, pictures: UInt8Array) -> FloatArray:
    """Return pictures as MindEye2 resizes them: values in [0, 1], through each of ``sides`` in turn, bilinear without antialias.

    torchvision's ``Resize`` of tensors did that until its version 0.17, which MindEye2 does not reach.

    Parameters
    ----------
    *sides : int
        Squares, in pixels.
    pictures : uint8 (n, H, W, 3)

    Returns
    -------
    float32 (n, side, side, 3)
    """
    return interpolated(np.asarray(pictures, np.float32) / np.float32(255), *sides)


def interpolated(pictures: FloatArray, *sides: int) -> FloatArray:
    """Return float pictures (n, H, W, 3) through each of ``sides`` in turn, bilinear without antialias."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    for side in sides:
        pixels = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=False)
    resized: FloatArray = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return resized


def pillow(side: int, filter_: Image.Resampling, pictures: UInt8Array) -> FloatArray:
    """Return pictures as Pillow resizes them, which rounds to 8 bits and smooths what shrinks.

    Parameters
    ----------
    side : int
        Of the square, in pixels; pictures of that size are left as they are.
    filter_ : PIL.Image.Resampling
    pictures : uint8 (n, H, W, 3)

    Returns
    -------
    float32 (n, side, side, 3)
        In [0, 1].
    """
    resized = np.stack([np.asarray(Image.fromarray(picture).resize((side, side), filter_)) for picture in pictures])
    return resized.astype(np.float32) / np.float32(255)
