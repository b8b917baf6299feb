"""A subject's own cortical surfaces, as FreeSurfer's recon-all writes them and NSD ships them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.freesurfer import io

from havir_explorer.data import files
from havir_explorer.data.surface import HEMISPHERES
from havir_explorer.errors import DataInvalid
from havir_explorer.records import FloatArray

Faces = npt.NDArray[np.int32]

_REMEDY = "download the subject's freesurfer/surf folder again"


@dataclass(frozen=True, eq=False)
class Hemisphere:
    """One hemisphere's surfaces.

    Parameters
    ----------
    inflated : float32 (n_vertices, 3)
        Millimetres; x right, y front, z up.
    faces : int32 (n_faces, 3)
    sulcus : float32 (n_vertices,)
        Depth, positive in a sulcus; 0 where ``sulc`` is not there.
    flat : float32 (n_vertices, 2) or None
        Position on the flat map, NaN off its patch; None where there is no ``full.flat.patch.3d``.
    """

    inflated: FloatArray
    faces: Faces
    sulcus: FloatArray
    flat: FloatArray | None


def read_surfaces(root: Path, subject: str) -> tuple[Hemisphere, Hemisphere] | None:
    """Read both hemispheres of ``nsddata/freesurfer/subjXX/surf``; None when the inflated surfaces are not there.

    Raises
    ------
    DataInvalid
        A file is truncated, or of another subject than the inflated surface.
    """
    folder = root / "nsddata" / "freesurfer" / subject / "surf"
    if not all((folder / f"{hemi}.inflated").is_file() for hemi in HEMISPHERES):
        return None
    left, right = (_hemisphere(folder, hemi) for hemi in HEMISPHERES)
    return left, right


def _hemisphere(folder: Path, hemi: str) -> Hemisphere:
    path = folder / f"{hemi}.inflated"
    try:
        points, faces = io.read_geometry(path)
    except files.UNREADABLE as error:
        raise DataInvalid(files.unreadable("surface", path, error, _REMEDY)) from error
    if not len(faces) or faces.max() >= len(points):
        msg = f"surface has faces of {int(faces.max(initial=-1)) + 1} vertices, but {len(points)} of them: {path}; {_REMEDY}"
        raise DataInvalid(msg)
    return Hemisphere(points.astype(np.float32), faces.astype(np.int32), _sulcus(folder / f"{hemi}.sulc", len(points)), _flat(folder, hemi, len(points)))


def _sulcus(path: Path, count: int) -> FloatArray:
    if not path.is_file():
        return np.zeros(count, np.float32)
    try:
        depth = io.read_morph_data(path)
    except files.UNREADABLE as error:
        raise DataInvalid(files.unreadable("sulcal depth", path, error, _REMEDY)) from error
    if depth.shape != (count,):
        msg = f"sulcal depth has shape {depth.shape}, expected ({count},) as the inflated surface: {path}; it is cut short or of another subject, so {_REMEDY}"
        raise DataInvalid(msg)
    return depth.astype(np.float32)


def _flat(folder: Path, hemi: str, count: int) -> FloatArray | None:
    """Read a binary patch: -1, a count, then for each vertex its number (1-based, negative on the border) and x, y, z, all big-endian."""
    path = folder / f"{hemi}.full.flat.patch.3d"
    if not path.is_file():
        return None
    kind = np.dtype([("vertex", ">i4"), ("xyz", ">f4", 3)])
    try:
        content = path.read_bytes()
        mark, length = struct.unpack(">ii", content[:8])
        patch = np.frombuffer(content, kind, length, 8)
    except (struct.error, ValueError, OSError) as error:
        raise DataInvalid(files.unreadable("flat patch", path, error, _REMEDY)) from error
    vertex = np.abs(patch["vertex"].astype(np.int64)) - 1
    if mark != -1 or not len(vertex) or vertex.min() < 0 or vertex.max() >= count:
        msg = f"flat patch names vertices outside the {count} of the inflated surface: {path}; it belongs to another subject"
        raise DataInvalid(msg)
    flat = np.full((count, 2), np.nan, np.float32)
    flat[vertex] = patch["xyz"][:, :2]
    return flat
