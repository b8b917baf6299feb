"""What is written beside a trained decoder's weights, so that it is never run on voxels it was not trained on."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveInt

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode.split import Choice
from havir_explorer.errors import RequestError, WeightsInvalid
from havir_explorer.records import FloatArray, IntArray

SAME = 0.05
"""Fingerprints this close, each third relative to its length, are of one autoencoder and CLIP."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StructuralSizes(_Frozen):
    """Widths of the Structural Generator. The published ones are not known; MindEye's would be 4096, 4 blocks and 64 maps.

    ``maps`` is the number of low-resolution feature maps, ``doublings`` how often the upsampler doubles their side to reach the latents'.
    """

    width: PositiveInt = 224
    blocks: int = 1
    dropout: float = 0.5
    block_dropout: float = 0.25
    maps: PositiveInt = 16
    doublings: int = 1
    channels: PositiveInt = 32


class SemanticSizes(_Frozen):
    """Widths of the Semantic Extractor. The published ones are not known; MindBridge's would be 2048 and 4 blocks."""

    width: PositiveInt = 112
    blocks: int = 1
    dropout: float = 0.5
    block_dropout: float = 0.25


class RidgeSizes(_Frozen):
    """A linear decoder: how many components of latents, image and text tokens it predicts, and the share of their variance, cross-validated."""

    components: tuple[int, int, int]
    explained: tuple[float, float, float]
    folds: PositiveInt
    repair: tuple[float, float, float]


class Record(_Frozen):
    """How the weights came about: steps, seed, wall time of the steps (before a stop and after), the losses on held-out training images and what they measured.

    ``hyper_parameters`` and ``versions`` are names with their values as words; ``run_structural`` and ``run_semantic`` are the digests of all that
    decided a branch's run, by which the same run is known again.
    """

    steps: int = 0
    seed: int = 0
    seconds: float = 0.0
    date: str = ""
    device: str = ""
    training_images: int = 0
    held_out_images: int = 0
    held_out_loss_structural: float = 0.0
    held_out_loss_semantic: float = 0.0
    best_step_structural: int = 0
    best_step_semantic: int = 0
    run_structural: str = ""
    run_semantic: str = ""
    caption_target: str = "mean"
    image_source: str = "stimulus"
    started_from: str = ""
    trunk_of: tuple[str, ...] = ()
    hyper_parameters: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()


class Manifest(_Frozen):
    """A decoder's identity.

    Parameters
    ----------
    subject, dataset : str
    convention : str
        How the responses were normalised in training (``Dataset.convention``).
    split : str
        What the two masks hold, in words.
    choice : Choice
        The split that was asked for.
    voxel_hash : str
        SHA-256 of the int64 little-endian bytes of ``Geometry.flat_index``.
    n_voxels, n_spatial, n_semantic : int
        Columns of the responses, and how many of them each branch reads. The masks themselves lie with the weights.
    latent_shape : (int, int, int)
    image_shape, text_shape : (int, int)
        Token count and width.
    kind : {'havir', 'linear'}
    structural, semantic : sizes
        Of HAVIR's branches; None for a linear decoder.
    ridge : RidgeSizes
        Of a linear decoder; None for HAVIR.
    train_nsd_ids : tuple of int
        Every picture the weights or their calibration have seen, in ascending order.
    generator : tuple of float
        Fingerprint of the autoencoder and CLIP that made the targets (``diffuse.fingerprint``); empty where it was not known.
    record : Record
    """

    format: Literal[1] = 1
    kind: Literal["havir", "linear"] = "havir"
    subject: str
    dataset: str
    convention: str
    split: str
    choice: Choice = Choice()
    voxel_hash: str
    n_voxels: PositiveInt
    n_spatial: PositiveInt
    n_semantic: PositiveInt
    latent_shape: tuple[int, int, int]
    image_shape: tuple[int, int]
    text_shape: tuple[int, int]
    structural: StructuralSizes | None = None
    semantic: SemanticSizes | None = None
    ridge: RidgeSizes | None = None
    train_nsd_ids: tuple[int, ...]
    generator: tuple[float, ...] = ()
    record: Record

    def saw(self, nsd_id: int) -> bool:
        """Return True when this picture was used in training: its reconstruction flatters."""
        at = np.searchsorted(self.train_nsd_ids, nsd_id)
        return bool(at < len(self.train_nsd_ids) and self.train_nsd_ids[at] == nsd_id)

    def check_unseen(self, nsd_ids: IntArray) -> None:
        """Make sure that none of the pictures of an evaluation was used in training.

        Raises
        ------
        RequestError
            Some were: their scores would say how well the weights remember.
        """
        seen = np.intersect1d(nsd_ids, self.train_nsd_ids)
        if len(seen):
            named = ", ".join(str(nsd_id) for nsd_id in seen[:3]) + (" and so on" if len(seen) > 3 else "")
            msg = (
                f"the decoder of {self.subject} has seen {len(seen)} of the {len(nsd_ids)} test pictures in training ({named}), so their scores would "
                f"flatter; evaluate it on other pictures, or train one without them: havir train --subject {self.subject}"
            )
            raise RequestError(msg)

    def sizes(self) -> tuple[StructuralSizes, SemanticSizes]:
        """Return the sizes of HAVIR's two branches.

        Raises
        ------
        WeightsInvalid
            The decoder is no HAVIR.
        """
        if self.kind != "havir" or self.structural is None or self.semantic is None:
            msg = f"the decoder of {self.subject} is of kind {self.kind!r} and has no sizes of HAVIR's branches; train a HAVIR with: havir train"
            raise WeightsInvalid(msg)
        return self.structural, self.semantic

    def check_responses(self, responses: FloatArray) -> None:
        """Make sure that these are finite responses of all the voxels, (B, n_voxels).

        Raises
        ------
        RequestError
            Another number of voxels, or a value that is not finite.
        """
        if responses.ndim != 2 or responses.shape[1] != self.n_voxels:
            msg = f"responses must be (trials, {self.n_voxels}) for the decoder of {self.subject}; got {responses.shape}"
            raise RequestError(msg)
        if not np.isfinite(responses).all():
            msg = f"responses of {self.subject} hold values that are not finite; check the beta files they came from"
            raise RequestError(msg)

    def check(self, dataset: Dataset, subject: str) -> None:
        """Make sure that this decoder may read this subject's responses.

        Raises
        ------
        WeightsInvalid
            Trained on another subject, on other voxels, or on responses normalised differently.
        """
        again = f"train one with: havir train --dataset {dataset.root} --subject {subject}"
        if self.subject != subject:
            msg = f"the decoder was trained on {self.subject} ({self.dataset}) but is asked to read {subject}; a decoder reads only its own subject: {again}"
            raise WeightsInvalid(msg)
        found = voxel_hash(dataset.geometry(subject).flat_index)
        if self.voxel_hash != found:
            hashes = f"hash {self.voxel_hash[:8]}, found {found[:8]}"
            msg = f"the decoder of {subject} was trained on {self.n_voxels} voxels other than those of {dataset.name} ({hashes}): {again}"
            raise WeightsInvalid(msg)
        if self.convention != dataset.convention:
            msg = f"the decoder of {subject} expects responses {self.convention!r} but {dataset.name} gives {dataset.convention!r}: {again}"
            raise WeightsInvalid(msg)

    def check_generator(self, fingerprint: tuple[float, ...], folder: str) -> None:
        """Make sure that this decoder speaks to the autoencoder and CLIP it was trained for; the denoiser may be another.

        Raises
        ------
        WeightsInvalid
            The targets came from another autoencoder or CLIP.
        """
        if self.generator and not alike(self.generator, fingerprint):
            msg = (
                f"the decoder of {self.subject} was trained for another autoencoder and CLIP than those of the generator {folder}, whose pictures would be "
                f"noise: name the generator it was trained for, or train one with: havir train --subject {self.subject} --generator {folder}"
            )
            raise WeightsInvalid(msg)


def alike(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two fingerprints are of one autoencoder and CLIP, in whichever number format and on whichever device."""
    if len(one) != len(other):
        return False
    parts = (np.reshape(fingerprint, (3, -1)) for fingerprint in (one, other))  # autoencoder, image tower, text tower
    return all(np.linalg.norm(a - b) <= SAME * np.linalg.norm(a) for a, b in zip(*parts, strict=True))


def voxel_hash(flat_index: IntArray) -> str:
    """Return the SHA-256 hex digest of voxel indices as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(flat_index, dtype="<i8").tobytes()).hexdigest()
