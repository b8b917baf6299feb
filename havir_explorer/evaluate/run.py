"""Draw every condition, score every condition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.errors import RequestError, WeightsMissing
from havir_explorer.evaluate.conditions import CONDITIONS, Condition, chosen
from havir_explorer.evaluate.costs import Expected, expected
from havir_explorer.evaluate.drawing import Chunk, Progress, chunks, draw
from havir_explorer.evaluate.scoring import TOWER, Gauge, available, gauges, score
from havir_explorer.evaluate.tables import Column, Evaluation
from havir_explorer.evaluate.testset import TestSet, collect
from havir_explorer.measure import protocols
from havir_explorer.measure.records import OWN_TOWER, Tower
from havir_explorer.pipeline import LINEAR, decoder_folder, models
from havir_explorer.records import IntArray, Repeats, Request, Settings, UInt8Array

Drawer = Callable[[Sequence[Chunk], Progress], Iterator[tuple[int, UInt8Array]]]
"""Chunks of one condition and where to report, to the place of each and its pictures, in any order."""


def in_turn(planned: Sequence[Chunk], progress: Progress) -> Iterator[tuple[int, UInt8Array]]:
    """Draw chunks one after the other in this process; the default :data:`Drawer`."""
    whole, done = sum(len(chunk.nsd_ids) for chunk in planned), 0
    for place, chunk in enumerate(planned):
        pictures = draw(chunk, progress=partial(_part, progress, done / len(chunk.nsd_ids), whole / len(chunk.nsd_ids)))
        done += len(chunk.nsd_ids)
        progress(done / whole, f"{chunk.condition}: {done} of {whole} pictures")
        yield place, pictures


def evaluate(
    dataset: str = "demo",
    subject: str = "subj01",
    *,
    conditions: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
    generator: str = "demo",
    decoder: str = "",
    linear: str = "",
    clip: Tower | None = None,
    protocol: str = "",
    networks: Path | None = None,
    split: str = "",
    repeats: Repeats = "mean",
    drawer: Drawer = in_turn,
    on_cost: Callable[[Expected], None] | None = None,
) -> Evaluation:
    """Redraw and score the test images of a subject.

    Parameters
    ----------
    dataset, subject, generator, decoder : str
        As in :class:`~havir_explorer.records.Request`.
    conditions : sequence of str
        Names of :data:`~havir_explorer.evaluate.conditions.CONDITIONS` or of its groups; all that can be drawn when empty.
    linear : str
        Folder of the linear decoder of the condition ``linear``; the one that is shipped or that ``havir train`` has made when empty.
    limit : int, optional
        At most this many images, in ascending order of their ids; 2 or more, all when left out.
    seed : int
        Image i is drawn with noise of ``seed`` + i, the same in every condition.
    settings : Settings, optional
        Its seed is ignored.
    progress : callable, optional
        Called with the share done in [0, 1] and a line of text; raising stops the evaluation.
    clip : Tower, optional
        Another feature network for the own protocol's CLIP scores; the generator's own when left out.
    protocol : str
        A name of :data:`~havir_explorer.measure.protocols.PROTOCOLS`; when empty, ``own`` for the teaching world and ``me2`` for everything else.
    networks : Path, optional
        Where the feature networks' checkpoints are; torch's hub folder when left out.
    split : str
        ``shared1000``, ``shared982`` or ``special515``; every shared image when empty.
    repeats : {'mean', 'single'}
        Responses averaged over an image's presentations, or that to the first alone.
    drawer : callable
        Draws the chunks of a condition, in this process or elsewhere; see :data:`Drawer`.
    on_cost : callable, optional
        Told what it will take once that is known, before the first picture; raising stops the evaluation.

    Returns
    -------
    Evaluation

    Raises
    ------
    RequestError
        An unknown condition, protocol or split, a limit below 2, fewer than two test images, or one that the decoder was trained on.
    WeightsMissing, WeightsInvalid
        A condition needs a tower that the generator has not; a feature network's checkpoint is damaged. Absent ones are no error.
    """
    asked_for, tell = chosen(conditions), progress or _silent
    asked = protocols.protocol(protocol) if protocol else None
    base = dataclasses.replace(settings or Settings(), seed=seed)
    request = Request(dataset=dataset, subject=subject, generator=generator, decoder=decoder, settings=base, repeats=repeats)
    data, _, versatile = models(request)
    tested = collect(data, subject, limit, split)
    linear = linear or (LINEAR if decoder_folder(data, subject, LINEAR).is_dir() else "")
    requests = {"own": request, "linear": dataclasses.replace(request, decoder=linear)}
    wanted = _drawable(asked_for, versatile, linear)
    for whose in dict.fromkeys(condition.decoder for condition in wanted):
        models(requests[whose])[1].manifest.check_unseen(tested.nsd_ids)
    tower = clip or (Tower(OWN_TOWER, versatile.image_features) if versatile.sees() else None)
    used = _protocol(asked, tower, synthetic=data.synthetic)
    measures, missing = available(used, tower, networks)
    if on_cost is not None:
        on_cost(expected(wanted, requests, len(tested.nsd_ids), versatile.side, [lack.metric for lack in missing]))
    ready = gauges(used, measures, tested.stimuli, side=versatile.side, tower=tower, folder=networks, device=str(versatile.device))
    left_out = () if asked_for else tuple(lack for condition in CONDITIONS.values() if (lack := _lacks(condition, versatile, linear)))
    frames = []
    for place, condition in enumerate(wanted):
        planned = chunks(condition.name, tested.nsd_ids, requests[condition.decoder])
        pictures = gathered(drawer(planned, partial(_part, tell, place, len(wanted))), planned)
        frames.append(pd.concat((_labels(condition, tested, base, used), score(pictures, ready)), axis=1))
    rows = pd.concat(frames, ignore_index=True)
    return Evaluation(data.name, subject, data.synthetic, base, rows, tuple(_column(g) for g in ready), missing, used, split, repeats, left_out)


def gathered(drawn: Iterator[tuple[int, UInt8Array]], planned: Sequence[Chunk]) -> UInt8Array:
    """Return the pictures of a condition's chunks in order, uint8 (n, H, W, 3)."""
    starts = np.cumsum([0, *(len(chunk.nsd_ids) for chunk in planned)])
    pictures: UInt8Array | None = None
    for place, some in drawn:
        if pictures is None:
            pictures = np.empty((starts[-1], *some.shape[1:]), np.uint8)
        pictures[starts[place] : starts[place + 1]] = some
    if pictures is None:
        msg = "no picture was drawn: the list of test images is empty"
        raise RequestError(msg)
    return pictures


def _drawable(asked_for: Sequence[Condition], versatile: VersatileDiffusion, linear: str) -> tuple[Condition, ...]:
    """Return the conditions asked for, refused now if one cannot be drawn, or every one that can."""
    lacks = [lack for condition in asked_for if (lack := _lacks(condition, versatile, linear))]
    if lacks:
        raise WeightsMissing(lacks[0])
    return tuple(asked_for) or tuple(condition for condition in CONDITIONS.values() if not _lacks(condition, versatile, linear))


def _lacks(condition: Condition, versatile: VersatileDiffusion, linear: str) -> str:
    """Say what a condition would need to be drawn and is not there; empty where nothing is missing."""
    if condition.decoder == "linear" and not linear:
        return "the condition linear needs a linear decoder: train one with `havir train --method linear`, or name its folder with --linear"
    if condition.pictures == "nearest" and not versatile.sees():
        return f"nearest_image embeds the training images, and this generator has no CLIP image tower; get one with: {TOWER}"
    return ""


def _protocol(asked: protocols.Protocol | None, tower: Tower | None, *, synthetic: bool) -> protocols.Protocol:
    used = asked or protocols.protocol("own" if synthetic else "me2")
    return protocols.own(tower.name) if tower and any(measure.network == protocols.OWN_NETWORK for measure in used.measures) else used


def _labels(condition: Condition, tested: TestSet, base: Settings, used: protocols.Protocol) -> pd.DataFrame:
    seeds: IntArray = (base.seed + np.arange(len(tested.nsd_ids))) % 2**32
    named = {"condition": condition.name, "kind": condition.kind, "protocol": used.name}
    return pd.DataFrame({**named, "nsd_id": tested.nsd_ids, "trial": tested.trials, "seed": seeds})


def _column(gauge: Gauge) -> Column:
    metric = gauge.measure.metric
    return Column(metric.name, gauge.chance(), metric.higher_is_better, metric.protocol)


def _part(progress: Progress, before: float, count: float, share: float, line: str) -> None:
    """Report a part's share as the whole's: ``before`` parts of ``count`` are done."""
    progress((before + share) / count, line)


def _silent(_share: float, _line: str) -> None:
    pass
