"""One chunk of test images under one condition, and its pictures: the part of an evaluation that takes the time.

A chunk says all that a process needs to draw it, in values that can be sent anywhere; a picture depends on its own image, condition, seed and
settings alone, whatever shares its chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from havir_explorer.data.dataset import Dataset
from havir_explorer.diffuse.memory import fitting, in_batches
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.paint import paint
from havir_explorer.diffuse.sampler import generate
from havir_explorer.evaluate.baselines import mean_image, nearest_images
from havir_explorer.evaluate.conditions import condition
from havir_explorer.evaluate.testset import mean_responses
from havir_explorer.pipeline import at_side, models
from havir_explorer.records import Decoded, FloatArray, IntArray, Request, Settings, UInt8Array

Progress = Callable[[float, str], None]
"""Called with the share done in [0, 1] and a line of text; raising stops the work."""
BATCH = 20


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some test images under one condition: hashable, and small enough to send to another process.

    Parameters
    ----------
    condition : str
        A name of :data:`~havir_explorer.evaluate.conditions.CONDITIONS`.
    nsd_ids : tuple of int
        The test images.
    sources : tuple of int
        The image whose responses are decoded in place of each: itself, or another in ``wrong_trial``.
    seeds : tuple of int
        Of each picture's noise.
    request : Request
        Data, models, repeats (averaged, or the first alone) and settings before the condition's changes; trial, mask and seed are ignored.
    """

    condition: str
    nsd_ids: tuple[int, ...]
    sources: tuple[int, ...]
    seeds: tuple[int, ...]
    request: Request

    @property
    def each(self) -> list[Settings]:
        """The settings of each picture."""
        settings = condition(self.condition).settings(self.request.settings)
        return [dataclasses.replace(settings, seed=seed) for seed in self.seeds]


def chunks(name: str, nsd_ids: IntArray, request: Request, *, size: int = BATCH) -> tuple[Chunk, ...]:
    """Cut the test images of one condition into chunks.

    Parameters
    ----------
    name : str
        Of the condition.
    nsd_ids : int64 (n,)
        All test images, in order; image i has the seed ``request.settings.seed`` + i in every condition.
    request : Request
        Data, models, repeats and settings; trial and mask are ignored.
    size : int
        At most this many images a chunk; pictures that are not generated come in one, because every chunk would go through the training images.

    Returns
    -------
    tuple of Chunk
        Their images, one chunk after the other, are ``nsd_ids``.

    Raises
    ------
    RequestError
        No condition has that name.
    """
    wanted = condition(name)
    sources = np.roll(nsd_ids, -1) if wanted.responses == "wrong" else nsd_ids
    seeds = (request.settings.seed + np.arange(len(nsd_ids))) % 2**32
    step = size if wanted.pictures == "generated" else max(len(nsd_ids), 1)
    parts = [slice(start, start + step) for start in range(0, len(nsd_ids), step)]
    return tuple(Chunk(name, tuple(nsd_ids[some].tolist()), tuple(sources[some].tolist()), tuple(seeds[some].tolist()), request) for some in parts)


def draw(chunk: Chunk, *, progress: Progress | None = None) -> UInt8Array:
    """Return the pictures of a chunk, uint8 (n, H, W, 3), in the order of its images.

    Parameters
    ----------
    chunk : Chunk
    progress : callable, optional
        See :data:`Progress`; called at every denoising step.

    Raises
    ------
    HavirError
        Data or weights are missing or do not fit; DeviceOutOfMemory when not even one picture fits.
    """
    return _SOURCES[condition(chunk.condition).pictures](chunk, progress)


def _generated(chunk: Chunk, progress: Progress | None) -> UInt8Array:
    dataset, decoder, versatile = models(chunk.request)
    responses, each, count = _responses(dataset, chunk), chunk.each, len(chunk.nsd_ids)

    def work(places: range) -> UInt8Array:
        some = slice(places.start, places.stop)
        return _redrawn(versatile, decoder.decode(responses[some]), each[some], _within(progress, chunk.condition, places, count))

    return np.concatenate([done for _, done in in_batches(count, fitting(versatile, count), work)])


def _mean(chunk: Chunk, progress: Progress | None) -> UInt8Array:
    dataset, _, versatile = models(chunk.request)
    return np.repeat(mean_image(dataset, chunk.request.subject, versatile.side, progress)[None], len(chunk.nsd_ids), 0)


def _nearest(chunk: Chunk, progress: Progress | None) -> UInt8Array:
    dataset, decoder, versatile = models(chunk.request)
    responses = _responses(dataset, chunk)
    embeds = np.concatenate([decoder.decode(responses[start : start + BATCH]).image_embeds for start in range(0, len(responses), BATCH)])
    nearest = nearest_images(dataset, chunk.request.subject, versatile, embeds, progress)
    return np.concatenate([at_side(dataset.stimuli(nearest[start : start + BATCH]), versatile.side) for start in range(0, len(nearest), BATCH)])


_SOURCES = {"generated": _generated, "mean": _mean, "nearest": _nearest}


def _responses(dataset: Dataset, chunk: Chunk) -> FloatArray:
    sources = np.array(chunk.sources, np.int64)
    if condition(chunk.condition).responses == "none":
        return np.zeros_like(mean_responses(dataset, chunk.request.subject, sources[:1])).repeat(len(sources), 0)
    return mean_responses(dataset, chunk.request.subject, sources, chunk.request.repeats)


def _redrawn(versatile: VersatileDiffusion, decoded: Decoded, each: Sequence[Settings], on_step: Callable[[int, int, Tensor], None]) -> UInt8Array:
    return paint(versatile, generate(versatile, decoded, each, on_step=on_step).latents)


def _within(progress: Progress | None, name: str, places: range, count: int) -> Callable[[int, int, Tensor], None]:
    """Turn a batch's steps into the chunk's share."""

    def on_step(done: int, steps: int, _clean: Tensor) -> None:
        if progress is not None:
            progress((places.start + len(places) * done / steps) / count, f"{name}: step {done} of {steps}")

    return on_step
