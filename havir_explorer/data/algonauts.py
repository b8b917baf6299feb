"""The Algonauts 2023 challenge's folder: fsaverage vertices of NSD, averaged over repeats, for the pictures of its training split.

It is a few gigabytes and soon at hand, and that has a price: one response a picture (no repeats), no responses to its test pictures, no list of
the pictures NSD's subjects share, no noise ceilings of the training responses, no captions. Its ROI name tables are pickles, which are never
opened here: the names below are those of NSD's own tables, in the codes that the challenge's documentation lists.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError
from scipy import sparse

from havir_explorer.data import files
from havir_explorer.data.dataset import Atlas, Geometry, Roi, SurfaceMap
from havir_explorer.data.surface import MESHES
from havir_explorer.data.trials import checked_trials
from havir_explorer.errors import DataInvalid, DataMissing, RequestError
from havir_explorer.records import BoolArray, FloatArray, IntArray, UInt8Array

CONVENTION = "algonauts 2023: b3 on fsaverage, z-scored per vertex within session, then averaged over a picture's trials"
VERTICES = 163_842
"""Of a hemisphere of fsaverage."""
SIDE = 425
NAMES = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}
"""Names of codes 1, 2, … of each ROI file."""
_PICTURE = re.compile(r"(train|test)-(\d{4})_nsd-(\d{5})\.png")
_HEMISPHERES = ("lh", "rh")
_REMEDY = "download the challenge's folder of this subject again"


def recognises(folder: Path) -> bool:
    """Return True for the challenge's folder: one of ``subjXX/training_split`` and so on."""
    return any(folder.glob("subj0[1-8]/training_split"))


class Algonauts:
    """The challenge's folder; implements :class:`~havir_explorer.data.dataset.Dataset`.

    A trial is a training picture, in the challenge's order; a voxel is a vertex of fsaverage, left hemisphere first.

    Parameters
    ----------
    root : Path or str
        Folder that holds ``subj01`` to ``subj08``, or some of them.

    Raises
    ------
    DataMissing
        No such folder.
    """

    name, synthetic, convention = "Algonauts 2023", False, CONVENTION

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root).expanduser().resolve()
        if not self._root.is_dir():
            msg = f"data folder not found: {self._root}; give the challenge's folder, which holds subj01 and so on"
            raise DataMissing(msg)
        self._trials: dict[str, pd.DataFrame] = {}
        self._responses: dict[str, tuple[FloatArray, FloatArray]] = {}
        self._vertices: dict[str, tuple[IntArray, IntArray]] = {}
        self._pictures: dict[int, Path] = {}

    @property
    def root(self) -> Path:
        """The challenge's folder, absolute."""
        return self._root

    def subjects(self) -> tuple[str, ...]:
        """Return the subjects with a training split, in order."""
        return tuple(sorted(p.parent.name for p in self._root.glob("subj0[1-8]/training_split")))

    def sources(self, subject: str) -> tuple[Path, ...]:
        """Return the subject's folder."""
        return (self._root / subject,)

    def trials(self, subject: str) -> pd.DataFrame:
        """Return one row a training picture; columns as the protocol says.

        ``session`` is 1 throughout (a response averages up to three sessions), ``n_repeats`` 1, ``shared`` False, ``coco_id`` -1: the folder tells none.

        Raises
        ------
        RequestError, DataMissing, DataInvalid
            Unknown subject; pictures are absent, or not as many as responses.
        """
        if subject not in self._trials:
            count = len(self._hemispheres(subject)[0])
            folder = self._root / subject / "training_split" / "training_images"
            found = sorted((int(match[2]), int(match[3])) for p in folder.glob("train-*.png") if (match := _PICTURE.fullmatch(p.name)))
            if [number for number, _ in found] != list(range(1, count + 1)):
                msg = f"{len(found)} training pictures of {subject} for {count} responses, expected train-0001 to train-{count:04d}: {folder}; {_REMEDY}"
                raise DataMissing(msg)
            ids, trial = np.array([nsd_id for _, nsd_id in found], np.int64), np.arange(count)
            columns = {"session": 1, "trial_in_session": trial, "nsd_id": ids, "repeat": 0, "n_repeats": 1, "shared": False, "coco_id": -1}
            self._trials[subject] = pd.DataFrame(columns, index=pd.Index(trial, name="trial"))
        return self._trials[subject].copy()

    def split(self, subject: str, name: str) -> IntArray:
        """Raise DataMissing: the challenge gives no responses to test pictures, and does not tell which pictures are shared."""
        self._check(subject)
        msg = f"the Algonauts folder has no responses to shared test pictures, so the split {name!r} of {subject} is empty; use an NSD tree for it"
        raise DataMissing(msg)

    def responses(self, subject: str, trials: IntArray) -> FloatArray:
        """Return responses as the challenge has them, float32 (n_trials, n_vertices), left then right; 0 where they are not numbers.

        Raises
        ------
        RequestError, DataMissing, DataInvalid
            Unknown subject or trial; the responses are absent, truncated or of another shape.
        """
        rows = self._trials[subject] if subject in self._trials else self.trials(subject)
        wanted = checked_trials(trials, rows.index, subject, self._root)
        values = np.concatenate([part[wanted] for part in self._hemispheres(subject)], axis=1)
        return np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)

    def stimuli(self, nsd_ids: IntArray) -> UInt8Array:
        """Return training or test pictures of any subject here, uint8 (n, 425, 425, 3), in the order asked for.

        Raises
        ------
        RequestError, DataInvalid
            No such picture; one that cannot be read or has another size.
        """
        wanted = np.asarray(nsd_ids, np.int64).ravel().tolist()
        return np.stack([self._picture(nsd_id) for nsd_id in wanted]) if wanted else np.empty((0, SIDE, SIDE, 3), np.uint8)

    def captions(self, nsd_id: int) -> tuple[str, ...]:
        """Return nothing: the challenge has no captions; raises RequestError for an unknown picture."""
        self._file_of(nsd_id)
        return ()

    def atlas(self, subject: str) -> Atlas:
        """Return the subject's ROIs over its vertices.

        Raises
        ------
        RequestError, DataMissing, DataInvalid
            Unknown subject; a mask is absent, of another number of vertices, or holds a code without a name.
        """
        counts = [part.shape[1] for part in self._hemispheres(subject)]
        right = np.repeat([False, True], counts)
        rois: list[Roi] = []
        absent: list[str] = []
        for file, names in NAMES.items():
            codes = np.concatenate([self._codes(subject, hemi, file, count) for hemi, count in zip(_HEMISPHERES, counts, strict=True)])
            if codes.max(initial=0) > len(names):
                msg = f"ROI mask {file} of {subject} holds code {codes.max()}, but the challenge names {len(names)}; {_REMEDY}"
                raise DataInvalid(msg)
            for code, name in enumerate(names, start=1):
                inside: BoolArray = codes == code
                (rois.append(Roi(name, file, inside)) if inside.any() else absent.append(name))
        return Atlas(tuple(rois), right, tuple(absent))

    def geometry(self, subject: str) -> Geometry:
        """Return each vertex' place: its number on fsaverage, the right hemisphere's after the left's, on a "grid" of (327684, 1, 1).

        Raises
        ------
        RequestError, DataMissing, DataInvalid
        """
        left, right = self._places(subject)
        return Geometry(np.concatenate((left, right + VERTICES)), (2 * VERTICES, 1, 1), np.eye(4))

    def ncsnr(self, subject: str) -> FloatArray:
        """Raise DataMissing: the challenge gives noise ceilings of its test responses alone."""
        self._check(subject)
        msg = f"the Algonauts folder holds no ncsnr of its training responses, so noise ceilings of {subject} are not known; use an NSD tree for them"
        raise DataMissing(msg)

    def surface(self, subject: str, mesh: str = "") -> SurfaceMap:
        """Return the vertex → surface matrix, which only picks: on fsaverage5 unless a finer mesh is named, its vertices being fsaverage's first.

        Raises
        ------
        RequestError, DataMissing, DataInvalid
            As :meth:`geometry`; no such mesh.
        """
        counts = {name: count for count, name in MESHES.items()}
        if mesh and mesh not in counts:
            msg = f"mesh {mesh!r} is not available; there are {', '.join(counts)}"
            raise RequestError(msg)
        name = mesh or "fsaverage5"
        count, (left, right) = counts[name], self._places(subject)
        target = np.concatenate((np.where(left < count, left, -1), np.where(right < count, right + count, -1)))
        column = np.flatnonzero(target >= 0)
        weights = sparse.csr_array((np.ones(len(column), np.float32), (target[column], column)), shape=(2 * count, len(target)))
        return SurfaceMap(name, weights, np.asarray(weights.sum(axis=1)).ravel().astype(np.float32))

    def _hemispheres(self, subject: str) -> tuple[FloatArray, FloatArray]:
        """Map the training responses of both hemispheres."""
        if subject not in self._responses:
            self._check(subject)
            folder = self._root / subject / "training_split" / "training_fmri"
            left, right = (_array(folder / f"{hemi}_training_fmri.npy", "responses") for hemi in _HEMISPHERES)
            if left.ndim != 2 or right.ndim != 2 or len(left) != len(right) or not len(left) or left.dtype != np.float32 or right.dtype != np.float32:
                found = f"{left.dtype} {left.shape} and {right.dtype} {right.shape}"
                msg = f"responses of {subject} hold {found}, expected float32 (pictures, vertices) of as many pictures: {folder}; {_REMEDY}"
                raise DataInvalid(msg)
            self._responses[subject] = (left, right)
        return self._responses[subject]

    def _places(self, subject: str) -> tuple[IntArray, IntArray]:
        """Read which vertices of fsaverage the columns are."""
        if subject not in self._vertices:
            left, right = (self._vertices_of(subject, hemi, part) for hemi, part in zip(_HEMISPHERES, self._hemispheres(subject), strict=True))
            self._vertices[subject] = (left, right)
        return self._vertices[subject]

    def _vertices_of(self, subject: str, hemi: str, responses: FloatArray) -> IntArray:
        path = self._root / subject / "roi_masks" / f"{hemi}.all-vertices_fsaverage_space.npy"
        inside = _array(path, "vertex mask")
        vertices = np.flatnonzero(inside).astype(np.int64)
        if inside.shape != (VERTICES,) or len(vertices) != responses.shape[1]:
            found = f"{inside.shape}, {len(vertices)} vertices chosen"
            msg = f"vertex mask has shape {found}, expected ({VERTICES},) and {responses.shape[1]}: {path}; it belongs to another subject"
            raise DataInvalid(msg)
        return vertices

    def _codes(self, subject: str, hemi: str, file: str, count: int) -> npt.NDArray[np.int64]:
        path = self._root / subject / "roi_masks" / f"{hemi}.{file}_challenge_space.npy"
        codes = _array(path, "ROI mask")
        if codes.shape != (count,) or not np.issubdtype(codes.dtype, np.number):
            msg = f"ROI mask holds {codes.dtype} {codes.shape}, expected ({count},) codes: {path}; it belongs to another subject"
            raise DataInvalid(msg)
        return np.rint(codes).astype(np.int64)

    def _file_of(self, nsd_id: int) -> Path:
        """Find the file of a picture."""
        if not self._pictures:
            listed = sorted(self._root.glob("subj0[1-8]/*_split/*_images/*.png"), reverse=True)
            self._pictures.update({int(match[3]): p for p in listed if (match := _PICTURE.fullmatch(p.name))})
        if nsd_id not in self._pictures:
            msg = f"no stimulus has nsd_id {nsd_id} in {self._root}: the subjects here were shown {len(self._pictures)} others"
            raise RequestError(msg)
        return self._pictures[nsd_id]

    def _picture(self, nsd_id: int) -> UInt8Array:
        path = self._file_of(nsd_id)
        try:
            with Image.open(path) as image:
                picture = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            msg = f"picture cannot be read: {path} ({error}); {_REMEDY}"
            raise DataInvalid(msg) from error
        if picture.shape != (SIDE, SIDE, 3):
            msg = f"picture has shape {picture.shape}, expected ({SIDE}, {SIDE}, 3): {path}; {_REMEDY}"
            raise DataInvalid(msg)
        return picture

    def _check(self, subject: str) -> None:
        """Raise unless ``subject`` is one of the folder's."""
        if subject not in self.subjects():
            msg = f"no subject {subject!r} in {self._root}; it holds {', '.join(self.subjects()) or 'none'}"
            raise RequestError(msg)


def _array(path: Path, what: str) -> np.ndarray:
    """Map an array; files that would have to be unpickled are refused."""
    files.require(path, what, _REMEDY)
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        msg = f"{what} cannot be read: {path} ({error or type(error).__name__}); it looks truncated, so {_REMEDY}"
        raise DataInvalid(msg) from error
