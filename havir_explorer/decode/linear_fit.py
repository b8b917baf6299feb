"""Fit a linear decoder; see :mod:`~havir_explorer.decode.linear` for what it is."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import card, components, manifest, ridge
from havir_explorer.decode.components import Centred, Parts
from havir_explorer.decode.linear import Head, LinearDecoder
from havir_explorer.decode.manifest import Manifest, Record, RidgeSizes
from havir_explorer.decode.samples import Samples, collect
from havir_explorer.decode.split import Choice, Split, choose
from havir_explorer.decode.stages import Progress, Stages
from havir_explorer.decode.targets import TargetSource

MOST_GAIN = 4.0
"""No feature's spread is restored by more than this: beyond, it is noise that grows."""


@dataclass(frozen=True)
class LinearOptions:
    """What shapes a linear decoder.

    Parameters
    ----------
    choice : Choice
        Which voxels each branch reads.
    components : int
        At most this many of each target are tried.
    worth : float
        Share of its variance that cross-validation must predict for a component to be kept, 0 or more.
    folds : int
        Of the cross-validation over pictures; the repeats of a picture are averaged and never apart.
    repair_latents, repair_tokens : float
        Share of the lost spread that is restored, 0 to 1; Brain-Diffuser restores all of it.
    caption_target, image_source : str
        How the text targets were made, and of which picture the image targets are; recorded.
    """

    choice: Choice = field(default_factory=Choice)
    components: int = 500
    worth: float = 0.02
    folds: int = 5
    repair_latents: float = 1.0
    repair_tokens: float = 1.0
    caption_target: str = "mean"
    image_source: str = "stimulus"


class Predictable(NamedTuple):
    """The components of one target that cross-validation predicts.

    Parameters
    ----------
    weights : float32 (n_voxels, r)
        In units of the scores.
    offset : float32 (r,)
    scores, held_out : float32 (n, r)
        What each training picture has, and what was predicted when its fold was left out.
    """

    weights: Tensor
    offset: Tensor
    scores: Tensor
    held_out: Tensor


def fit(
    dataset: Dataset,
    subject: str,
    targets: TargetSource,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    resume: bool = True,
    options: LinearOptions | None = None,
    device: str = "cpu",
) -> LinearDecoder:
    """Fit a subject's linear decoder and save it.

    Parameters
    ----------
    dataset : Dataset
    subject : str
    targets : TargetSource
        Of any pictures; shared (test) pictures among them are never used. Read a few pictures at a time.
    folder : Path
        Receives the weights, the manifest and, on the way, a file for each finished stage.
    seed : int
        Decides the folds.
    progress : callable, optional
        Called with the share done in [0, 1] and a line of text. What it raises stops the fit; finished stages stay.
    resume : bool
        Go on after the stages that the folder holds, to the same weights.
    options : LinearOptions, optional
    device : str
        Where matrices are multiplied and decomposed.

    Returns
    -------
    LinearDecoder
        As read back from ``folder``.

    Raises
    ------
    DataInvalid
        Too few training pictures.
    OutputError
        The disk is full or the folder cannot be written.
    """
    options, began = options or LinearOptions(), time.monotonic()
    split = choose(dataset.atlas(subject), options.choice)
    samples = collect(dataset, subject, targets.nsd_ids)
    blank = _manifest(dataset, subject, targets, samples, split)
    stages = Stages(folder, f"{seed} {options} {blank.model_dump_json()}", progress, resume=resume)
    centred = components.centre(targets, np.searchsorted(targets.nsd_ids, samples.nsd_ids), stages.tick(0, 0.05, "reading the targets"), device)
    tick = stages.tick(0.05, 0.3, "principal components of the targets")
    latents, image, text = stages.kept("components", lambda: components.scores(centred, options.components, tick))
    splits = ridge.folds(len(samples.nsd_ids), options.folds, seed)
    structural = stages.tick(0.3, 0.6, "spatial voxels to latents, cross-validated")
    semantic = stages.tick(0.6, 0.9, "semantic voxels to tokens, cross-validated")
    solved = [
        *stages.kept("structural", lambda: _branch(samples.averages(split.spatial), (latents,), splits, options.worth, device, structural)),
        *stages.kept("semantic", lambda: _branch(samples.averages(split.semantic), (image, text), splits, options.worth, device, semantic)),
    ]
    found = (Predictable(*solved[:4]), Predictable(*solved[4:8]), Predictable(*solved[8:]))
    bases = components.bases(centred, (found[0].scores, found[1].scores, found[2].scores), stages.tick(0.9, 1, "directions of the components"))
    heads = _heads(found, bases, centred, options)
    record = Record(
        seed=seed,
        seconds=round(time.monotonic() - began, 1),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        device=device,
        training_images=len(samples.nsd_ids),
        caption_target=options.caption_target,
        image_source=options.image_source,
        hyper_parameters=(("components", f"{options.components} at most, where more than {options.worth} is predicted"), ("seed of the folds", str(seed))),
        versions=(*card.versions(), ("himalaya", metadata.version("himalaya"))),
    )
    LinearDecoder(blank.model_copy(update={"record": record, "ridge": _sizes(found, centred, options)}), split.spatial, split.semantic, heads).save(folder)
    card.write(folder)
    stages.clear()
    return LinearDecoder.load(folder, device=device)


def _branch(
    responses: Tensor, targets: tuple[Tensor, ...], splits: list[ridge.Split], worth: float, device: str, tick: Callable[[float], None]
) -> list[Tensor]:
    """Return the fields of a :class:`Predictable` for each target, one after the other."""
    mean = responses.mean(0)
    centred = responses.sub_(mean).to(device)
    together = torch.cat(targets, 1).to(device)
    found = ridge.solve(centred @ centred.T, together, splits, device=device, tick=tick)
    explained, fields = found.explained(together.cpu()), list[Tensor]()
    edges = np.cumsum([0, *(target.shape[1] for target in targets)])
    for low, target in zip(edges, targets, strict=False):
        kept = low + torch.nonzero(explained[low : low + target.shape[1]] > worth)[:, 0]
        weights = (centred.T @ found.dual[:, kept].to(device)).cpu()
        fields += Predictable(weights, -(mean @ weights), target[:, kept - low], found.held_out[:, kept])
    return fields


def _heads(found: tuple[Predictable, Predictable, Predictable], bases: Parts, targets: Centred, options: LinearOptions) -> tuple[Head, Head, Head]:
    strengths = (options.repair_latents, options.repair_tokens, options.repair_tokens)
    latents, image, text = (_head(*each) for each in zip(found, bases, targets.mean, targets.spread, strengths, strict=True))
    return latents, image, text


def _head(found: Predictable, basis: Tensor, mean: Tensor, spread: Tensor, strength: float) -> Head:
    """Return the head whose held-out predictions have, feature by feature, the training pictures' mean and spread."""
    basis, mean, spread = basis.cpu(), mean.cpu(), spread.cpu()
    unit = found.held_out.square().mean(0).sqrt()
    steps = found.held_out / unit
    scaled = basis * unit[:, None]
    predicted = (scaled * (steps.T @ steps / len(steps) @ scaled)).sum(0).clamp_min(0).sqrt()
    gain = torch.where(predicted > 0, (spread / predicted).clamp(1 / MOST_GAIN, MOST_GAIN) ** strength, 1.0)
    return Head(found.weights / unit, found.offset / unit, scaled, mean, gain)


def _sizes(found: tuple[Predictable, Predictable, Predictable], targets: Centred, options: LinearOptions) -> RidgeSizes:
    latents, image, text = (
        float((one.scores.square() - (one.scores - one.held_out).square()).sum() / (len(targets) * spread.double().square().sum().clamp_min(1e-12).cpu()))
        for one, spread in zip(found, targets.spread, strict=True)
    )
    return RidgeSizes(
        components=(found[0].weights.shape[1], found[1].weights.shape[1], found[2].weights.shape[1]),
        explained=(latents, image, text),
        folds=options.folds,
        repair=(options.repair_latents, options.repair_tokens, options.repair_tokens),
    )


def _manifest(dataset: Dataset, subject: str, targets: TargetSource, samples: Samples, split: Split) -> Manifest:
    latents, image, text = targets.shapes
    return Manifest(
        kind="linear",
        subject=subject,
        dataset=dataset.name,
        convention=dataset.convention,
        split=split.words,
        choice=split.choice,
        voxel_hash=manifest.voxel_hash(dataset.geometry(subject).flat_index),
        n_voxels=len(split.spatial),
        n_spatial=int(split.spatial.sum()),
        n_semantic=int(split.semantic.sum()),
        latent_shape=(latents[0], latents[1], latents[2]),
        image_shape=(image[0], image[1]),
        text_shape=(text[0], text[1]),
        train_nsd_ids=tuple(int(n) for n in samples.nsd_ids),
        generator=targets.generator,
        record=Record(),
    )
