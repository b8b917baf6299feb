"""What the app shows of a data set and its decoders, opened when first needed and remembered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from havir_explorer.data.dataset import Atlas, Dataset, SurfaceMap
from havir_explorer.errors import RequestError, WeightsInvalid, WeightsMissing, nearest
from havir_explorer.records import BoolArray, Branch, FloatArray, Request, UInt8Array

Progress = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class Fed:
    """How one branch is fed, ready to draw.

    Parameters
    ----------
    vertices : float32 (n_vertices,)
        Mean contribution at each vertex; NaN where there is none.
    table : DataFrame
        One row an ROI and hemisphere, from :func:`havir_explorer.attribute.roi_table`.
    """

    vertices: FloatArray
    table: pd.DataFrame


class World:
    """A data set, opened once, with what the panels ask of it.

    Parameters
    ----------
    dataset : str, Path or Dataset
        As :func:`havir_explorer.open_dataset` takes it, or one that is open already.
    """

    def __init__(self, dataset: str | Path | Dataset = "demo") -> None:
        self.source = dataset
        self._opened: Dataset | None = None
        self._lock = threading.RLock()
        self._trials: dict[str, pd.DataFrame] = {}
        self._fed: dict[tuple[str, Branch], Fed] = {}
        self._splits: dict[str, tuple[BoolArray, BoolArray]] = {}
        self._pictures: dict[int, UInt8Array] = {}

    @property
    def name(self) -> str:
        """What a request calls this data set."""
        return str(self.source) if isinstance(self.source, (str, Path)) else str(self.source.root)

    @property
    def is_open(self) -> bool:
        """True once the data set was opened."""
        return self._opened is not None

    def open(self, progress: Progress | None = None) -> Dataset:
        """Return the data set; the first call opens it, which builds the teaching world where that is asked for and missing."""
        with self._lock:
            if self._opened is None:
                if isinstance(self.source, (str, Path)):
                    from havir_explorer.data import open_dataset

                    self._opened = open_dataset(self.source, progress=progress)
                else:
                    self._opened = self.source
            return self._opened

    def check_subject(self, subject: str) -> None:
        """Raise a RequestError with the nearest names unless the data set has this subject."""
        known = self.open().subjects()
        if subject not in known:
            msg = f"{self.open().name} has no subject {subject!r}; {nearest(subject, known)}"
            raise RequestError(msg)

    def trials(self, subject: str) -> pd.DataFrame:
        """One row a trial (see :class:`~havir_explorer.data.dataset.Dataset`)."""
        with self._lock:
            if subject not in self._trials:
                self.check_subject(subject)
                self._trials[subject] = self.open().trials(subject)
            return self._trials[subject]

    def check_trial(self, subject: str, trial: int) -> None:
        """Raise a RequestError unless the subject has this trial."""
        known = self.trials(subject).index
        if trial not in known:
            msg = f"{subject} of {self.open().name} has trials {known.min()} to {known.max()}; got {trial}"
            raise RequestError(msg)

    def shared(self, subject: str) -> pd.DataFrame:
        """First presentation of each shared picture, one row a picture; the whole table where nothing is shared."""
        table = self.trials(subject)
        chosen = table[table["shared"]] if bool(table["shared"].any()) else table
        return chosen.drop_duplicates("nsd_id")

    def like(self, subject: str, other: str, trial: int) -> int:
        """Return ``other``'s first trial with the picture of ``subject``'s trial, or its first shared trial where it never saw it."""
        shared = self.shared(other)
        same = shared.index[shared["nsd_id"] == self.trials(subject).loc[trial, "nsd_id"]]
        return int(same[0] if len(same) else shared.index[0])

    def picture(self, nsd_id: int) -> UInt8Array:
        """Return a stimulus, uint8 (H, W, 3)."""
        return self.pictures([nsd_id])[0]

    def pictures(self, nsd_ids: list[int]) -> list[UInt8Array]:
        """Return stimuli, each uint8 (H, W, 3)."""
        with self._lock:
            wanted = [i for i in dict.fromkeys(nsd_ids) if i not in self._pictures]
            if wanted:
                if len(self._pictures) > 400:
                    self._pictures.clear()
                    wanted = list(dict.fromkeys(nsd_ids))
                self._pictures.update(zip(wanted, self.open().stimuli(np.array(wanted, np.int64)), strict=True))
            return [self._pictures[i] for i in nsd_ids]

    def atlas(self, subject: str) -> Atlas:
        """Return the subject's ROIs."""
        self.check_subject(subject)
        return self.open().atlas(subject)

    def surface(self, subject: str) -> SurfaceMap:
        """Return where the subject's voxels lie on the mesh that is drawn, whatever mesh the data set has."""
        from havir_explorer.draw.mesh import MESH

        return self.open().surface(subject, MESH)

    def split(self, subject: str) -> tuple[BoolArray, BoolArray]:
        """Return the voxels that the Structural Generator and the Semantic Extractor read: the decoder's own once :meth:`fed` has loaded it.

        Before, those that its manifest names, or the default ones where there is none; no weights are loaded for it.
        """
        return self._splits.get(subject) or self._named(subject)

    def _named(self, subject: str) -> tuple[BoolArray, BoolArray]:
        from havir_explorer.decode.split import choose

        choice = None
        if not self.open().synthetic:  # the shipped decoders read the default split
            from havir_explorer.decode.files import read_manifest
            from havir_explorer.pipeline import decoder_folder

            with suppress(WeightsMissing, WeightsInvalid):  # said when it is loaded
                choice = read_manifest(decoder_folder(self.open(), subject)).choice
        split = choose(self.atlas(subject), choice)
        return split.spatial, split.semantic

    def fed(self, request: Request, branch: Branch) -> Fed:
        """Return how a branch is fed, from the weights of the decoder that the request names."""
        key = (request.subject, branch)
        with self._lock:
            if key not in self._fed:
                self._fed[key] = self._measure(request, branch)
            return self._fed[key]

    def _measure(self, request: Request, branch: Branch) -> Fed:
        from havir_explorer import attribute, pipeline
        from havir_explorer.draw.cortex import cortical_map

        dataset, havir, _ = pipeline.models(request)
        self._splits[request.subject] = havir.spatial, havir.semantic
        contribution = attribute.contribution(havir, branch)
        repeats = attribute.tested_repeats(dataset.trials(request.subject))
        table = attribute.roi_table(contribution, dataset.atlas(request.subject), dataset.ncsnr(request.subject), repeats)
        return Fed(cortical_map(contribution.values, self.surface(request.subject)), table)
