"""MindEye's preprocessed release of NSD (``pscotti/mindeyev2`` on the Hugging Face hub): responses scored beforehand, pictures at 224 pixels.

One HDF5 file a subject holds float32 responses (trials, nsdgeneral voxels) whose row is the trial of the experiment and whose columns follow
``nsdgeneral > 0`` in C order of the NIfTI grid. The release has no coordinates, no noise ceilings and no floc ROIs: where a subject's own
``nsddata`` folder is put beside the files, places, ROIs and surfaces come from it.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from havir_explorer.data import betas, files, regions, splits, surface
from havir_explorer.data.dataset import Atlas, Geometry, Roi, SurfaceMap
from havir_explorer.data.trials import checked_trials, table_of
from havir_explorer.errors import DataInvalid, DataMissing, RequestError, nearest
from havir_explorer.records import BoolArray, FloatArray, IntArray, UInt8Array

INDICES = "COCO_73k_subj_indices.hdf5"
PICTURES = "coco_images_224_float16.hdf5"
MASKS = "brain_region_masks.hdf5"
SHARED = "shared1000.npy"
CONVENTION = "mindeye2 release: b2, nsdgeneral, z-scored beforehand (fp32 renorm)"
SIDE = 224
N_STIMULI = 73_000
AREAS = {"V1": "V1", "V2": "V2", "V3": "V3", "V4": "hV4"}
"""The release's masks of visual areas, and the atlas' names for them."""
_BETAS = re.compile(r"betas_all_(subj\d{2})_fp32_renorm\.hdf5")
_REMEDY = "download it from pscotti/mindeyev2"


def recognises(folder: Path) -> bool:
    """Return True for a folder of the release."""
    return (folder / INDICES).is_file() or any(_BETAS.fullmatch(p.name) for p in folder.glob("betas_all_*.hdf5"))


class MindEye:
    """The release's folder; implements :class:`~havir_explorer.data.dataset.Dataset`.

    Parameters
    ----------
    root : Path or str
        Folder with ``betas_all_subjXX_fp32_renorm.hdf5``, ``COCO_73k_subj_indices.hdf5``, ``shared1000.npy`` and, for what needs them,
        ``coco_images_224_float16.hdf5``, ``brain_region_masks.hdf5`` and a subject's ``nsddata`` (roi, label and transforms folders).

    Raises
    ------
    DataMissing, DataInvalid
        No such folder; the list of shared pictures is absent or of another shape.
    """

    name, synthetic, convention = "MindEye's NSD", False, CONVENTION

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root).expanduser().resolve()
        if not self._root.is_dir():
            msg = f"data folder not found: {self._root}; give the folder of MindEye's release"
            raise DataMissing(msg)
        self._trials: dict[str, pd.DataFrame] = {}
        self._places: dict[str, tuple[Geometry, Atlas]] = {}
        self._responses: dict[str, FloatArray] = {}

    @property
    def root(self) -> Path:
        """The release's folder, absolute."""
        return self._root

    @cached_property
    def _shared(self) -> BoolArray:
        file = files.require(self._root / SHARED, "list of shared pictures", _REMEDY)
        try:
            flags = np.load(file)
        except (OSError, ValueError, EOFError) as error:
            msg = f"list of shared pictures cannot be read: {file} ({error}); {_REMEDY}"
            raise DataInvalid(msg) from error
        if flags.shape != (N_STIMULI,) or flags.dtype != np.bool_:
            msg = f"list of shared pictures holds {flags.dtype} {flags.shape}, expected bool ({N_STIMULI},): {file}; {_REMEDY}"
            raise DataInvalid(msg)
        return flags

    def subjects(self) -> tuple[str, ...]:
        """Return the subjects whose responses are here, in order."""
        return tuple(sorted(match[1] for p in self._root.glob("betas_all_*.hdf5") if (match := _BETAS.fullmatch(p.name))))

    def sources(self, subject: str) -> tuple[Path, ...]:  # noqa: ARG002 - the release keeps all subjects' files in one folder
        """Return the release's folder."""
        return (self._root,)

    def trials(self, subject: str) -> pd.DataFrame:
        """Return one row a trial; columns as the protocol says, coco_id -1: the release does not hold it.

        Raises
        ------
        RequestError, DataMissing, DataInvalid
            Unknown subject; the list of pictures is absent, or not one a trial of the responses.
        """
        if subject not in self._trials:
            count = len(self._values(subject))
            path = self._root / INDICES
            file, indices = files.hdf5(path, "list of pictures shown", _REMEDY, subject)
            with file:
                ids = np.asarray(indices[:])
            if ids.ndim != 1 or len(ids) < count or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= N_STIMULI:
                msg = f"list of pictures shown holds {ids.dtype} {ids.shape} for {subject}, expected one nsd_id for each of {count} trials: {path}; {_REMEDY}"
                raise DataInvalid(msg)
            self._trials[subject] = table_of(ids[:count].astype(np.int64), np.flatnonzero(self._shared))
        return self._trials[subject].copy()

    def split(self, subject: str, name: str) -> IntArray:
        """Return the test pictures of a split: ``shared1000`` or ``shared982``, sorted nsd_ids.

        Raises
        ------
        RequestError
            No such split, or one that needs the trials of all eight subjects.
        """
        trials = self.trials(subject)
        shared = np.flatnonzero(self._shared)
        if name == "shared1000":
            return shared
        if name == "shared982":
            return np.intersect1d(shared, trials.loc[trials["session"] <= splits.RELEASED, "nsd_id"])
        if name in splits.SPLITS:
            msg = f"the split {name!r} needs the design of all eight subjects, which MindEye's release does not hold; take shared1000 or shared982"
            raise RequestError(msg)
        msg = f"no split is called {name!r}; {nearest(name, splits.SPLITS)}"
        raise RequestError(msg)

    def responses(self, subject: str, trials: IntArray) -> FloatArray:
        """Return responses as the release has them, float32 (n_trials, n_voxels); 0 where they are not numbers.

        Raises
        ------
        RequestError, DataMissing, DataInvalid
            Unknown subject or trial; the responses are absent, truncated or of another shape.
        """
        wanted = checked_trials(trials, self.trials(subject).index, subject, self._root)
        values = self._values(subject)[wanted]
        return np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)

    def stimuli(self, nsd_ids: IntArray) -> UInt8Array:
        """Return pictures, uint8 (n, 224, 224, 3), in the order asked for.

        Raises
        ------
        DataMissing, DataInvalid, RequestError
            No picture file; truncated or of another shape; an id outside it.
        """
        path = self._root / PICTURES
        file, images = files.hdf5(path, "picture file", f"{_REMEDY} (22 GB)", "images")
        with file:
            if images.ndim != 4 or images.shape[1:] != (3, SIDE, SIDE) or images.dtype != np.float16:
                msg = f"picture file holds {images.dtype} {images.shape}, expected float16 (pictures, 3, {SIDE}, {SIDE}): {path}; {_REMEDY}"
                raise DataInvalid(msg)
            unique, back = np.unique(np.asarray(nsd_ids, np.int64).ravel(), return_inverse=True)
            if len(unique) and not 0 <= unique[0] <= unique[-1] < len(images):
                msg = f"no stimulus has nsd_id {unique[0] if unique[0] < 0 else unique[-1]}: {path} holds 0 to {len(images) - 1}"
                raise RequestError(msg)
            return _pictures(images, unique, path)[back]

    def captions(self, nsd_id: int) -> tuple[str, ...]:
        """Return nothing: the release holds no captions that can be read without running code; raises RequestError for an unknown picture."""
        if not 0 <= nsd_id < N_STIMULI:
            msg = f"no stimulus has nsd_id {nsd_id}: NSD has 0 to {N_STIMULI - 1}"
            raise RequestError(msg)
        return ()

    def atlas(self, subject: str) -> Atlas:
        """Return the subject's ROIs: those of its ``nsddata`` folder where that is here, else the release's own masks.

        Raises
        ------
        RequestError, DataMissing, DataInvalid
            Unknown subject; neither masks nor ROI files; they are not of these responses. The release's masks know no hemispheres.
        """
        self._check(subject)
        return self._place(subject)[1] if self._has_rois(subject) else self._masks(subject)

    def geometry(self, subject: str) -> Geometry:
        """Return where each voxel lies.

        Raises
        ------
        DataMissing
            The subject's ROI files are not here: the release itself has no coordinates.
        """
        self._check(subject)
        if not self._has_rois(subject):
            msg = (
                f"MindEye's release holds no voxel coordinates: for {subject} in {self._root} put NSD's nsddata/ppdata/{subject}/func1pt8mm/roi "
                f"and nsddata/freesurfer/{subject}/label folders into it"
            )
            raise DataMissing(msg)
        return self._place(subject)[0]

    def ncsnr(self, subject: str) -> FloatArray:
        """Return the noise-ceiling ratio of preparation b2, float32 (n_voxels,).

        Raises
        ------
        DataMissing, DataInvalid
            ``ncsnr.nii.gz`` is not beside the release, which does not hold it.
        """
        self._check(subject)
        file = betas.folder(self._root, subject, "b2") / "ncsnr.nii.gz"
        if not file.is_file():
            msg = f"MindEye's release holds no ncsnr, so noise ceilings of {subject} are not known: put NSD's file at {file}"
            raise DataMissing(msg)
        geometry = self.geometry(subject)
        values, _ = files.volume(file, "noise ceiling file", geometry.shape)
        return np.nan_to_num(values.ravel()[geometry.flat_index].astype(np.float32), nan=0, posinf=0, neginf=0)

    def surface(self, subject: str, mesh: str = "") -> SurfaceMap:
        """Return the voxel → surface matrix from the subject's transforms; raises as :meth:`geometry` and :func:`~havir_explorer.data.surface.surface_map`."""
        folder = self._root / "nsddata" / "ppdata" / subject / "transforms"
        return surface.surface_map(folder, self.geometry(subject), mesh)

    def _values(self, subject: str) -> FloatArray:
        """Map the responses of a subject."""
        if subject not in self._responses:
            self._check(subject)
            path = self._root / f"betas_all_{subject}_fp32_renorm.hdf5"
            file, values = files.hdf5(path, "responses", _REMEDY, "betas")
            with file:
                if values.ndim != 2 or values.dtype != np.float32 or not len(values):
                    msg = f"responses hold {values.dtype} {values.shape}, expected float32 (trials, voxels): {path}; {_REMEDY}"
                    raise DataInvalid(msg)
                self._responses[subject] = _mapped(values, path)
        return self._responses[subject]

    def _has_rois(self, subject: str) -> bool:
        return (self._root / "nsddata" / "ppdata" / subject / "func1pt8mm" / "roi" / f"{regions.GENERAL}.nii.gz").is_file()

    def _place(self, subject: str) -> tuple[Geometry, Atlas]:
        """Read NSD's ROI files and keep the voxels of nsdgeneral: the release's columns."""
        if subject not in self._places:
            geometry, atlas = regions.read_atlas(self._root, subject)
            general = atlas.voxels(regions.GENERAL)
            columns = self._values(subject).shape[1]
            if general.sum() != columns:
                msg = f"responses of {subject} have {columns} voxels but its nsdgeneral.nii.gz labels {general.sum()}; one of them is of another subject"
                raise DataInvalid(msg)
            self._places[subject] = regions.restricted(geometry, atlas, general)
        return self._places[subject]

    def _masks(self, subject: str) -> Atlas:
        """Read the release's own masks."""
        path, columns = self._root / MASKS, self._values(subject).shape[1]
        files.require(path, f"masks of {subject}", f"{_REMEDY}, or put NSD's roi and label folders beside it")
        try:
            with h5py.File(path, locking=False) as file:
                masks = {name: np.asarray(file[subject][name][:]).astype(np.bool_) for name in file[subject]}
        except (OSError, KeyError, TypeError, AttributeError) as error:
            msg = f"masks of {subject} cannot be read: {path} ({error}); {_REMEDY}"
            raise DataInvalid(msg) from error
        wrong = [name for name, mask in masks.items() if mask.shape != (columns,)]
        if wrong or not masks:
            found = f"{wrong[0]} has shape {masks[wrong[0]].shape}" if wrong else "there is none"
            msg = f"masks of {subject} do not fit its {columns} voxels ({found}): {path}; they belong to another subject, so {_REMEDY}"
            raise DataInvalid(msg)
        areas = [Roi(name, "prf-visualrois", masks[key]) for key, name in AREAS.items() if key in masks and masks[key].any()]
        parts = [Roi(key, "brain_region_masks", mask) for key, mask in masks.items() if key not in AREAS and key != "nsd_general" and mask.any()]
        return Atlas((*areas, *parts, Roi(regions.GENERAL, regions.GENERAL, np.ones(columns, np.bool_))), np.zeros(columns, np.bool_), sided=False)

    def _check(self, subject: str) -> None:
        """Raise unless ``subject`` is one of the release's."""
        if subject not in self.subjects():
            msg = f"no subject {subject!r} in {self._root}; it holds {', '.join(self.subjects()) or 'no responses (betas_all_subjXX_fp32_renorm.hdf5)'}"
            raise RequestError(msg)


def _pictures(images: h5py.Dataset, ids: IntArray, path: Path) -> UInt8Array:
    """Read sorted, distinct pictures, float16 (3, H, W) in [0, 1], as uint8 (H, W, 3)."""
    pictures = np.empty((len(ids), SIDE, SIDE, 3), np.uint8)
    try:
        for i, nsd_id in enumerate(ids.tolist()):
            pictures[i] = np.rint(np.clip(images[nsd_id].astype(np.float32), 0, 1) * 255).transpose(1, 2, 0)
    except OSError as error:
        raise DataInvalid(files.unreadable("picture file", path, error, _REMEDY)) from error
    return pictures


def _mapped(values: h5py.Dataset, path: Path) -> FloatArray:
    """Map a contiguous data set into memory; read one that is chunked or compressed."""
    at = values.id.get_offset()
    try:
        if at is None or values.chunks is not None:
            return np.asarray(values[:])
        return np.memmap(path, np.float32, "r", at, values.shape)
    except (OSError, ValueError) as error:
        raise DataInvalid(files.unreadable("responses", path, error, _REMEDY)) from error
