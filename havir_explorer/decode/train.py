"""Train a subject's decoder: resumable, reproducible, judged on training images it has not seen."""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import losses, manifest
from havir_explorer.decode.blocks import use_generator
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.manifest import Manifest, Record, SemanticSizes, StructuralSizes
from havir_explorer.decode.samples import Samples, collect, hold_out
from havir_explorer.decode.targets import Targets
from havir_explorer.errors import RequestError, WeightsInvalid

Progress = Callable[[float, str], None]
CHECKPOINT = "checkpoint.pt"
STEPS = 2500


@dataclass(frozen=True)
class Options:
    """What shapes a training run.

    Parameters
    ----------
    structural, semantic : sizes
    batch : int
    structural_rate, semantic_rate : float
        Peak learning rates of one cosine cycle each (a tenth of the steps warm-up).
    weight_decay : float
        Of matrices and kernels; biases and norms are spared.
    edges : float
        Weight of the Sobel term.
    temperature, mse, contrast : float
        Of the token loss.
    held_out : float
        Share of the training images kept back to choose the best step and to fit the repair.
    repair_latents, repair_tokens : float
        Share of the lost spread that is restored, 0 to 1.
    check_every, save_every : int
        Steps between looks at the held-out images and between checkpoints.
    caption_target : str
        How the text targets were made; recorded.
    """

    structural: StructuralSizes = field(default_factory=StructuralSizes)
    semantic: SemanticSizes = field(default_factory=SemanticSizes)
    batch: int = 64
    structural_rate: float = 2e-3
    semantic_rate: float = 2e-3
    weight_decay: float = 0.05
    edges: float = 0.1
    temperature: float = 0.005
    mse: float = 1e4
    contrast: float = 1.0
    held_out: float = 0.08
    repair_latents: float = 0.0
    repair_tokens: float = 1.0
    check_every: int = 100
    save_every: int = 250
    caption_target: str = "mean"


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Samples, targets in the samples' order, and which of them are held out."""

    samples: Samples
    latents: Tensor
    image: Tensor
    text: Tensor
    train: Tensor
    held: Tensor


class _Branch:
    """One module with its optimiser, its voxels, and the best state so far."""

    def __init__(self, module: nn.Module, voxels: np.ndarray, rate: float, options: Options) -> None:
        self.module, self.rate = module, rate
        self.voxels = torch.from_numpy(np.flatnonzero(voxels))
        decayed = [p for p in module.parameters() if p.ndim > 1]
        spared = [p for p in module.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=rate)
        self.best: dict[str, Any] = {"loss": math.inf, "step": 0, "state": _copy(module)}

    def step(self, loss: Tensor, share: float) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * one_cycle(share)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def judge(self, loss: float, step: int) -> None:
        if loss < self.best["loss"]:
            self.best = {"loss": loss, "step": step, "state": _copy(self.module)}


def one_cycle(share: float) -> float:
    """Return the factor of the peak learning rate at a share of the run: cosine up over the first tenth, cosine down to 1/1000."""
    rising = share < 0.1
    within = share / 0.1 if rising else (share - 0.1) / 0.9
    low = 0.04 if rising else 0.001
    wave = (1 - math.cos(math.pi * within)) / 2
    return low + (1 - low) * (wave if rising else 1 - wave)


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
    spatial, semantic = manifest.default_split(dataset.atlas(subject))
    pairs = _pairs(dataset, subject, targets, options, draws, device)
    blank = _manifest(dataset, subject, targets, pairs, options, (spatial, semantic))
    havir = Havir.fresh(blank, spatial, semantic, draws).to(device)
    _start_at_mean(havir, pairs)
    use_generator(havir, noise)
    rates = (options.structural_rate, options.semantic_rate)
    modules = (havir.structural_generator, havir.semantic_extractor)
    branches = [_Branch(m, v, r, options) for m, v, r in zip(modules, (spatial, semantic), rates, strict=True)]
    run = _Run(havir, branches, pairs, options, steps, draws, noise, json.dumps([asdict(options) | {"structural": options.structural.model_dump(), "semantic": options.semantic.model_dump()}, seed, steps, subject, blank.voxel_hash]))
    run.loop(folder, resume=resume, progress=progress)
    return _finish(run, folder, seed, began, device)


class _Run:
    """The state of a run, and how it moves on."""

    def __init__(self, havir: Havir, branches: list[_Branch], pairs: _Pairs, options: Options, steps: int, draws: torch.Generator, noise: torch.Generator, identity: str) -> None:
        self.havir, self.branches, self.pairs, self.options, self.steps = havir, branches, pairs, options, steps
        self.draws, self.noise, self.identity, self.done = draws, noise, identity, 0

    def loop(self, folder: Path, *, resume: bool, progress: Progress | None) -> None:
        file = folder / CHECKPOINT
        if resume and file.exists():
            self._restore(file)
        while self.done < self.steps:
            now = self._advance()
            if self.done % self.options.check_every == 0 or self.done == self.steps:
                for branch, loss in zip(self.branches, self.held_out_losses(), strict=True):
                    branch.judge(loss, self.done)
            if self.done % self.options.save_every == 0:
                self._store(file)
            if progress:
                best = ", ".join(f"{b.best['loss']:.4f}" for b in self.branches)
                progress(self.done / self.steps, f"step {self.done} of {self.steps}: structural {now[0]:.4f}, semantic {now[1]:.4f}; best held-out {best}")

    def _advance(self) -> list[float]:
        self.havir.train()
        pairs, device = self.pairs, self.havir.device
        pictures = pairs.train[torch.randint(len(pairs.train), (self.options.batch,), generator=self.draws)]
        weights = pairs.samples.random_weights(pictures, self.draws)
        now = []
        for branch, loss in zip(self.branches, (self._structural, self._semantic), strict=True):
            voxels = pairs.samples.mix(weights, pictures, branch.voxels).to(device)
            now.append(branch.step(loss(branch.module(voxels), pictures), self.done / self.steps))
        self.done += 1
        return now

    def _structural(self, predicted: Tensor, pictures: Tensor) -> Tensor:
        return losses.structural_loss(predicted, self.pairs.latents[pictures.to(predicted.device)], self.options.edges)

    def _semantic(self, predicted: tuple[Tensor, Tensor], pictures: Tensor) -> Tensor:
        options, rows = self.options, pictures.to(predicted[0].device)
        heads = zip(predicted, (self.pairs.image[rows], self.pairs.text[rows]), strict=True)
        parts = [losses.token_loss(p, t, temperature=options.temperature, mse=options.mse, contrast=options.contrast) for p, t in heads]
        return parts[0] + parts[1]

    def held_out_losses(self) -> tuple[float, float]:
        held = self.pairs.held
        latents, image, text = self.predict(held)
        return float(self._structural(latents, held)), float(self._semantic((image, text), held))

    @torch.no_grad()
    def predict(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the present weights make of the pictures' averaged repeats, unrepaired."""
        self.havir.eval()
        samples = self.pairs.samples
        structural, semantic = (samples.mix(samples.means(pictures), pictures, b.voxels).to(self.havir.device) for b in self.branches)
        image, text = self.havir.semantic_extractor(semantic)
        return self.havir.structural_generator(structural), image, text

    def _store(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self.identity,
            "done": self.done,
            "draws": self.draws.get_state(),
            "noise": self.noise.get_state(),
            "weights": self.havir.state_dict(),
            "optimisers": [b.optimiser.state_dict() for b in self.branches],
            "best": [b.best for b in self.branches],
        }
        torch.save(state, file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)

    def _restore(self, file: Path) -> None:
        try:
            state = torch.load(file, weights_only=True, map_location=self.havir.device)
        except Exception as error:  # torch names no common class for a file that is not a checkpoint
            msg = f"the checkpoint {file} cannot be read ({error}); delete it, or train with resume off"
            raise WeightsInvalid(msg) from error
        if state["identity"] != self.identity:
            msg = f"the checkpoint {file} is of a run with other options, seed, steps or voxels; delete it, choose another folder, or train with resume off"
            raise WeightsInvalid(msg)
        self.havir.load_state_dict(state["weights"])
        for branch, optimiser, best in zip(self.branches, state["optimisers"], state["best"], strict=True):
            branch.optimiser.load_state_dict(optimiser)
            branch.best = best
        self.draws.set_state(state["draws"].cpu())
        self.noise.set_state(state["noise"].cpu())
        self.done = state["done"]


def _pairs(dataset: Dataset, subject: str, targets: Targets, options: Options, draws: torch.Generator, device: str) -> _Pairs:
    samples = collect(dataset, subject, targets.nsd_ids)
    order = np.argsort(targets.nsd_ids)
    rows = order[np.searchsorted(targets.nsd_ids[order], samples.nsd_ids)]
    held = hold_out(len(rows), options.held_out, draws)
    latents, image, text = (torch.from_numpy(values[rows]).to(device) for values in (targets.latents, targets.image_embeds, targets.text_embeds))
    return _Pairs(samples, latents, image, text, torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held)))


def _manifest(dataset: Dataset, subject: str, targets: Targets, pairs: _Pairs, options: Options, split: tuple[np.ndarray, np.ndarray]) -> Manifest:
    unwritten = {name: 0 for name in Record.model_fields} | {"date": "", "device": ""}
    tokens = [(int(t.shape[1]), int(t.shape[2])) for t in (targets.image_embeds, targets.text_embeds)]
    return Manifest(
        subject=subject,
        dataset=dataset.name,
        convention=dataset.convention,
        split=manifest.SPLIT,
        voxel_hash=manifest.voxel_hash(dataset.geometry(subject).flat_index),
        n_voxels=len(split[0]),
        n_spatial=int(split[0].sum()),
        n_semantic=int(split[1].sum()),
        latent_shape=tuple(int(n) for n in targets.latents.shape[1:]),
        image_shape=tokens[0],
        text_shape=tokens[1],
        structural=options.structural,
        semantic=options.semantic,
        train_nsd_ids=tuple(int(n) for n in pairs.samples.nsd_ids),
        record=Record.model_construct(**unwritten),
    )


@torch.no_grad()
def _start_at_mean(havir: Havir, pairs: _Pairs) -> None:
    """Let both heads begin at the mean target, so that training is spent on what differs between pictures."""
    extractor = havir.semantic_extractor
    for head, target in ((extractor.to_image, pairs.image), (extractor.to_text, pairs.text)):
        head.weight.mul_(0.1 * float(target.std()))
        head.bias.copy_(target[pairs.train].mean(0).flatten())


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _finish(run: _Run, folder: Path, seed: int, began: float, device: str) -> Havir:
    havir, pairs, options = run.havir, run.pairs, run.options
    for branch in run.branches:
        branch.module.load_state_dict(branch.best["state"])
    everyone = torch.arange(len(pairs.samples.nsd_ids))
    latents, image, text = (torch.cat(parts) for parts in zip(*(run.predict(chunk) for chunk in everyone.split(256)), strict=True))
    held = torch.isin(everyone, pairs.held).to(latents.device)
    havir.structural_generator.repair.fit(latents, pairs.latents, held, options.repair_latents)
    havir.semantic_extractor.repair_image.fit(image, pairs.image, held, options.repair_tokens)
    havir.semantic_extractor.repair_text.fit(text, pairs.text, held, options.repair_tokens)
    structural, semantic = run.branches
    record = Record(
        steps=run.steps,
        seed=seed,
        seconds=round(time.monotonic() - began, 1),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
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
