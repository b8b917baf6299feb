"""ROI volumes and their names: which voxels a subject has, which regions they belong to, and on which side they lie."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from havir_explorer.data import files
from havir_explorer.data.dataset import Atlas, Geometry, Roi
from havir_explorer.errors import DataInvalid, DataMissing
from havir_explorer.records import BoolArray

GENERAL = "nsdgeneral"
ORDER = ("prf-visualrois", "prf-eccrois", "floc-faces", "floc-bodies", "floc-places", "floc-words", "streams", "Kastner2015", "HCP_MMP1")
"""Files in the order ROIs are listed; others follow by name, nsdgeneral comes last."""
PARCELLATIONS = ("HCP_MMP1", "corticalsulc")
"""Files that label the whole cortex: they name voxels but do not add any, or a subject would have a hundred thousand."""

Codes = npt.NDArray[Any]
"""Whole numbers in whatever integer type the file has."""


def read_atlas(root: Path, subject: str) -> tuple[Geometry, Atlas]:
    """Read every ROI file of a subject.

    Returns
    -------
    geometry : Geometry
        Voxels of nsdgeneral and of every ROI, sorted by their C-order index in the NIfTI grid.
    atlas : Atlas
        A name that an earlier file already uses is prefixed with its file (``HCP_MMP1.V1`` beside prf-visualrois' V1v and V1d), so
        that a name never means two atlases at once.

    Raises
    ------
    DataMissing
        No nsdgeneral, or an ROI file of ``ORDER`` without its ctab; another one without it is left out, with a warning.
    DataInvalid
        A volume is unreadable or of another grid, a ctab is malformed, or no voxel is labelled.
    """
    place = folder(root, subject)
    general = files.require(place / f"{GENERAL}.nii.gz", f"ROI file nsdgeneral of {subject}", "download the subject's func1pt8mm/roi folder")
    first, affine = files.volume(general, "ROI file")
    grid = (first.shape[0], first.shape[1], first.shape[2])
    tables = _tables(root, subject, _names(place))
    volumes = {name: _codes(place / f"{name}.nii.gz", grid) for name in tables}
    flat = np.flatnonzero(np.logical_or.reduce([codes > 0 for name, codes in volumes.items() if name not in PARCELLATIONS]))
    if not len(flat):
        msg = f"no voxel of {subject} is labelled: every ROI file in {place} is empty; download the folder again"
        raise DataInvalid(msg)
    geometry, at = Geometry(flat, grid, affine), np.unravel_index(flat, grid)
    rois, absent = _rois(subject, tables, {name: codes[at] for name, codes in volumes.items()})
    left, right = (np.logical_or.reduce([_codes(place / f"{side}.{name}.nii.gz", grid)[at] > 0 for name in volumes]) for side in ("lh", "rh"))
    return geometry, Atlas(rois, _right(left, right, geometry, subject), absent)


def folder(root: Path, subject: str) -> Path:
    """Return the folder of a subject's ROI volumes."""
    return root / "nsddata" / "ppdata" / subject / "func1pt8mm" / "roi"


def restricted(geometry: Geometry, atlas: Atlas, kept: BoolArray) -> tuple[Geometry, Atlas]:
    """Return geometry and atlas of some of the voxels; ROIs without one of them become absent."""
    place = Geometry(geometry.flat_index[kept], geometry.shape, geometry.affine)
    rois = [Roi(roi.name, roi.file, roi.voxels[kept]) for roi in atlas.rois]
    gone = [roi.name for roi in rois if not roi.voxels.any()]
    return place, Atlas(tuple(roi for roi in rois if roi.voxels.any()), atlas.right[kept], (*atlas.absent, *gone), atlas.sided)


def read_ctab(file: Path) -> dict[int, str]:
    """Read a name table: ``code name`` a line; code 0 (Unknown) and codes below it are left out.

    Raises
    ------
    DataInvalid
        It is no text; a line is not a number and a name; it names nothing.
    """
    names = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataInvalid(files.unreadable("name table", file, error)) from error
    for line in lines:
        parts = line.split(None, 1)
        if not parts:
            continue
        if len(parts) < 2 or not parts[0].lstrip("-").isdecimal():
            msg = f"name table has a line that is not 'code name': {line!r} in {file}; download it again"
            raise DataInvalid(msg)
        names[int(parts[0])] = parts[1].strip()
    return {code: name for code, name in names.items() if code > 0}


def _names(folder: Path) -> list[str]:
    """List the atlas files of a roi folder in the order of ``ORDER``."""
    stems = {p.name.removesuffix(".nii.gz") for p in folder.glob("*.nii.gz")}
    rank = {name: i for i, name in enumerate(ORDER)}
    return sorted((s for s in stems if not s.startswith(("lh.", "rh.", "."))), key=lambda s: (s == GENERAL, rank.get(s, len(rank)), s))


def _codes(path: Path, grid: files.Grid) -> Codes:
    """Read a volume of whole-number codes."""
    values, _ = files.volume(path, "ROI file", grid)
    if np.issubdtype(values.dtype, np.integer):
        return values
    codes = np.rint(values.astype(np.float32))
    wrong = values[~np.isclose(values, codes)]
    if len(wrong):
        msg = f"ROI file holds numbers that are no whole codes, such as {wrong[0]:.3g}: {path}; it is another kind of volume, so download it again"
        raise DataInvalid(msg)
    return codes.astype(np.int32)


def _tables(root: Path, subject: str, names: list[str]) -> dict[str, dict[int, str]]:
    """Read the name table of each atlas file; one that is none of ``ORDER`` and has no table is left out, with a warning."""
    tables = {}
    for name in names:
        try:
            tables[name] = _ctab(root, subject, name)
        except DataMissing as lack:
            if name in ORDER:
                raise
            warnings.warn(f"{lack}; meanwhile its regions are left out", stacklevel=2)
    return tables


def _ctab(root: Path, subject: str, name: str) -> dict[int, str]:
    """Find and read the name table of an atlas file."""
    label = root / "nsddata" / "freesurfer" / subject / "label" / f"{name}.mgz.ctab"
    for file in (label, root / "nsddata" / "templates" / f"{name}.ctab"):
        if file.is_file():
            return read_ctab(file)
    if name == GENERAL:  # one region, named as its file
        return {1: GENERAL}
    msg = f"name table of ROI file {name} ({subject}) not found: {label}; download it, or take {name}.nii.gz out of the subject's roi folder"
    raise DataMissing(msg)


def _rois(subject: str, tables: dict[str, dict[int, str]], labels: dict[str, Codes]) -> tuple[tuple[Roi, ...], tuple[str, ...]]:
    """Name the regions that have a voxel, and those that have none; no name is used for two files."""
    rois: list[Roi] = []
    absent: list[str] = []
    taken: set[str] = set()
    for file, codes in labels.items():
        table = tables[file]
        unnamed = sorted(set(np.unique(codes[codes > 0]).tolist()) - set(table))
        if unnamed:
            msg = f"ROI file {file} of {subject} holds code {unnamed[0]}, which its name table does not name; the two are of different releases"
            raise DataInvalid(msg)
        named = [(name, codes == code) for code, name in sorted(table.items())]
        fresh = [Roi(f"{file}.{name}" if name in taken else name, file, voxels) for name, voxels in named if voxels.any()]
        rois += fresh
        absent += [name for name, voxels in named if not voxels.any()]
        taken |= {roi.name for roi in fresh} | {roi.name[:-1] for roi in fresh if roi.name[-1:] in ("v", "d")}
    return tuple(rois), tuple(dict.fromkeys(absent))


def _right(left: BoolArray, right: BoolArray, geometry: Geometry, subject: str) -> BoolArray:
    """Tell the hemisphere of each voxel from the lh. and rh. files; a voxel of both or of neither goes by its place."""
    x = np.unravel_index(geometry.flat_index, geometry.shape)[0]
    sure_left, sure_right = left & ~right, right & ~left
    if not (sure_left.any() and sure_right.any()):
        side = "lh." if sure_right.any() else "rh."
        msg = f"the {side} ROI files of {subject} label no voxel, so hemispheres cannot be told apart; download the subject's func1pt8mm/roi folder again"
        raise DataInvalid(msg)
    at_left, at_right = x[sure_left].mean(), x[sure_right].mean()
    step = float(geometry.affine[0, 0]) or 1.0
    if (at_left - at_right) * step > 0:
        msg = f"the lh. ROI files of {subject} lie to the right of the rh. ones (mean x {at_left:.1f}, {at_right:.1f}); the names are trusted, not the affine"
        warnings.warn(msg, stacklevel=2)
    nearer_right: BoolArray = np.abs(x - at_right) < np.abs(x - at_left)
    return np.where(left ^ right, sure_right, nearer_right)
