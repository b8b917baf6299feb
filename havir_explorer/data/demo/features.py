"""What the synthetic subjects can see: image-computable channels of the picture and the semantic content of the scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import fft

from havir_explorer.data.demo.scenes import BACKGROUNDS, COLOURS, KINDS, SIZES, Scene, Thing
from havir_explorer.records import FloatArray, UInt8Array

SIDE = 64
GRID = 16
EXTENT_DEG = 5.0
"""The picture spans this far to each side of fixation, in degrees of visual angle."""

ORIENTATIONS_DEG = (0, 45, 90, 135)
PERIODS_PX = (4.0, 8.0)
COLOUR_CHANNELS = ("luminance", "red-green", "blue-yellow")
ENERGY_CHANNELS = tuple(f"energy {angle} deg period {period:g} px" for period in PERIODS_PX for angle in ORIENTATIONS_DEG)
CHANNELS = COLOUR_CHANNELS + ENERGY_CHANNELS

THIRDS = ("left", "middle", "right")
SALIENCE = {"small": 0.8, "medium": 1.0, "large": 1.2}
GROUPS: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "kind x place": tuple(f"{k} {p}" for k in KINDS for p in THIRDS),
    "kind x colour": tuple(f"{c} {k}" for k in KINDS for c in COLOURS),
    "colour": tuple(COLOURS),
    "background": BACKGROUNDS,
    "size": tuple(SIZES),
    "count": ("one", "two", "three"),
    "place": THIRDS,
}
"""Semantic features by group; a feature's value is a summed salience, or 1 for background and count."""

SEMANTIC = tuple(f"{group}: {name}" for group, names in GROUPS.items() for name in names)

_PAD = 8


def channel_maps(pictures: UInt8Array) -> FloatArray:
    """Return luminance, colour-opponent and orientation-energy maps.

    Parameters
    ----------
    pictures : uint8 (n, 64, 64, 3)

    Returns
    -------
    float32 (n, 11, 256)
        ``CHANNELS`` on a 16 x 16 grid, row by row from the top left. Colour channels are signed; energy is the modulus of a quadrature
        pair of Gabor filters on luminance (Adelson & Bergen 1985), never negative.
    """
    maps = [_channel_maps(pictures[start : start + 128]) for start in range(0, len(pictures), 128)]
    return np.concatenate(maps)


def semantic_features(seen: Sequence[Scene]) -> FloatArray:
    """Return the semantic content of scenes, float32 (n, 110), columns ``SEMANTIC``."""
    column = {name: i for i, name in enumerate(SEMANTIC)}
    values = np.zeros((len(seen), len(SEMANTIC)), np.float32)
    for row, one in zip(values, seen, strict=True):
        row[column[f"background: {one.background}"]] = 1.0
        row[column[f"count: {GROUPS['count'][len(one.things) - 1]}"]] = 1.0
        for thing in one.things:
            for name in _names(thing):
                row[column[name]] += SALIENCE[thing.size]
    return values


def degrees(thing: Thing) -> tuple[float, float]:
    """Return where a thing's middle lies, in degrees right of and above fixation."""
    x = (thing.x - 0.5) * 2.0 * EXTENT_DEG
    y = (0.5 - (thing.y - 0.5 * SIZES[thing.size])) * 2.0 * EXTENT_DEG
    return x, y


def _names(thing: Thing) -> tuple[str, ...]:
    third = THIRDS[min(int(thing.x * 3), 2)]
    return (
        f"kind: {thing.kind}",
        f"kind x place: {thing.kind} {third}",
        f"kind x colour: {thing.colour} {thing.kind}",
        f"colour: {thing.colour}",
        f"size: {thing.size}",
        f"place: {third}",
    )


def _channel_maps(pictures: UInt8Array) -> FloatArray:
    red, green, blue = np.moveaxis(pictures.astype(np.float32) / 255.0, -1, 0)
    luminance = (red + green + blue) / 3.0
    colour = np.stack([luminance, red - green, blue - 0.5 * (red + green)], axis=1)
    padded = np.pad(luminance, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)), mode="edge")
    spectrum = fft.fft2(padded)
    energy = np.stack([np.abs(fft.ifft2(spectrum * gabor))[:, _PAD:-_PAD, _PAD:-_PAD] for gabor in _gabors(SIDE + 2 * _PAD)], axis=1)
    maps = np.concatenate([colour, energy], axis=1)
    cell = SIDE // GRID
    pooled = maps.reshape(len(pictures), len(CHANNELS), GRID, cell, GRID, cell).mean((3, 5))
    return np.asarray(pooled.reshape(len(pictures), len(CHANNELS), GRID * GRID), np.float32)


def _gabors(side: int) -> list[npt.NDArray[np.float32]]:
    """Transfer functions of one-sided (analytic) Gabor filters of one octave bandwidth, so that the modulus of the output is the energy."""
    fy, fx = np.meshgrid(fft.fftfreq(side), fft.fftfreq(side), indexing="ij")
    filters = []
    for period in PERIODS_PX:
        width = 0.35 / period
        for angle in np.deg2rad(ORIENTATIONS_DEG):
            gap = (fx - np.cos(angle) / period) ** 2 + (fy + np.sin(angle) / period) ** 2
            filters.append(np.exp(-0.5 * gap / width**2).astype(np.float32))
    return filters
