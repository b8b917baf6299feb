"""A training run that can be stopped at any step and taken up again to the same weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from havir_explorer.decode import losses, mixco
from havir_explorer.decode.havir import Havir, whole
from havir_explorer.decode.mixco import Mixing
from havir_explorer.decode.options import Options
from havir_explorer.decode.samples import Samples
from havir_explorer.errors import WeightsInvalid

Progress = Callable[[float, str], None]
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Samples, targets in the samples' order, and which of them are held out."""

    samples: Samples
    latents: Tensor
    image: Tensor
    text: Tensor
    train: Tensor
    held: Tensor


class BranchRun:
    """One module with its optimiser, its voxels, and the best state so far."""

    def __init__(self, module: nn.Module, columns: Tensor, rate: float, options: Options) -> None:
        self.module, self.rate = module, rate
        self.columns = columns
        decayed = [p for p in module.parameters() if p.ndim > 1]
        spared = [p for p in module.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=rate)
        self.best: dict[str, Any] = {"loss": math.inf, "step": 0, "state": _copy(module)}

    def step(self, loss: Tensor, share: float) -> float:
        """Take one optimiser step at this share of the run and return the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * one_cycle(share)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimiser.step()
        return float(loss.detach())

    def judge(self, loss: float, step: int) -> None:
        """Keep the present weights when their held-out loss is the lowest so far."""
        if loss < self.best["loss"]:
            self.best = {"loss": loss, "step": step, "state": _copy(self.module)}


def one_cycle(share: float) -> float:
    """Return the factor of the peak learning rate at a share of the run: cosine up over the first tenth, cosine down to 1/1000."""
    rising = share < 0.1
    within = share / 0.1 if rising else (share - 0.1) / 0.9
    low = 0.04 if rising else 0.001
    wave = (1 - math.cos(math.pi * within)) / 2
    return low + (1 - low) * (wave if rising else 1 - wave)


class Run:
    """The state of a run, and how it moves on."""

    def __init__(
        self,
        havir: Havir,
        branches: list[BranchRun],
        pairs: Pairs,
        options: Options,
        steps: int,
        generators: tuple[torch.Generator, torch.Generator],
        identity: str,
    ) -> None:
        self.havir, self.branches, self.pairs, self.options, self.steps = havir, branches, pairs, options, steps
        self.draws, self.noise = generators
        shape = {"structural": options.structural.model_dump(), "semantic": options.semantic.model_dump(), "choice": options.choice.model_dump()}
        self.identity = json.dumps([identity, steps, asdict(options) | shape])
        self.done = 0

    def loop(self, folder: Path, *, resume: bool, progress: Progress | None) -> None:
        """Run to the last step, from the folder's checkpoint when there is one and ``resume`` is set."""
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
        mixing = mixco.draw(len(pictures), self.draws) if self.done < self.options.mixco * self.steps else None
        of_branch: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (self._structural, partial(self._semantic, mixing=mixing))
        for branch, loss in zip(self.branches, of_branch, strict=True):
            voxels = pairs.samples.mix(weights, pictures, branch.columns).to(device)
            now.append(branch.step(loss(voxels, pictures), self.done / self.steps))
        self.done += 1
        return now

    def _structural(self, voxels: Tensor, pictures: Tensor) -> Tensor:
        predicted = self.havir.structural_generator(voxels)
        return losses.structural_loss(predicted, self.pairs.latents[pictures.to(predicted.device)], self.options.edges)

    def _semantic(self, voxels: Tensor, pictures: Tensor, mixing: Mixing | None = None) -> Tensor:
        options, rows = self.options, pictures.to(voxels.device)
        image, text = self.havir.semantic_extractor(voxels if mixing is None else mixing.mix(voxels))
        heads = ((image, self.pairs.image[rows]), (text, self.pairs.text[rows]))
        of_head = partial(losses.token_loss, temperature=options.temperature, mse=options.mse, contrast=options.contrast, mixing=mixing)
        return sum((of_head(predicted, target) for predicted, target in heads), voxels.new_zeros(()))

    @torch.no_grad()
    def held_out_losses(self) -> tuple[float, float]:
        """Return both branches' losses on the held-out pictures' averaged repeats."""
        self.havir.eval()
        structural, semantic = self._averaged(self.pairs.held)
        return float(self._structural(structural, self.pairs.held)), float(self._semantic(semantic, self.pairs.held))

    @torch.no_grad()
    def predict(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the present weights make of the pictures' averaged repeats, unrepaired."""
        self.havir.eval()
        structural, semantic = self._averaged(pictures)
        image, text = self.havir.semantic_extractor(semantic)
        return self.havir.structural_generator(structural), image, text

    def _averaged(self, pictures: Tensor) -> list[Tensor]:
        samples = self.pairs.samples
        return [samples.mix(samples.means(pictures), pictures, branch.columns).to(self.havir.device) for branch in self.branches]

    def _store(self, file: Path) -> None:
        state = {
            "identity": self.identity,
            "done": self.done,
            "draws": self.draws.get_state(),
            "noise": self.noise.get_state(),
            "weights": self.havir.state_dict(),
            "optimisers": [b.optimiser.state_dict() for b in self.branches],
            "best": [b.best for b in self.branches],
        }
        with whole(file) as (part,):
            torch.save(state, part)

    def _restore(self, file: Path) -> None:
        try:
            state = torch.load(file, weights_only=True, map_location=self.havir.device)  # noqa: TID251 - our own checkpoint, and no pickled code is run
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


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
