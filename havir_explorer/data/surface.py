"""From voxels to cortical surface: one sparse matrix a subject, from NSD's own transforms.

NSD samples the volume at three depths of the grey matter (layers B1, B2, B3), averages, and takes each fsaverage vertex from its nearest
native vertex. With linear interpolation that whole route is one matrix. NSD's default interpolation is cubic; for drawing, linear is enough.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse

from havir_explorer.data import files
from havir_explorer.data.dataset import Geometry, SurfaceMap
from havir_explorer.errors import DataInvalid, RequestError
from havir_explorer.records import IntArray

MESHES = {10242: "fsaverage5", 40962: "fsaverage6", 163842: "fsaverage"}
"""Vertices of a hemisphere → mesh; each mesh is the first vertices of the next one."""
NATIVE = "native"
"""Name of the mesh of the subject's own surfaces."""
LAYERS = ("layerB1", "layerB2", "layerB3")
HEMISPHERES = ("lh", "rh")
_INVALID = 9999

Coordinates = npt.NDArray[np.float64]


def surface_map(folder: Path, geometry: Geometry, mesh: str = "") -> SurfaceMap:
    """Build the voxel → surface matrix.

    Parameters
    ----------
    folder : Path
        ``nsddata/ppdata/subjXX/transforms``.
    geometry : Geometry
    mesh : {'', 'fsaverage5', 'fsaverage6', 'fsaverage', 'native'}
        Empty: the mesh of the files. A coarser one takes its first vertices; ``native`` has the vertices of the subject's own surfaces.

    Returns
    -------
    SurfaceMap
        Rows sum to 1 where any sample falls on a known voxel, and are empty elsewhere.

    Raises
    ------
    DataMissing, DataInvalid
        A transform is absent, or has another shape than its partners.
    RequestError
        ``mesh`` is unknown or finer than the files.
    """
    name, rows = _rows(folder, mesh)
    raw = sparse.vstack([_hemisphere(folder, hemi, chosen, geometry) for hemi, chosen in zip(HEMISPHERES, rows, strict=True)], format="csr")
    coverage = np.asarray(raw.sum(axis=1)).ravel()
    gain = np.divide(1, coverage, out=np.zeros_like(coverage), where=coverage > 0)
    weights = sparse.csr_array(sparse.diags_array(gain) @ raw).astype(np.float32)
    return SurfaceMap(name, weights, coverage.astype(np.float32))


def _rows(folder: Path, mesh: str) -> tuple[str, tuple[IntArray | None, IntArray | None]]:
    """Return the mesh's name and, for each hemisphere, the 0-based native vertex of each of its vertices; None for all of them."""
    if mesh == NATIVE:
        return NATIVE, (None, None)
    left, right = (_nearest_vertices(folder / f"{hemi}.white-to-fsaverage.mgz") for hemi in HEMISPHERES)
    count = _vertices(mesh, min(len(left), len(right)))
    return MESHES[count], (left[:count], right[:count])


def trilinear(points: Coordinates, geometry: Geometry) -> sparse.csr_array:
    """Return the linear interpolation weights of points on a subject's known voxels.

    Parameters
    ----------
    points : float64 (n_points, 3)
        Voxel coordinates as NSD writes them: 1-based, 9999 = no data.
    geometry : Geometry

    Returns
    -------
    sparse float64 (n_points, n_voxels)
        A row's sum is the share of the point's weight that falls on known voxels.
    """
    shape = np.asarray(geometry.shape)
    column = np.full(geometry.shape, -1, np.int64)
    column.ravel()[geometry.flat_index] = np.arange(len(geometry.flat_index))
    known = np.isfinite(points).all(axis=1) & (points < _INVALID).all(axis=1)
    row = np.flatnonzero(known)
    base = np.floor(points[row] - 1).astype(np.int64)
    fraction = points[row] - 1 - base
    rows, columns, values = [], [], []
    for corner in product((0, 1), repeat=3):
        at = base + corner
        weight = np.where(corner, fraction, 1 - fraction).prod(axis=1)
        inside = ((at >= 0) & (at < shape)).all(axis=1) & (weight > 0)
        voxel = column[tuple(at[inside].T)]
        hit = voxel >= 0
        rows.append(row[inside][hit])
        columns.append(voxel[hit])
        values.append(weight[inside][hit])
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(sparse.coo_array(entries, shape=(len(points), len(geometry.flat_index))))


def _hemisphere(folder: Path, hemi: str, rows: IntArray | None, geometry: Geometry) -> sparse.csr_array:
    """Average the three layers' weights at the native vertices ``rows`` (0-based), or at all of them."""
    parts: list[sparse.csr_array] = []
    first = 0
    for layer in LAYERS:
        file = folder / f"{hemi}.func1pt8-to-{layer}.mgz"
        points = files.vertex_table(file, "volume-to-surface transform", 3)
        first = first or len(points)
        if len(points) != first:
            msg = f"{file} has {len(points)} vertices, but {LAYERS[0]} has {first}; the transforms belong to different subjects"
            raise DataInvalid(msg)
        if rows is not None and rows.max() >= len(points):
            msg = f"white-to-fsaverage names native vertex {rows.max() + 1}, but {file} has {len(points)}; the transforms belong to different subjects"
            raise DataInvalid(msg)
        parts.append(trilinear(points if rows is None else points[rows], geometry))
    return sparse.csr_array(sum(parts[1:], parts[0]) / len(LAYERS))


def _nearest_vertices(file: Path) -> IntArray:
    """Read 0-based native vertex numbers, one per fsaverage vertex."""
    rows = files.vertex_table(file, "native-to-fsaverage transform", 1)[:, 0].astype(np.int64) - 1
    if len(rows) not in MESHES or rows.min() < 0:
        msg = f"native-to-fsaverage transform has {len(rows)} rows from vertex {rows.min() + 1}, expected 1-based vertices in {sorted(MESHES)} rows: {file}"
        raise DataInvalid(msg)
    return rows


def _vertices(mesh: str, available: int) -> int:
    """Return the vertices of a hemisphere of the mesh asked for."""
    for count, name in MESHES.items():
        if count <= available and (name == mesh or (not mesh and count == available)):
            return count
    reached = ", ".join(n for c, n in MESHES.items() if c <= available)
    msg = f"mesh {mesh!r} is not available; this subject's transforms reach {reached}, or take {NATIVE!r}"
    raise RequestError(msg)
