"""Draw every condition, score every condition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from havir_explorer import measure
from havir_explorer.evaluate.conditions import ALL, condition
from havir_explorer.evaluate.drawing import Progress, chunks, draw
from havir_explorer.evaluate.scoring import score
from havir_explorer.evaluate.tables import Evaluation
from havir_explorer.evaluate.testset import TestSet, collect
from havir_explorer.pipeline import models
from havir_explorer.records import Request, Settings, UInt8Array


def evaluate(
    dataset: str = "demo",
    subject: str = "subj01",
    *,
    conditions: Sequence[str] = ALL,
    limit: int = 100,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
    generator: str = "demo",
    decoder: str = "",
    clip: measure.Tower | None = None,
) -> Evaluation:
    """Redraw and score the shared test images of a subject.

    Parameters
    ----------
    dataset, subject, generator, decoder : str
        As in :class:`~havir_explorer.records.Request`.
    conditions : sequence of str
        Names of :data:`~havir_explorer.evaluate.conditions.CONDITIONS`.
    limit : int
        At most this many images, in ascending order of their ids; 2 or more.
    seed : int
        Image i is drawn with noise of ``seed`` + i, the same in every condition.
    settings : Settings, optional
        Its seed is ignored.
    progress : callable, optional
        Called with the share done in [0, 1] and a line of text; raising stops the evaluation.
    clip : Tower, optional
        Another feature network for the CLIP scores, e.g. :func:`~havir_explorer.measure.open_clip_tower`; the generator's own when left out.

    Returns
    -------
    Evaluation

    Raises
    ------
    RequestError
        An unknown condition, a limit below 2, fewer than two test images, or one that the decoder has seen in training.
    """
    for name in conditions:
        condition(name)
    base = dataclasses.replace(settings or Settings(), seed=seed)
    request = Request(dataset=dataset, subject=subject, generator=generator, decoder=decoder, settings=base)
    data, havir, versatile = models(request)
    tower = clip or measure.Tower(measure.OWN_TOWER, versatile.image_features)
    tested = collect(data, subject, limit, versatile.side)
    havir.manifest.check_unseen(tested.nsd_ids)
    frames = []
    for place, name in enumerate(conditions):
        pictures = draw_all(name, tested, request, progress and partial(_part, progress, place, len(conditions)))
        frames.append(labelled(name, tested, base, score(pictures, tested.stimuli, tower)))
    return Evaluation(data.name, subject, data.synthetic, base, pd.concat(frames, ignore_index=True), tower.name)


def draw_all(name: str, tested: TestSet, request: Request, progress: Progress | None = None) -> UInt8Array:
    """Draw every test image under one condition, uint8 (n, H, W, 3), one chunk after the other."""
    planned, count = chunks(name, tested.nsd_ids, request), len(tested.nsd_ids)
    pictures, done = np.empty_like(tested.stimuli), 0
    for chunk in planned:
        stop = done + len(chunk.nsd_ids)
        pictures[done:stop] = draw(chunk, progress=progress and partial(_part, progress, done / len(chunk.nsd_ids), count / len(chunk.nsd_ids)))
        done = stop
        if progress:
            progress(done / count, f"{name}: {done} of {count} pictures")
    return pictures


def labelled(name: str, tested: TestSet, base: Settings, scores: pd.DataFrame) -> pd.DataFrame:
    """Return a condition's scores as rows of an :class:`~havir_explorer.evaluate.tables.Evaluation`."""
    seeds = (base.seed + np.arange(len(tested.nsd_ids))) % 2**32
    labels = pd.DataFrame({"condition": name, "nsd_id": tested.nsd_ids, "trial": tested.trials, "seed": seeds})
    return pd.concat((labels, scores), axis=1)


def _part(progress: Progress, before: float, count: float, share: float, line: str) -> None:
    """Report a part's share as the whole's: ``before`` parts of ``count`` are done."""
    progress((before + share) / count, line)
