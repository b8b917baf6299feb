"""What the decoders are trained towards: the stimuli and captions as the generator itself encodes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from havir_explorer.data.dataset import Dataset
from havir_explorer.errors import DataMissing
from havir_explorer.records import FloatArray, IntArray, UInt8Array

CaptionTarget = Literal["mean", "first"]
HeldArray = npt.NDArray[np.float16 | np.float32]
"""Targets as they are held: float32 in memory, float16 on disk."""
_CHUNK = 50


class Encoder(Protocol):
    """The generator's own encoders."""

    def encode_latents(self, pictures: UInt8Array) -> FloatArray:
        """Mode of the autoencoder's posterior times its scaling factor, float32 (n, 4, h, w)."""

    def embed_images(self, pictures: UInt8Array) -> FloatArray:
        """Normalised CLIP image tokens, float32 (n, n_tokens, width)."""

    def embed_texts(self, texts: list[str]) -> FloatArray:
        """Normalised CLIP text tokens, float32 (n, n_tokens, width)."""


class Shapes(NamedTuple):
    """Sizes of one picture's targets: ``(4, h, w)``, ``(n_image_tokens, width)`` and ``(n_text_tokens, width)``."""

    latents: tuple[int, ...]
    image_embeds: tuple[int, ...]
    text_embeds: tuple[int, ...]


class Rows(NamedTuple):
    """Targets of some pictures, one row each; float16 or float32, as their source holds them."""

    latents: HeldArray
    image_embeds: HeldArray
    text_embeds: HeldArray


class TargetSource(Protocol):
    """Where training finds its targets: :class:`Targets` in memory, or a store on disk that is larger than memory."""

    @property
    def nsd_ids(self) -> IntArray:
        """Which picture each row belongs to, int64 (n,), ascending, no id twice."""

    @property
    def shapes(self) -> Shapes:
        """Sizes of one picture's targets."""

    @property
    def generator(self) -> tuple[float, ...]:
        """Fingerprint of the autoencoder and CLIP they were made with (``diffuse.fingerprint``); empty where it is not known."""

    def rows(self, indices: IntArray) -> Rows:
        """Return the targets at some places of ``nsd_ids``, in the order asked for, repeats allowed; int (B,), 0-based."""


@dataclass(frozen=True, eq=False)
class Targets:
    """Encoded stimuli, one row a picture: a :class:`TargetSource` in memory.

    Parameters
    ----------
    latents : float32 (n, 4, h, w)
    image_embeds : float32 (n, n_image_tokens, width)
    text_embeds : float32 (n, n_text_tokens, width)
    nsd_ids : int64 (n,)
        Which picture each row belongs to; ascending, no id twice.
    generator : tuple of float
        Fingerprint of the autoencoder and CLIP they were made with (``diffuse.fingerprint``); empty where it is not known.
    """

    latents: FloatArray
    image_embeds: FloatArray
    text_embeds: FloatArray
    nsd_ids: IntArray
    generator: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.nsd_ids)

    @property
    def shapes(self) -> Shapes:
        """Sizes of one picture's targets."""
        return Shapes(self.latents.shape[1:], self.image_embeds.shape[1:], self.text_embeds.shape[1:])

    def rows(self, indices: IntArray) -> Rows:
        """Return the targets at some places of ``nsd_ids``, float32, copied."""
        return Rows(self.latents[indices], self.image_embeds[indices], self.text_embeds[indices])


def build(
    dataset: Dataset,
    nsd_ids: IntArray,
    encoder: Encoder,
    *,
    captions: CaptionTarget = "mean",
    progress: Callable[[float, str], None] | None = None,
) -> Targets:
    """Encode the pictures and captions of ``nsd_ids``.

    The structural target is the autoencoder's encoding of the stimulus. The image target is the stimulus's own CLIP tokens (HAVIR's first
    version used a picture synthesised from the caption instead). The text target is the mean over the picture's captions, as in
    Brain-Diffuser, or its first caption alone.

    Parameters
    ----------
    dataset : Dataset
    nsd_ids : int64 (n,)
    encoder : Encoder
        The generator the decoder will drive.
    captions : {'mean', 'first'}
        How several captions become one target.
    progress : callable, optional
        Called with the share done in [0, 1] and a line of text.

    Returns
    -------
    Targets

    Raises
    ------
    DataMissing
        A picture has no caption.
    """
    ids = np.unique(np.asarray(nsd_ids, dtype=np.int64))
    parts: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        pictures = dataset.stimuli(chunk)
        parts.append((encoder.encode_latents(pictures), encoder.embed_images(pictures), _texts(dataset, chunk, encoder, captions)))
        if progress:
            done = start + len(chunk)
            progress(done / len(ids), f"encoded {done} of {len(ids)} pictures")
    latents, images, texts = (np.concatenate(rows).astype(np.float32, copy=False) for rows in zip(*parts, strict=True))
    return Targets(latents, images, texts, ids)


def _texts(dataset: Dataset, nsd_ids: IntArray, encoder: Encoder, captions: CaptionTarget) -> FloatArray:
    groups = [[c for c in dataset.captions(int(nsd_id)) if c.strip()] for nsd_id in nsd_ids]
    for nsd_id, group in zip(nsd_ids, groups, strict=True):
        if not group:
            msg = f"picture {nsd_id} of {dataset.name} has no caption under {dataset.root}; the text target needs at least one: add the captions file"
            raise DataMissing(msg)
    if captions == "first":
        groups = [group[:1] for group in groups]
    embeds = encoder.embed_texts([caption for group in groups for caption in group])
    edges = np.cumsum([0, *(len(group) for group in groups)])
    return np.stack([embeds[low:high].mean(0) for low, high in itertools.pairwise(edges)])
