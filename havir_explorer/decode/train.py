"""Train a subject's decoder: resumable, reproducible, judged on training images it has not seen."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import numpy as np
import torch

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import manifest
from havir_explorer.decode.blocks import use_generator
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.manifest import Manifest, Record
from havir_explorer.decode.options import Options
from havir_explorer.decode.run import CHECKPOINT, BranchRun, Pairs, Progress, Run
from havir_explorer.decode.samples import collect, hold_out
from havir_explorer.decode.split import Split, choose
from havir_explorer.decode.targets import Targets
from havir_explorer.errors import RequestError

STEPS = 1500


def fit(
    dataset: Dataset,
    subject: str,
    targets: Targets,
    folder: Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress | None = None,
    resume: bool = True,
    options: Options | None = None,
    device: str = "cpu",
) -> Havir:
    """Train both branches of a subject and save them.

    Parameters
    ----------
    dataset : Dataset
    subject : str
    targets : Targets
        Of any pictures; shared (test) pictures among them are never used.
    folder : Path
        Receives the weights, the manifest and, on the way, a checkpoint.
    steps : int
        Optimiser steps, 1 or more.
    seed : int
        Decides initial weights, held-out images, batches, mixing and dropout.
    progress : callable, optional
        Called with the share done in [0, 1] and a line with the losses. What it raises stops the run; the checkpoint stays.
    resume : bool
        Continue from the folder's checkpoint, to the same weights as without the interruption.
    options : Options, optional
    device : str

    Returns
    -------
    Havir
        As read back from ``folder``: the weights of the step that was best on held-out images, per branch.

    Raises
    ------
    RequestError
        ``steps`` below 1.
    DataInvalid
        Too few training images.
    WeightsInvalid
        The checkpoint is of another run.
    """
    if steps < 1:
        msg = f"steps must be 1 or more; got {steps}"
        raise RequestError(msg)
    options = options or Options()
    began = time.monotonic()
    draws = torch.Generator().manual_seed(seed)
    noise = torch.Generator(device).manual_seed(seed)
    split = choose(dataset.atlas(subject), options.choice)
    spatial, semantic = split.spatial, split.semantic
    pairs = _pairs(dataset, subject, targets, options, draws, device)
    blank = _manifest(dataset, subject, targets, pairs, options, split)
    havir = Havir.fresh(blank, spatial, semantic, draws).to(device)
    _start_at_mean(havir, pairs)
    use_generator(havir, noise)
    rates = (options.structural_rate, options.semantic_rate)
    modules = (havir.structural_generator, havir.semantic_extractor)
    branches = [BranchRun(m, pairs.samples.columns(v), r, options) for m, v, r in zip(modules, (spatial, semantic), rates, strict=True)]
    run = Run(havir, branches, pairs, options, steps, (draws, noise), f"{seed} {blank.model_dump_json()}")
    run.loop(folder, resume=resume, progress=progress)
    return _finish(run, folder, seed, began, device)


def _pairs(dataset: Dataset, subject: str, targets: Targets, options: Options, draws: torch.Generator, device: str) -> Pairs:
    samples = collect(dataset, subject, targets.nsd_ids)
    order = np.argsort(targets.nsd_ids)
    rows = order[np.searchsorted(targets.nsd_ids[order], samples.nsd_ids)]
    held = hold_out(len(rows), options.held_out, draws)
    latents, image, text = (torch.from_numpy(values[rows]).to(device) for values in (targets.latents, targets.image_embeds, targets.text_embeds))
    return Pairs(samples, latents, image, text, torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held)))


def _manifest(dataset: Dataset, subject: str, targets: Targets, pairs: Pairs, options: Options, split: Split) -> Manifest:
    tokens = [(int(t.shape[1]), int(t.shape[2])) for t in (targets.image_embeds, targets.text_embeds)]
    return Manifest(
        subject=subject,
        dataset=dataset.name,
        convention=dataset.convention,
        split=split.words,
        choice=split.choice,
        voxel_hash=manifest.voxel_hash(dataset.geometry(subject).flat_index),
        n_voxels=len(split.spatial),
        n_spatial=int(split.spatial.sum()),
        n_semantic=int(split.semantic.sum()),
        latent_shape=(int(targets.latents.shape[1]), int(targets.latents.shape[2]), int(targets.latents.shape[3])),
        image_shape=tokens[0],
        text_shape=tokens[1],
        structural=options.structural,
        semantic=options.semantic,
        train_nsd_ids=tuple(int(n) for n in pairs.samples.nsd_ids),
        generator=targets.generator,
        record=Record(),
    )


@torch.no_grad()
def _start_at_mean(havir: Havir, pairs: Pairs) -> None:
    """Let both heads begin at the mean target, so that training is spent on what differs between pictures."""
    extractor = havir.semantic_extractor
    for head, target in ((extractor.to_image, pairs.image), (extractor.to_text, pairs.text)):
        head.weight.mul_(0.1 * float(target.std()))
        head.bias.copy_(target[pairs.train].mean(0).flatten())


def _finish(run: Run, folder: Path, seed: int, began: float, device: str) -> Havir:
    havir, pairs, options = run.havir, run.pairs, run.options
    for branch in run.branches:
        branch.module.load_state_dict(branch.best["state"])
    everyone = torch.arange(len(pairs.samples.nsd_ids))
    latents, image, text = (torch.cat(parts) for parts in zip(*(run.predict(chunk) for chunk in torch.split(everyone, 256)), strict=True))
    held = torch.isin(everyone, pairs.held).to(latents.device)
    havir.structural_generator.repair.fit(latents, pairs.latents, held, options.repair_latents)
    havir.semantic_extractor.repair_image.fit(image, pairs.image, held, options.repair_tokens)
    havir.semantic_extractor.repair_text.fit(text, pairs.text, held, options.repair_tokens)
    structural, semantic = run.branches
    record = Record(
        steps=run.steps,
        seed=seed,
        seconds=round(time.monotonic() - began, 1),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        device=device,
        training_images=len(pairs.train),
        held_out_images=len(pairs.held),
        held_out_loss_structural=structural.best["loss"],
        held_out_loss_semantic=semantic.best["loss"],
        best_step_structural=structural.best["step"],
        best_step_semantic=semantic.best["step"],
        caption_target=options.caption_target,
    )
    havir.manifest = havir.manifest.model_copy(update={"record": record})
    havir.save(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Havir.load(folder, device=device)
