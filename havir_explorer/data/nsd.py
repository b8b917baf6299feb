"""The Natural Scenes Dataset as it lies on disk (Allen et al. 2022, Nat Neurosci 25:116-126), and the teaching world in the same layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from havir_explorer.data import behaviour, betas, design, files, prepared, regions, scores, splits, stimuli, surface
from havir_explorer.data.conventions import CONVENTIONS, DEFAULT, PREPARATIONS, Convention
from havir_explorer.data.conventions import convention as named
from havir_explorer.data.dataset import Atlas, Geometry, SurfaceMap
from havir_explorer.data.trials import checked_trials
from havir_explorer.errors import DataInvalid, DataMissing, RequestError
from havir_explorer.paths import cache_folder
from havir_explorer.records import FloatArray, IntArray, UInt8Array

MARKER = "synthetic.json"
"""File at the root of a generated tree: ``{"synthetic": true, "name": …}``."""


class NSD:
    """An NSD folder tree; implements :class:`~havir_explorer.data.dataset.Dataset`.

    Parameters
    ----------
    root : Path or str
        Folder that holds ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``. Partial trees are fine: a subject counts when it has betas,
        and its trials are those of the sessions at hand.
    convention : str, optional
        How responses are normalised, by name (:mod:`havir_explorer.data.conventions`); by default that of the tree's prepared stores, or ``b3``.
    cache : Path, optional
        Where response caches go; by default ``responses`` in the user's cache folder.

    Raises
    ------
    DataMissing, DataInvalid
        No such folder, or not an NSD tree; stores prepared under two conventions.
    RequestError
        No such convention.
    """

    def __init__(self, root: Path | str, *, convention: str | None = None, cache: Path | None = None) -> None:
        self._root = Path(root).expanduser().resolve()
        if not self._root.is_dir():
            msg = f"data folder not found: {self._root}; give the folder of an NSD tree, or 'demo' for the teaching world"
            raise DataMissing(msg)
        self._design = design.read_design(self._root)
        self._convention = named(convention) if convention else _recorded(self._root)
        digest = hashlib.sha256(str(self._root).encode()).hexdigest()[:16]
        self._cache = (cache or cache_folder() / "responses") / digest
        self._trials: dict[str, pd.DataFrame] = {}
        self._regions: dict[str, tuple[Geometry, Atlas]] = {}
        self._surfaces: dict[tuple[str, str], SurfaceMap] = {}
        self._responses: dict[str, scores.SubjectResponses] = {}

    @property
    def name(self) -> str:
        """``NSD``, or the name the generated tree gives itself."""
        return str(self._marker.get("name", "demo")) if self.synthetic else "NSD"

    @property
    def root(self) -> Path:
        """The tree's folder, absolute."""
        return self._root

    @property
    def synthetic(self) -> bool:
        """True for a generated tree."""
        return self._marker.get("synthetic") is True

    @property
    def convention(self) -> str:
        """How responses are normalised, in words."""
        return self._convention.words

    @cached_property
    def _marker(self) -> dict[str, object]:
        """Content of the marker file; empty for a measured data set."""
        path = self._root / MARKER
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            msg = f"marker of a generated tree cannot be read: {path} ({error}); delete the tree and build it again"
            raise DataInvalid(msg) from error
        return content if isinstance(content, dict) else {}

    @cached_property
    def _coco_ids(self) -> pd.Series:
        return design.read_coco_ids(self._root)

    @cached_property
    def _captions(self) -> dict[int, tuple[str, ...]]:
        return stimuli.read_captions(self._root)

    def subjects(self) -> tuple[str, ...]:
        """Return the subjects that have betas of the convention's preparation, in order."""
        return self._with_betas(self._convention.preparation)

    def sources(self, subject: str) -> tuple[Path, ...]:
        """Return the folders of the convention's betas, of its prepared store and of the ROI volumes."""
        preparation = self._convention.preparation
        return betas.folder(self._root, subject, preparation), prepared.folder(self._root, subject, preparation), regions.folder(self._root, subject)

    def _with_betas(self, preparation: str) -> tuple[str, ...]:
        known = [f"subj{i + 1:02d}" for i in range(len(self._design.images))]
        stored = {s for s in known if (prepared.folder(self._root, s, preparation) / prepared.RECORD).is_file()}
        return tuple(s for s in known if s in stored or betas.sessions(self._root, s, preparation))

    def trials(self, subject: str) -> pd.DataFrame:
        """Return one row a trial of the sessions at hand.

        Returns
        -------
        DataFrame
            Index: 0-based trial of the experiment. Columns session (1-based), trial_in_session (0-based), nsd_id (0-based), repeat (0-based,
            over the whole experiment), n_repeats (in this tree), shared (bool, from the design's ``sharedix``), coco_id.

        Raises
        ------
        RequestError, DataMissing, DataInvalid
            Unknown subject; a file is absent or malformed.
        """
        if subject not in self._trials:
            self._check(subject)
            self._trials[subject] = design.trial_table(self._design, self._coco_ids, subject, self.sessions(subject))
        return self._trials[subject].copy()

    def split(self, subject: str, name: str) -> IntArray:
        """Return the test pictures of a split; raises as :func:`~havir_explorer.data.splits.split_pictures`, and for an unknown subject."""
        self._check(subject)
        return splits.split_pictures(self._design, subject, name)

    def responses(self, subject: str, trials: IntArray) -> FloatArray:
        """Return z-scored responses.

        The first call that needs a session reads its voxel columns into the cache; later ones map that file into memory.

        Parameters
        ----------
        subject : str
        trials : int (n_trials,)
            0-based over the experiment; any order, repeats allowed.

        Returns
        -------
        float32 (n_trials, n_voxels)
            ``convention`` says how they are normalised; a voxel that is constant within a session is 0 there.

        Raises
        ------
        RequestError
            Unknown subject; a trial outside the sessions at hand.
        DataMissing, DataInvalid, OutputError
            A beta file is absent, truncated or of another grid; the cache cannot be written.
        """
        rows = self._trials[subject] if subject in self._trials else self.trials(subject)
        return self.measured(subject).read(checked_trials(trials, rows.index, subject, self._root))

    def measured(self, subject: str) -> scores.SubjectResponses:
        """Return the subject's responses session by session, before and after z-scoring; raises as :meth:`geometry`."""
        if subject not in self._responses:
            ids = self._design.nsd_ids(subject)
            training, place = ~np.isin(ids, self._design.shared), self.geometry(subject)
            self._responses[subject] = scores.SubjectResponses(self._root, self._cache_of(subject), subject, self._convention, place, ids, training)
        return self._responses[subject]

    def _cache_of(self, subject: str) -> Path:
        preparation = self._convention.preparation
        return self._cache / (subject if preparation == DEFAULT.preparation else f"{subject}-{preparation}")

    def sessions(self, subject: str) -> tuple[int, ...]:
        """Return the 1-based sessions at hand that the convention reads, in order.

        Raises
        ------
        DataInvalid
            A session that this subject never had; a damaged store.
        """
        preparation = self._convention.preparation
        completed = design.SESSIONS[int(subject.removeprefix("subj")) - 1]
        last = max(betas.sessions(self._root, subject, preparation), default=0)
        if last > completed:
            file = betas.path(self._root, subject, last, preparation)
            msg = f"{subject} completed {completed} sessions, but there is a session {last}: {file}; it belongs to another subject, so take it out"
            raise DataInvalid(msg)
        return scores.available(self._root, subject, self._convention)

    def behaviour(self, subject: str) -> pd.DataFrame:
        """Return what the subject answered in the trials at hand; columns and errors as :func:`~havir_explorer.data.behaviour.read_behaviour`."""
        trials = self.trials(subject).index
        answers = behaviour.read_behaviour(self._root, subject, self._design.nsd_ids(subject))
        gone = trials.difference(answers.index)
        if len(gone):
            msg = f"behaviour of {subject} has no row for trial {gone[0]}, whose betas are here; responses.tsv is cut short, so download it again"
            raise DataInvalid(msg)
        return answers.loc[trials]

    def prepare(self, subject: str, *, progress: Callable[[float, str], None] | None = None) -> None:
        """Fill the response cache of every session at hand.

        Parameters
        ----------
        subject : str
        progress : callable, optional
            Called with the share done and a phrase. An exception it raises stops the work; finished sessions stay.
        """
        self._check(subject)
        sessions = self.sessions(subject)
        for done, number in enumerate(sessions):
            if progress is not None:
                progress(done / len(sessions), f"{subject}: reading session {number}")
            self.measured(subject).session(number)

    def stimuli(self, nsd_ids: IntArray) -> UInt8Array:
        """Return pictures, uint8 (n, 425, 425, 3), in the order asked for; raises as :func:`~havir_explorer.data.stimuli.read_stimuli`."""
        return stimuli.read_stimuli(self._root, nsd_ids)

    def captions(self, nsd_id: int) -> tuple[str, ...]:
        """Return the captions of a picture; empty when the tree holds none.

        Raises
        ------
        RequestError
            The stimulus information does not list ``nsd_id``.
        """
        if nsd_id not in self._coco_ids.index:
            msg = f"no stimulus has nsd_id {nsd_id}: {self._root / design.STIM_INFO} lists {len(self._coco_ids)}"
            raise RequestError(msg)
        return self._captions.get(int(self._coco_ids[nsd_id]), ())

    def atlas(self, subject: str) -> Atlas:
        """Return the subject's ROIs; raises as :func:`~havir_explorer.data.regions.read_atlas`, and RequestError for an unknown subject."""
        return self._anatomy(subject)[1]

    def geometry(self, subject: str) -> Geometry:
        """Return where each voxel lies; raises as :meth:`atlas`."""
        return self._anatomy(subject)[0]

    def ncsnr(self, subject: str) -> FloatArray:
        """Return the noise-ceiling signal-to-noise ratio, float32 (n_voxels,); 0 where the file has no number.

        Raises
        ------
        RequestError, DataMissing, DataInvalid
        """
        geometry = self.geometry(subject)
        values, _ = files.volume(betas.folder(self._root, subject, self._convention.preparation) / "ncsnr.nii.gz", "noise ceiling file", geometry.shape)
        return np.nan_to_num(values.ravel()[geometry.flat_index].astype(np.float32), nan=0, posinf=0, neginf=0)

    def surface(self, subject: str, mesh: str = "") -> SurfaceMap:
        """Return the voxel → surface matrix, on the mesh of the transforms or a coarser one; raises as :func:`~havir_explorer.data.surface.surface_map`."""
        key = (subject, mesh)
        if key not in self._surfaces:
            folder = self._root / "nsddata" / "ppdata" / subject / "transforms"
            self._surfaces[key] = surface.surface_map(folder, self.geometry(subject), mesh)
        return self._surfaces[key]

    def _anatomy(self, subject: str) -> tuple[Geometry, Atlas]:
        if subject not in self._regions:
            self._check(subject)
            self._regions[subject] = regions.read_atlas(self._root, subject)
        return self._regions[subject]

    def _check(self, subject: str) -> None:
        """Raise unless ``subject`` is one of the tree's."""
        known = self.subjects()
        if subject in known:
            return
        name = self._convention.preparation
        others = [other for other in PREPARATIONS if subject in self._with_betas(other)]
        if others:
            msg = f"{subject} has {others[0]} betas only and {self._root} is read as {name}: preparations are never mixed; open {self._root}#{others[0]}"
            raise RequestError(msg)
        if not known:
            msg = f"no betas in {self._root}: expected {betas.path(self._root, 'subjXX', 1, name)}; download at least one session"
            raise DataMissing(msg)
        msg = f"no subject {subject!r} in {self._root}; it holds {', '.join(known)}"
        raise RequestError(msg)


def _recorded(root: Path) -> Convention:
    """Return the convention that the tree's stores were prepared under; NSD's b3 when there is none."""
    found = prepared.conventions(root)
    names = sorted(set(found.values()) & set(CONVENTIONS))
    if len(names) > 1:
        which = ", ".join(f"{store} as {name}" for store, name in found.items())
        msg = f"the stores of {root} were prepared under different conventions ({which}), which are never mixed; open {root}#{names[0]} or {root}#{names[1]}"
        raise DataInvalid(msg)
    return named(names[0]) if names else DEFAULT
