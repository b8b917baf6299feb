"""Many requests, fewer runs: those that share their models and schedule are drawn together, as many at once as fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter

import numpy as np

from havir_explorer.data import open_dataset
from havir_explorer.data.dataset import Dataset
from havir_explorer.diffuse.memory import Notice, fitting, in_batches
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.paint import paint
from havir_explorer.diffuse.sampler import SHARED, generate
from havir_explorer.pipeline import Clock, OnStep, Pictures, finished, masked, measured, models, scored, shown
from havir_explorer.records import Reconstruction, Request, Score, Step, UInt8Array

OnResult = Callable[[int, Reconstruction], None]
"""Called with a request's place in the list and its result, as soon as that is finished; raising stops the rest."""

_SHARED = attrgetter("dataset", "subject", "generator", "decoder", *(f"settings.{name}" for name in SHARED))


def run_many(
    requests: Sequence[Request],
    on_result: OnResult | None = None,
    *,
    on_step: OnStep | None = None,
    on_notice: Notice | None = None,
    batch: int | None = None,
) -> tuple[Reconstruction, ...]:
    """Redraw many requests, those together that can be.

    Parameters
    ----------
    requests : sequence of Request
        Those with the same subject, models, steps, strength and scheduler are drawn in batches; masks, trials, seeds, guidance and mix may differ.
    on_result : callable, optional
        See :data:`OnResult`.
    on_step : callable, optional
        As in :func:`havir_explorer.pipeline.run`, once a batch; the preview is of the batch's first picture. Raising (``Cancelled``) stops the
        rest; what ``on_result`` has been given stays finished.
    on_notice : callable, optional
        Told in a sentence that memory ran out and fewer are drawn at once.
    batch : int, optional
        At most this many at once; what fits into the free memory when left out.

    Returns
    -------
    tuple of Reconstruction
        In the order of ``requests``. Each is the picture of :func:`havir_explorer.pipeline.run` up to rounding: 1e-4 in float32 latents.
        Its ``seconds`` are its share of its batch's.

    Raises
    ------
    HavirError
        As :func:`havir_explorer.pipeline.run`; DeviceOutOfMemory when not even one picture fits.
    """
    results: dict[int, Reconstruction] = {}
    for places in _groups(requests):
        size = fitting(models(requests[places[0]])[2], len(places) if batch is None else min(batch, len(places)))
        chosen = [requests[place] for place in places]
        for some, done in in_batches(len(places), size, partial(_together, chosen, on_step, on_notice), on_notice):
            for place, result in zip((places[index] for index in some), done, strict=True):
                results[place] = result
                if on_result is not None:
                    on_result(place, result)
    return tuple(results[place] for place in range(len(requests)))


def _groups(requests: Sequence[Request]) -> list[list[int]]:
    """The places of requests that can be drawn together, in the order in which the first of each was asked for."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(_SHARED(request), []).append(place)
    return list(groups.values())


def _together(group: Sequence[Request], on_step: OnStep | None, on_notice: Notice | None, places: range) -> list[Reconstruction]:
    requests = group[places.start : places.stop]
    clock = Clock(on_step or _ignore)
    with clock.stage("load"):
        dataset, decoder, generator = models(requests[0])
        responses = [measured(open_dataset(request.dataset), request) for request in requests]
    with clock.stage("decode"):
        decoded = decoder.decode(np.concatenate([masked(dataset, *pair) for pair in zip(requests, responses, strict=True)]))
        different, which = np.unique(decoded.latents, axis=0, return_inverse=True)  # a lesion among the semantic voxels leaves them as they are
        structures = paint(generator, different, on_notice=on_notice)[which.ravel()]
    with clock.stage("diffuse"):
        settings = [request.settings for request in requests]
        drawn = generate(generator, decoded, settings, on_step=lambda done, count, clean: clock.step(done, count, generator.preview(clean[0])))
        pictures = paint(generator, drawn.latents, on_notice=on_notice) if drawn.steps_run else structures
    with clock.stage("measure"):
        found = _scored(dataset, generator, requests, pictures)
    seconds = tuple((stage, spent / len(requests)) for stage, spent in clock.seconds)
    return [
        finished(request, dataset, decoder, Pictures(picture, structure, stimulus), scores, seconds, drawn)
        for request, picture, structure, (stimulus, scores) in zip(requests, pictures, structures, found, strict=True)
    ]


def _scored(
    dataset: Dataset, generator: VersatileDiffusion, requests: Sequence[Request], pictures: UInt8Array
) -> list[tuple[UInt8Array, tuple[Score, ...]]]:
    """Return each request's stimulus and scores; those of one stimulus are scored together."""
    ids = np.array([shown(dataset, request) for request in requests])
    found: dict[int, tuple[UInt8Array, tuple[Score, ...]]] = {}
    for nsd_id in np.unique(ids):
        places = np.flatnonzero(ids == nsd_id)
        stimulus, scores = scored(dataset, generator, requests[places[0]], pictures[places])
        found |= {int(place): (stimulus, one) for place, one in zip(places, scores, strict=True)}
    return [found[place] for place in range(len(requests))]


def _ignore(_step: Step) -> None:
    pass
