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
"""How several captions become one text target."""
ImageSource = Literal["stimulus", "synthesised"]
"""Which picture the image tokens are of: the one the subject saw, or one that the generator drew from the text target alone (HAVIR's first version)."""
Kind = Literal["latents", "image_embeds", "text_embeds"]
"""The three targets of a picture."""
HeldArray = npt.NDArray[np.float16 | np.float32]
"""Targets as they are held: float32 in memory, float16 on disk."""
MOST_CAPTIONS = 5
"""Of a picture, as in Brain-Diffuser; a few of COCO's have six or seven."""
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

    def column(self, kind: Kind, indices: IntArray) -> HeldArray:
        """Return one of the three targets alone: latents are a sixteenth of what a picture's targets take."""


Draw = Callable[[FloatArray, IntArray], UInt8Array]
"""Draws a picture from each text target: called with text tokens (n, n_tokens, width) and nsd_ids (n,), returns uint8 (n, H, W, 3)."""


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

    def column(self, kind: Kind, indices: IntArray) -> HeldArray:
        """Return one of the three targets at some places of ``nsd_ids``, float32, copied."""
        column: HeldArray = getattr(self, kind)[indices]
        return column


def build(
    dataset: Dataset,
    nsd_ids: IntArray,
    encoder: Encoder,
    *,
    captions: CaptionTarget = "mean",
    progress: Callable[[float, str], None] | None = None,
) -> Targets:
    """Encode the pictures and captions of ``nsd_ids``, in memory.

    Parameters
    ----------
    dataset : Dataset
    nsd_ids : int64 (n,)
    encoder : Encoder
        The generator the decoder will drive.
    captions : {'mean', 'first'}
        See :func:`encode`.
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
    parts: list[Rows] = []
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        parts.append(encode(dataset, chunk, encoder, captions=captions))
        if progress:
            done = start + len(chunk)
            progress(done / len(ids), f"encoded {done} of {len(ids)} pictures")
    latents, images, texts = (np.concatenate(rows).astype(np.float32, copy=False) for rows in zip(*parts, strict=True))
    return Targets(latents, images, texts, ids)


def encode(dataset: Dataset, nsd_ids: IntArray, encoder: Encoder, *, captions: CaptionTarget = "mean", draw: Draw | None = None) -> Rows:
    """Encode some pictures and their captions together.

    The structural target is the autoencoder's encoding of the stimulus. The image target is the stimulus's own CLIP tokens, or those of a picture drawn from
    the text target alone, as in HAVIR's first version. The text target is the mean over the picture's first five captions that are not
    empty, as in Brain-Diffuser, or its first caption alone.

    Parameters
    ----------
    dataset : Dataset
    nsd_ids : int64 (n,)
        Any order.
    encoder : Encoder
    captions : {'mean', 'first'}
        How several captions become one target.
    draw : callable, optional
        Draws the pictures whose tokens become the image target.

    Returns
    -------
    Rows
        float32, in the order asked for.

    Raises
    ------
    DataMissing
        A picture is not at hand, or has no caption.
    """
    groups = used_captions(dataset, nsd_ids, captions)
    pictures = dataset.stimuli(nsd_ids)
    embeds = encoder.embed_texts([caption for group in groups for caption in group])
    edges = np.cumsum([0, *(len(group) for group in groups)])
    texts = np.stack([embeds[low:high].mean(0) for low, high in itertools.pairwise(edges)])
    return Rows(encoder.encode_latents(pictures), encoder.embed_images(draw(texts, nsd_ids) if draw else pictures), texts)


def used_captions(dataset: Dataset, nsd_ids: IntArray, rule: CaptionTarget) -> list[tuple[str, ...]]:
    """Return the captions that make each picture's text target: the first five that are not empty, as in Brain-Diffuser, or the first of them.

    Raises
    ------
    DataMissing
        A picture has none.
    """
    groups = [tuple(caption for caption in dataset.captions(int(nsd_id)) if caption.strip()) for nsd_id in nsd_ids]
    bare = [int(nsd_id) for nsd_id, group in zip(nsd_ids, groups, strict=True) if not group]
    if bare:
        more = f" (and {len(bare) - 1:,} more)" if len(bare) > 1 else ""
        coco = f"put COCO's captions_train2017.json and captions_val2017.json into {dataset.root / 'annotations'}"
        msg = f"picture {bare[0]}{more} of {dataset.name} has no caption under {dataset.root}; the text target needs at least one: {coco}"
        raise DataMissing(msg)
    return [group[: 1 if rule == "first" else MOST_CAPTIONS] for group in groups]
