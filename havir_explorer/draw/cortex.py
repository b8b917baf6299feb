"""Voxels on the cortical surface: maps and ROI regions per vertex, and the figure for print (nilearn's surface plotting)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from havir_explorer.data.dataset import Atlas, Roi, SurfaceMap
from havir_explorer.errors import DataInvalid
from havir_explorer.records import BoolArray, FloatArray

MIN_COVERAGE = 0.5
"""A vertex needs at least this share of its samples on known voxels to be drawn."""
VISUAL = "prf-visualrois"
"""Atlas file of the early visual areas."""
OUTLINED = (VISUAL, "floc-faces", "floc-bodies", "floc-places", "floc-words")
"""Atlas files whose ROIs are outlined; streams and nsdgeneral cover them all and are left out."""


def cortical_map(values: FloatArray, surface: SurfaceMap) -> FloatArray:
    """Average voxel values at every vertex.

    Parameters
    ----------
    values : float32 (n_voxels,)
        NaN where a voxel has no value; such voxels are left out and the others' weights rescaled.
    surface : SurfaceMap

    Returns
    -------
    float32 (n_vertices,)
        NaN where fewer than half of the vertex's samples lie on voxels with a value.

    Raises
    ------
    DataInvalid
        ``values`` is not one number per voxel of the surface map.
    """
    n_voxels = surface.weights.shape[1]
    if np.shape(values) != (n_voxels,):
        msg = f"a cortical map needs one value for each of the {n_voxels} voxels; got an array of shape {np.shape(values)}"
        raise DataInvalid(msg)
    known = ~np.isnan(values)
    total = surface.weights @ np.where(known, values, 0).astype(np.float32)
    weight = surface.weights @ known.astype(np.float32)
    enough = surface.coverage * weight >= MIN_COVERAGE
    return np.where(enough, total / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Region:
    """An ROI on the surface.

    Parameters
    ----------
    name : str
        Dorsal and ventral parts are one region (``V1`` for V1v + V1d).
    file : str
        Atlas file it comes from.
    inside : bool (n_vertices,)
    """

    name: str
    file: str
    inside: BoolArray


def bordered(shown: tuple[Region, ...]) -> tuple[Region, ...]:
    """Return regions whose outlines draw each border between visual areas once.

    V1, V2, V3 and hV4 lie side by side in bands a few millimetres wide; outlined one by one, every border between two of them is two lines
    that hide the map. So each is joined with those before it. Other regions stay as they are.

    Parameters
    ----------
    shown : tuple of Region
        In file order, as :func:`regions` returns them.
    """
    found: list[Region] = []
    joined: BoolArray | None = None
    for region in shown:
        if region.file != VISUAL:
            found.append(region)
            continue
        joined = region.inside if joined is None else joined | region.inside
        found.append(Region(region.name, region.file, joined))
    return tuple(found)


def merged(atlas: Atlas, file: str) -> tuple[tuple[str, BoolArray], ...]:
    """Names and voxels of one file's ROIs, in its order, dorsal and ventral parts of a visual area joined."""
    rois = [r for r in atlas.rois if r.file == file]
    names = {r.name for r in rois}
    joined: dict[str, BoolArray] = {}
    for roi in rois:
        name = _area(roi, names)
        joined[name] = roi.voxels | joined[name] if name in joined else roi.voxels
    return tuple(joined.items())


def _area(roi: Roi, names: set[str]) -> str:
    stem = roi.name[:-1]
    return stem if roi.name[-1:] in ("v", "d") and {f"{stem}v", f"{stem}d"} <= names else roi.name


def roi_labels(atlas: Atlas, surface: SurfaceMap, file: str) -> npt.NDArray[np.int16]:
    """Give every vertex the ROI with the largest share of its voxels: argmax of the surface weights times one-hot labels.

    Parameters
    ----------
    atlas : Atlas
    surface : SurfaceMap
    file : str
        Atlas file, e.g. ``floc-faces``; ROIs of one file do not overlap.

    Returns
    -------
    int16 (n_vertices,)
        0 outside, k for the k-th of :func:`merged`. A vertex is outside when most of its weight, or of its samples, is.
    """
    rois = merged(atlas, file)
    onehot = sparse.csr_array(np.stack([v for _, v in rois], axis=1).astype(np.float32)) if rois else None
    if onehot is None:
        return np.zeros(surface.weights.shape[0], np.int16)
    share = (surface.weights @ onehot).toarray()
    outside = np.clip(1 - share.sum(axis=1), 0, None)
    outside[surface.coverage < MIN_COVERAGE] = 2
    return np.argmax(np.column_stack([outside, share]), axis=1).astype(np.int16)


def regions(atlas: Atlas, surface: SurfaceMap, files: tuple[str, ...] = OUTLINED) -> tuple[Region, ...]:
    """Every ROI of the given atlas files that reaches the surface, in file order."""
    found = []
    for file in files:
        labels = roi_labels(atlas, surface, file)
        for code, (name, _) in enumerate(merged(atlas, file), start=1):
            if (labels == code).any():
                found.append(Region(name, file, labels == code))
    return tuple(found)
