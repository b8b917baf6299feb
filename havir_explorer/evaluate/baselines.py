"""Pictures that no generator drew: what the mean training image scores, and what choosing among the training images does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from havir_explorer.data.dataset import Dataset
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.evaluate.testset import training_images
from havir_explorer.pipeline import at_side
from havir_explorer.records import FloatArray, IntArray, UInt8Array

Progress = Callable[[float, str], None]
_GROUP = 32
"""Training images in memory at once."""


def mean_image(dataset: Dataset, subject: str, side: int, progress: Progress | None = None) -> UInt8Array:
    """Return the mean of the training images the subject saw, uint8 (side, side, 3)."""
    total, count = np.zeros((side, side, 3)), 0
    for _, pictures in _training(dataset, subject, progress):
        total += at_side(pictures, side).sum(0, dtype=np.float64)
        count += len(pictures)
    return (total / count).round().astype(np.uint8)


def nearest_images(dataset: Dataset, subject: str, versatile: VersatileDiffusion, decoded: FloatArray, progress: Progress | None = None) -> IntArray:
    """Return the training image whose embedding is nearest each decoded one.

    Parameters
    ----------
    dataset, subject
        Where the training images are.
    versatile : VersatileDiffusion
        Its CLIP image tower embeds them.
    decoded : float32 (n, n_tokens, width)
        Decoded image embeddings.
    progress : callable, optional
        Called with the share of training images seen.

    Returns
    -------
    int64 (n,)
        nsd_ids: those of the largest cosine over all tokens, as MindEye retrieves images.
    """
    wanted = _unit(decoded)
    best, nearest = np.full(len(wanted), -np.inf, np.float32), np.zeros(len(wanted), np.int64)
    for ids, pictures in _training(dataset, subject, progress):
        similar = wanted @ _unit(versatile.embed_images(pictures)).T
        place = similar.argmax(1)
        found = similar[np.arange(len(wanted)), place]
        nearest, best = np.where(found > best, ids[place], nearest), np.maximum(found, best)
    return nearest


def _training(dataset: Dataset, subject: str, progress: Progress | None) -> Iterator[tuple[IntArray, UInt8Array]]:
    ids = training_images(dataset, subject)
    for start in range(0, len(ids), _GROUP):
        some = ids[start : start + _GROUP]
        yield some, dataset.stimuli(some)
        if progress:
            progress((start + len(some)) / len(ids), f"{start + len(some)} of {len(ids)} training images")


def _unit(tokens: FloatArray) -> FloatArray:
    flat = tokens.reshape(len(tokens), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
