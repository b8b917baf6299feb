"""Pictures that no generator drew: what the mean training image scores, and what choosing among the training images does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from havir_explorer.data.dataset import Dataset
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.encoding import stored_images
from havir_explorer.evaluate.testset import training_images
from havir_explorer.pipeline import at_side
from havir_explorer.records import FloatArray, IntArray, UInt8Array

Progress = Callable[[float, str], None]
_GROUP = 32
"""Training images in memory at once."""


def mean_image(dataset: Dataset, subject: str, side: int, progress: Progress | None = None) -> UInt8Array:
    """Return the mean of the training images the subject saw, uint8 (side, side, 3)."""
    total, count = np.zeros((side, side, 3)), 0
    for ids in _training(dataset, subject, progress):
        total += at_side(dataset.stimuli(ids), side).sum(0, dtype=np.float64)
        count += len(ids)
    return (total / count).round().astype(np.uint8)


def nearest_images(dataset: Dataset, subject: str, versatile: VersatileDiffusion, decoded: FloatArray, progress: Progress | None = None) -> IntArray:
    """Return the training image whose embedding is nearest each decoded one.

    Parameters
    ----------
    dataset, subject
        Where the training images are.
    versatile : VersatileDiffusion
        Its CLIP image tower embeds them, where no target store holds what it gives.
    decoded : float32 (n, n_tokens, width)
        Decoded image embeddings.
    progress : callable, optional
        Called with the share of training images seen.

    Returns
    -------
    int64 (n,)
        nsd_ids: those of the largest cosine over all tokens, as MindEye retrieves images.
    """
    wanted, store = _unit(decoded), stored_images(dataset, versatile, training_images(dataset, subject))
    best, nearest = np.full(len(wanted), -np.inf, np.float32), np.zeros(len(wanted), np.int64)
    for ids in _training(dataset, subject, progress):
        tokens = versatile.embed_images(dataset.stimuli(ids)) if store is None else store.column("image_embeds", np.searchsorted(store.nsd_ids, ids))
        similar = wanted @ _unit(tokens.astype(np.float32)).T
        place = similar.argmax(1)
        found = similar[np.arange(len(wanted)), place]
        nearest, best = np.where(found > best, ids[place], nearest), np.maximum(found, best)
    return nearest


def _training(dataset: Dataset, subject: str, progress: Progress | None) -> Iterator[IntArray]:
    ids = training_images(dataset, subject)
    for start in range(0, len(ids), _GROUP):
        yield ids[start : start + _GROUP]
        if progress:
            done = min(start + _GROUP, len(ids))
            progress(done / len(ids), f"{done} of {len(ids)} training images")


def _unit(tokens: FloatArray) -> FloatArray:
    flat = tokens.reshape(len(tokens), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
