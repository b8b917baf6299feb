"""What every data set offers, whatever its files look like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from scipy import sparse

from havir_explorer.errors import MaskError, nearest
from havir_explorer.records import BoolArray, FloatArray, IntArray, UInt8Array


@dataclass(frozen=True)
class Roi:
    """One named region of one atlas file.

    Parameters
    ----------
    name : str
        As in the file's ctab, e.g. ``FFA-1``.
    file : str
        Atlas file, e.g. ``floc-faces``.
    voxels : bool (n_voxels,)
    """

    name: str
    file: str
    voxels: BoolArray


@dataclass(frozen=True)
class Atlas:
    """A subject's ROIs over its voxels.

    Parameters
    ----------
    rois : tuple of Roi
        In file order, then code order. ROIs the subject lacks (no voxel) are left out.
    right : bool (n_voxels,)
        True in the right hemisphere.
    absent : tuple of str
        ROIs that the name tables list and this subject lacks.
    sided : bool
        False where the files do not tell hemispheres apart; ``right`` then means nothing.
    """

    rois: tuple[Roi, ...]
    right: BoolArray
    absent: tuple[str, ...] = ()
    sided: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names that :meth:`voxels` accepts, without hemisphere prefix: ROIs, unions such as ``V1``, and file names."""
        plain = [r.name for r in self.rois]
        unions = [n[:-1] for n in plain if n[-1:] == "v" and f"{n[:-1]}d" in plain]
        return tuple(dict.fromkeys([*plain, *unions, *(r.file for r in self.rois)]))

    def voxels(self, name: str) -> BoolArray:
        """Return the voxels of an ROI, a union or a file, of one hemisphere when the name starts with ``lh.`` or ``rh.``.

        Raises
        ------
        MaskError
            Unknown name, and the sentence lists the nearest ones; an ROI that this subject lacks; a hemisphere where none is known.
        """
        side, plain = (name[:3], name[3:]) if name[:3] in ("lh.", "rh.") else ("", name)
        if plain in self.absent and plain not in self.names:
            msg = f"none of this subject's {len(self.right)} voxels lies in ROI {name!r}, which its name table lists; leave it out"
            raise MaskError(msg)
        if plain not in self.names:
            msg = f"no ROI is called {name!r}; {nearest(plain, self.names)}"
            raise MaskError(msg)
        if side and not self.sided:
            msg = f"{name!r} asks for one hemisphere, but these ROI masks do not tell hemispheres apart; leave {side!r} out"
            raise MaskError(msg)
        chosen = [r.voxels for r in self.rois if plain in (r.name, r.file) or r.name in (f"{plain}v", f"{plain}d")]
        union = np.logical_or.reduce(chosen)
        return union if not side else union & (self.right if side == "rh." else ~self.right)


@dataclass(frozen=True)
class Geometry:
    """Where voxel i lies.

    Parameters
    ----------
    flat_index : int64 (n_voxels,)
        C-order index into the NIfTI grid (X, Y, Z).
    shape : (int, int, int)
    affine : float64 (4, 4)
    """

    flat_index: IntArray
    shape: tuple[int, int, int]
    affine: np.ndarray


@dataclass(frozen=True)
class SurfaceMap:
    """Voxels to cortical surface.

    Parameters
    ----------
    mesh : str
        ``fsaverage5``, ``fsaverage6``, ``fsaverage``, or ``native`` for the subject's own.
    weights : sparse float32 (n_left + n_right vertices, n_voxels)
        Rows sum to 1 where there is coverage.
    coverage : float32 (n_vertices,)
        Share of each vertex's samples that fall on known voxels; draw < 0.5 as "no data".
    """

    mesh: str
    weights: sparse.csr_array
    coverage: FloatArray


class Dataset(Protocol):
    """A data set: subjects, trials, responses, stimuli, atlas, geometry."""

    @property
    def name(self) -> str:
        """Short name, for titles and folders."""
    @property
    def root(self) -> Path:
        """Folder of the tree."""
    @property
    def synthetic(self) -> bool:
        """True for the teaching world."""
    @property
    def convention(self) -> str:
        """How responses are normalised, in words; stored with every model and checked at load."""
    def __hash__(self) -> int: ...
    def subjects(self) -> tuple[str, ...]:
        """Subjects with responses, ``subj01`` and so on."""
    def sources(self, subject: str) -> tuple[Path, ...]:
        """Folders of the files that the subject's responses are read from: where one of these changes, so may every result."""
    def trials(self, subject: str) -> pd.DataFrame:
        """Return one row a trial, indexed by the 0-based trial of the experiment.

        Columns: session (1-based), trial_in_session, nsd_id and repeat (0-based), n_repeats (available in this tree), shared (bool), coco_id
        (-1 where the files do not tell).
        """
    def split(self, subject: str, name: str) -> IntArray:
        """Test pictures by a published rule (``shared1000``, ``shared982``, ``special515``): sorted nsd_ids, int64 (n,)."""
    def responses(self, subject: str, trials: IntArray) -> FloatArray:
        """Z-scored responses, float32 (n_trials, n_voxels)."""
    def stimuli(self, nsd_ids: IntArray) -> UInt8Array:
        """Pictures, uint8 (n, H, W, 3), in the order asked for (repeats allowed)."""
    def captions(self, nsd_id: int) -> tuple[str, ...]:
        """Captions of a picture; empty when the tree holds none."""
    def atlas(self, subject: str) -> Atlas:
        """ROIs over the subject's voxels."""
    def geometry(self, subject: str) -> Geometry:
        """Where the voxels lie."""
    def ncsnr(self, subject: str) -> FloatArray:
        """Noise-ceiling signal-to-noise ratio, float32 (n_voxels,)."""
    def surface(self, subject: str, mesh: str = "") -> SurfaceMap:
        """Voxels to cortical surface, on ``mesh`` or, where that is empty, on the finest one there is."""
