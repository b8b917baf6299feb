"""``havir train``: encode what a subject saw, then fit both branches of HAVIR to it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from havir_explorer import encoding, paths
from havir_explorer.cli_show import console, progress_bar
from havir_explorer.cli_train_asked import Asked, pixel_edges
from havir_explorer.data import open_dataset
from havir_explorer.decode.manifest import Record
from havir_explorer.decode.options import Options
from havir_explorer.decode.split import choose
from havir_explorer.decode.targets import CaptionTarget
from havir_explorer.decode.train import STEPS, fit
from havir_explorer.errors import OutputError, RequestError, nearest


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Parameters
    ----------
    weights : Path
        Folder of the decoder.
    subject : str
    images : int
        Pictures offered for training.
    wall_seconds : float
    record : Record
        As written beside the weights.
    """

    weights: Path
    subject: str
    images: int
    wall_seconds: float
    record: Record


def caption_target(asked: str | None) -> CaptionTarget | None:
    """Return the text target asked for.

    Raises
    ------
    RequestError
        It is neither ``mean`` nor ``first``.
    """
    targets_by_name: dict[str | None, CaptionTarget | None] = {None: None, "mean": "mean", "first": "first"}
    if asked in targets_by_name:
        return targets_by_name[asked]
    msg = f"--captions takes mean or first; got {asked!r}"
    raise RequestError(msg)


def train(
    dataset: str,
    subject: str,
    generator: str,
    out: Path | None,
    *,
    captions: CaptionTarget | None,
    steps: int | None,
    seed: int,
    resume: bool,
    asked: Asked,
) -> Trained:
    """Train one subject's decoder on every image that is not shared, and say what came of it.

    Its targets come from the data set's store under the cache folder, to which those that it lacks are added (:mod:`havir_explorer.encoding`).

    Raises
    ------
    RequestError
        The subject is unknown, or the voxels asked for leave a branch without any.
    OutputError
        The folder cannot be made or written.
    """
    tree = open_dataset(dataset)
    if subject not in tree.subjects():
        msg = f"{tree.name} has no subject {subject!r}; {nearest(subject, tree.subjects())}"
        raise RequestError(msg)
    choose(tree.atlas(subject), asked.choice)  # said before anything is encoded
    folder = _folder(out or paths.cache_folder() / "havir" / tree.name / subject)
    started = time.perf_counter()
    trials = tree.trials(subject)
    seen = np.unique(trials.loc[~trials["shared"], "nsd_id"].to_numpy(dtype=np.int64))
    with progress_bar("looking at targets") as show:
        work = encoding.prepare(tree, seen, generator, captions=captions, progress=show)
    if work.plan.todo:
        console(to_stderr=True).print(str(work))
    with progress_bar("encoding stimuli") as show:
        store = encoding.make(work, progress=show)
    wanted, options = store.read(seen), asked.options(Options(caption_target=store.caption_target))
    edges = pixel_edges(tree, work.encode.model) if options.pixel_edges else None
    count = STEPS if steps is None else steps
    with progress_bar("training") as show:
        model = fit(tree, subject, wanted, folder, steps=count, seed=seed, progress=show, resume=resume, options=options, edges=edges)
    return Trained(folder, subject, len(seen), round(time.perf_counter() - started, 1), model.manifest.record)


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        msg = f"cannot make the folder {folder}: {fault.strerror}; give another one with --out"
        raise OutputError(msg) from fault
    if not os.access(folder, os.W_OK):
        msg = f"cannot write in the folder {folder}: it is not allowed there; give another one with --out"
        raise OutputError(msg)
    return folder
