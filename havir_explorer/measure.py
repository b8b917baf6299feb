"""5. Picture and stimulus to scores, each with its chance level and protocol.

The protocols are those of MindEye2's final evaluation: Pearson's r of pixels, SSIM on grey pictures, two-way identification column-wise
(for a fixed reconstruction the distractors are other stimuli), ties counted as misses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from torch.nn import functional

from havir_explorer.errors import RequestError, WeightsInvalid, WeightsMissing
from havir_explorer.records import FloatArray, Score, UInt8Array

Features = Callable[[UInt8Array], FloatArray]
"""Pictures, uint8 (n, H, W, 3), to one feature vector each, float32 (n, D)."""


@dataclass(frozen=True)
class Tower:
    """A feature network and what to call it.

    Parameters
    ----------
    name : str
        In words, as scores are labelled.
    features : callable
        See :data:`Features`.
    """

    name: str
    features: Features


SMALL = 128
"""Pictures up to this side are compared at their own size; larger ones as the field does, at 256 and then 425 pixels."""


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Parameters
    ----------
    name : str
    chance : float or None
        Fixed by the protocol (0.5 for two-way identification), or None where it is measured against unrelated stimuli.
    higher_is_better : bool
    protocol : str
    """

    name: str
    chance: float | None
    higher_is_better: bool
    protocol: str


OWN_TOWER = "the generator's own CLIP image tower"
_PIXELS = f"at the pictures' own size up to {SMALL} px; larger ones resized to 256, then 425 px, bilinear without antialias"


def metrics(tower: str = OWN_TOWER) -> dict[str, Metric]:
    """Return what every score means when ``tower`` is the feature network of the CLIP scores, by name."""
    pooled = f"pooled features of {tower}"
    each = (
        Metric("PixCorr", None, True, f"Pearson r over all RGB values, {_PIXELS}"),
        Metric("SSIM", None, True, f"SSIM of grey pictures, Gaussian window of sigma 1.5, no sample covariance, data range 1, {_PIXELS}"),
        Metric("CLIP", 0.5, True, f"two-way identification against the other test stimuli, Pearson r of {pooled}, ties are misses"),
        Metric("CLIP-cos", None, True, f"cosine of {pooled}"),
    )
    return {metric.name: metric for metric in each}


METRICS = metrics()
"""Every score, by name."""


def pixcorr(pictures: UInt8Array, stimuli: UInt8Array) -> FloatArray:
    """Return Pearson's r of the pixels of each pair.

    Parameters
    ----------
    pictures, stimuli : uint8 (n, H, W, 3)

    Returns
    -------
    float32 (n,)
        In [-1, 1]; 0 where a picture is one flat value, which correlates with nothing.
    """
    left, right = _standard(pictures, stimuli)
    return _paired_r(left.reshape(len(left), -1), right.reshape(len(right), -1))


def ssim(pictures: UInt8Array, stimuli: UInt8Array) -> FloatArray:
    """Return the structural similarity of each pair in grey (Wang et al. 2004; scikit-image).

    Plain two-dimensional SSIM as MindEye's; Brain-Diffuser's pinned scikit-image averages one-dimensional SSIMs of columns instead, so its
    numbers are higher and do not compare.

    Parameters
    ----------
    pictures, stimuli : uint8 (n, H, W, 3)
        H and W at least 11.

    Returns
    -------
    float32 (n,)
        In [-1, 1].
    """
    left, right = (rgb2gray(values) for values in _standard(pictures, stimuli))
    pairs = zip(left, right, strict=True)
    return np.array([structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0) for a, b in pairs], np.float32)


def cosine(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the cosine of each pair of rows.

    Parameters
    ----------
    left, right : float32 (n, D)

    Returns
    -------
    float32 (n,)
        In [-1, 1]; 0 where a row is all zeros.
    """
    return _dot(_unit(left), _unit(right))


def two_way(pictures: FloatArray, stimuli: FloatArray) -> FloatArray:
    """Return how often each reconstruction correlates better with its stimulus than with another reconstruction's stimulus.

    Parameters
    ----------
    pictures, stimuli : float32 (n, D)
        Features; row i of one belongs to row i of the other. n at least 2.

    Returns
    -------
    float32 (n,)
        In [0, 1], chance 0.5; a tie is a miss.

    Raises
    ------
    RequestError
        Fewer than two pairs.
    """
    if len(pictures) < 2:
        msg = f"two-way identification needs at least 2 pictures to tell apart; got {len(pictures)}"
        raise RequestError(msg)
    similar = _unit(_centred(stimuli)) @ _unit(_centred(pictures)).T
    beaten = similar < np.diag(similar)
    np.fill_diagonal(beaten, val=False)
    shares: FloatArray = (beaten.sum(0) / (len(pictures) - 1)).astype(np.float32)
    return shares


def two_way_one(picture: FloatArray, stimulus: FloatArray, others: FloatArray) -> float:
    """Return the share of other stimuli that one reconstruction resembles less than its own stimulus.

    Parameters
    ----------
    picture, stimulus : float32 (D,)
    others : float32 (n, D)
        Features of the other test stimuli.

    Returns
    -------
    float
        In [0, 1], chance 0.5; a tie is a miss.
    """
    similar = _unit(_centred(np.concatenate((stimulus[None], others)))) @ _unit(_centred(picture[None]))[0]
    return float((similar[1:] < similar[0]).mean())


def score(
    picture: UInt8Array,
    stimulus: UInt8Array,
    features: Features | None,
    others: UInt8Array,
    *,
    other_features: FloatArray | None = None,
) -> tuple[Score, ...]:
    """Score one reconstruction.

    Parameters
    ----------
    picture, stimulus : uint8 (H, W, 3)
        Of one size.
    features : callable or None
        The feature network of the CLIP scores; without one there are none.
    others : uint8 (n, H, W, 3)
        The other test stimuli: distractors of the identification, and what chance is measured against. n at least 1.
    other_features : float32 (n, D), optional
        ``features(others)``, when the caller has kept it.

    Returns
    -------
    tuple of Score
        In the order of :data:`METRICS`, those of CLIP left out without a feature network.

    Raises
    ------
    RequestError
        Sizes differ, or there is no other stimulus.
    """
    if not len(others):
        msg = "scores need at least one other test stimulus to measure chance against; got none"
        raise RequestError(msg)
    repeated = np.broadcast_to(picture, others.shape) if picture.shape == others.shape[1:] else np.repeat(picture[None], len(others), 0)
    values = {
        "PixCorr": (float(pixcorr(picture[None], stimulus[None])[0]), float(pixcorr(repeated, others).mean())),
        "SSIM": (float(ssim(picture[None], stimulus[None])[0]), float(ssim(repeated, others).mean())),
    }
    if features is not None:
        mine, true = features(np.stack((picture, stimulus)))
        theirs = features(others) if other_features is None else other_features
        values["CLIP"] = (two_way_one(mine, true, theirs), 0.5)
        values["CLIP-cos"] = (float(cosine(mine[None], true[None])[0]), float(cosine(np.broadcast_to(mine, theirs.shape), theirs).mean()))
    against = f"; chance is the mean over {len(others)} other stimuli"
    return tuple(
        Score(m.name, values[m.name][0], values[m.name][1], m.higher_is_better, m.protocol + (against if m.chance is None else f" ({len(others)})"))
        for m in METRICS.values()
        if m.name in values
    )


def open_clip_tower(model: str, pretrained: str | Path, *, device: str = "cpu") -> Tower:
    """Return an OpenCLIP image tower as the feature network of the CLIP scores.

    Parameters
    ----------
    model : str
        A name OpenCLIP knows, e.g. ``ViT-L-14``; a configuration of one's own is made known by ``open_clip.add_model_config``.
    pretrained : str or Path
        A checkpoint file on this machine, or one of OpenCLIP's tags for this model, e.g. ``openai`` (downloaded by OpenCLIP).
    device : str

    Returns
    -------
    Tower
        Final embeddings; pictures are resized bilinearly and normalised as the checkpoint asks.

    Raises
    ------
    RequestError
        OpenCLIP knows no such model.
    WeightsMissing
        Neither a file nor a tag of this model.
    WeightsInvalid
        The file is not a checkpoint of this model.
    """
    import open_clip

    if model not in open_clip.list_models():
        msg = f"OpenCLIP knows no model {model!r}; open_clip.list_models() names all, add_model_config adds one"
        raise RequestError(msg)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not Path(pretrained).is_file() and str(pretrained) not in tags:
        msg = f"{pretrained} is neither a checkpoint file nor a pretrained tag of {model}; its tags: {', '.join(tags) or 'none'}"
        raise WeightsMissing(msg)
    try:
        network = open_clip.create_model(model, pretrained=str(pretrained), device=device).eval()
    except (RuntimeError, KeyError, ValueError) as error:
        msg = f"the OpenCLIP checkpoint {pretrained} does not fit {model} ({str(error).splitlines()[0]}); choose the model it was saved from"
        raise WeightsInvalid(msg) from error
    size = network.visual.image_size
    side = size if isinstance(size, tuple) else (size, size)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (network.visual.image_mean, network.visual.image_std))

    @torch.inference_mode()
    def embed(pictures: UInt8Array) -> FloatArray:
        pixels = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
        resized = functional.interpolate(pixels, side, mode="bilinear", align_corners=False)
        found: FloatArray = network.encode_image((resized - mean) / std).float().cpu().numpy()
        return found

    return Tower(f"OpenCLIP {model} ({Path(pretrained).name})", embed)


def _standard(pictures: UInt8Array, stimuli: UInt8Array) -> tuple[FloatArray, FloatArray]:
    if pictures.shape != stimuli.shape or pictures.ndim != 4:
        msg = f"pictures and stimuli must both be (n, H, W, 3) of one shape; got {pictures.shape} and {stimuli.shape}: resize the stimuli to the pictures' size"
        raise RequestError(msg)
    left, right = (np.asarray(values, np.float32) / np.float32(255) for values in (pictures, stimuli))
    if max(pictures.shape[1:3]) <= SMALL:
        return left, right
    return _resized(left), _resized(right)


def _resized(pictures: FloatArray) -> FloatArray:
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    for side in (256, 425):
        pixels = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=False)
    large: FloatArray = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return large


def _paired_r(left: FloatArray, right: FloatArray) -> FloatArray:
    return _dot(_unit(_centred(left)), _unit(_centred(right)))


def _dot(left: FloatArray, right: FloatArray) -> FloatArray:
    product: FloatArray = np.einsum("nd,nd->n", left, right).astype(np.float32)
    return product


def _centred(rows: FloatArray) -> FloatArray:
    wide: FloatArray = rows.astype(np.float64) - rows.mean(1, keepdims=True, dtype=np.float64)
    return wide


def _unit(rows: FloatArray) -> FloatArray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # A flat picture's rounding residue must not be blown up to a direction.
    unit: FloatArray = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-9)
    return unit
