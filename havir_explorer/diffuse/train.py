"""Train a small Versatile Diffusion from captioned pictures: autoencoder, then CLIP, then the two flows.

The architecture is the published one at another size (Xu et al. 2023, Versatile Diffusion, sections 3.2-3.3): an AutoencoderKL, a CLIP
with projections on every token, and one UNet whose transformer blocks exist twice, once per flow. Each stage is one resumable loop.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name every torch reader knows
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from havir_explorer.diffuse.versatile import Conditions
from havir_explorer.records import UInt8Array


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Parameters
    ----------
    steps : int
        Optimiser steps in all, counted across resumptions.
    batch : int
        Pictures a step.
    learning_rate : float
        Peak of a linear warm-up (2 % of the steps) and cosine decay to a tenth.
    seed : int
        Order of pictures, noise and dropped conditions.
    """

    steps: int
    batch: int
    learning_rate: float
    seed: int = 0


Loss = Callable[[torch.Generator], Tensor]


def fit(modules: dict[str, nn.Module], loss: Loss, schedule: Schedule, folder: Path, *, averaged: tuple[str, ...] = (), every: int = 200) -> None:
    """Run one training loop, resuming from ``folder`` when it holds a checkpoint.

    Parameters
    ----------
    modules : dict of nn.Module
        What is trained, by name. After the call, modules named in ``averaged`` hold their exponential moving average.
    loss : callable
        Draws its own batch with the given generator and returns a scalar.
    schedule : Schedule
        Steps, batch, rate.
    folder : Path
        Holds ``state.pt`` (weights, averages, optimiser, step) and ``log.jsonl`` (step, loss, seconds), replaced atomically every ``every`` steps.
    averaged : tuple of str
        Modules to average (decay 0.999, shorter at the start).
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=1e-2, betas=(0.9, 0.99))
    averages = {name: {k: v.clone() for k, v in modules[name].state_dict().items()} for name in averaged}
    state_file, first = folder / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=parameters[0].device)
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        averages, first = state["averages"], state["step"]
        optimiser.load_state_dict(state["optimiser"])
    running, started = 0.0, time.perf_counter()
    how = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "device": _named(parameters[0].device), "batch": schedule.batch}
    for step in range(first, schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate * _rate(step, schedule.steps)
        value = loss(torch.Generator().manual_seed(schedule.seed * 1_000_003 + step))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        decay = min(0.999, (step + 1) / (step + 10))
        for name, average in averages.items():
            for key, tensor in modules[name].state_dict().items():
                average[key].lerp_(tensor, 1.0 - decay) if tensor.is_floating_point() else average[key].copy_(tensor)
        running += value.item()
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            state = {"modules": {n: m.state_dict() for n, m in modules.items()}, "averages": averages, "optimiser": optimiser.state_dict(), "step": step + 1}
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
            line = {**how, "step": step + 1, "loss": round(running / ((step % every) + 1), 5), "seconds": round(time.perf_counter() - started, 1)}
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps({"stage": folder.name, **line}), flush=True)
            running = 0.0
    for name, average in averages.items():
        modules[name].load_state_dict(average)


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 50)
    return min((step + 1) / warm, 0.55 + 0.45 * float(np.cos(np.pi * step / steps)))


def to_unit(pictures: UInt8Array) -> Tensor:
    """Return uint8 (B, H, W, 3) pictures as float32 (B, 3, H, W) in [-1, 1], the autoencoder's range."""
    return torch.tensor(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def autoencoder_loss(vae: AutoencoderKL, pictures: UInt8Array, batch: int) -> Loss:
    """Return the loss of the autoencoder: L1 + MSE + L1 between picture gradients + 1e-5 KL (per latent value)."""

    def loss(rng: torch.Generator) -> Tensor:
        seen = to_unit(pictures[torch.randint(len(pictures), (batch,), generator=rng).numpy()]).to(vae.device)
        posterior = vae.encode(seen).latent_dist
        redrawn = vae.decode(posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=rng).to(vae.device)).sample
        edges = sum((torch.diff(redrawn, dim=d) - torch.diff(seen, dim=d)).abs().mean() for d in (2, 3))
        return F.l1_loss(redrawn, seen) + F.mse_loss(redrawn, seen) + edges + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()

    return loss


def contrastive_loss(
    vision: CLIPVisionModelWithProjection,
    text: CLIPTextModelWithProjection,
    pixels: Callable[[UInt8Array], Tensor],
    pictures: UInt8Array,
    tokens: npt.NDArray[np.int16],
    batch: int,
    scale: nn.Parameter,
) -> Loss:
    """Return CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3); ``tokens`` is int (n_pictures, n_captions, n_tokens)."""

    def loss(rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(pictures), (batch,), generator=rng).numpy()
        which = torch.randint(tokens.shape[1], (batch,), generator=rng).numpy()
        image = F.normalize(vision(pixel_values=pixels(pictures[rows]).to(scale.device)).image_embeds, dim=-1)
        caption = F.normalize(text(input_ids=torch.from_numpy(tokens[rows, which]).long().to(scale.device)).text_embeds, dim=-1)
        logits = scale.exp().clamp(max=100.0) * image @ caption.T
        target = torch.arange(batch, device=scale.device)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    return loss


@dataclass(frozen=True)
class FlowData:
    """What the flows are trained on; one row a picture.

    Parameters
    ----------
    latents : Tensor
        (n, 4, h, w), already times the scaling factor.
    image_embeds : Tensor
        (n, n_image_tokens, width), normalised as method 2.2.
    text_embeds : Tensor
        (n_distinct_captions, n_text_tokens, width).
    captions : Tensor
        int64 (n, n_captions), rows of ``text_embeds``.
    empty_image, empty_text : Tensor
        (1, n_tokens, width): the encoded mid-grey picture and the encoded empty caption.
    """

    latents: Tensor
    image_embeds: Tensor
    text_embeds: Tensor
    captions: Tensor
    empty_image: Tensor
    empty_text: Tensor


def flow_loss(
    scheduler: DDIMScheduler,
    data: FlowData,
    batch: int,
    forward: Callable[[Tensor, Tensor, Conditions], Tensor],
    device: str | torch.device = "cpu",
) -> Loss:
    """Return the noise-prediction loss: one flow a step, the condition dropped in a tenth of the rows, min-SNR weights (Hang et al. 2023, gamma 5)."""
    alphas = scheduler.alphas_cumprod

    def loss(rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(data.latents), (batch,), generator=rng)
        dropped = (torch.rand(batch, generator=rng) < 0.1)[:, None, None]
        by_text = bool(torch.rand((), generator=rng) < 0.5)
        if by_text:
            which = torch.randint(data.captions.shape[1], (batch,), generator=rng)
            context, empty = data.text_embeds[data.captions[rows, which]].float(), data.empty_text
        else:
            context, empty = data.image_embeds[rows].float(), data.empty_image
        times = torch.randint(len(alphas), (batch,), generator=rng)
        clean = data.latents[rows].float()
        noise = torch.randn(clean.shape, generator=rng)
        noisy = scheduler.add_noise(clean, noise, times)
        conditions = Conditions.single(torch.where(dropped, empty, context).to(device), text=by_text)
        predicted = forward(noisy.to(device), times.to(device), conditions)
        signal_to_noise = alphas[times] / (1.0 - alphas[times])
        weight = signal_to_noise.clamp(max=5.0) / signal_to_noise
        return ((predicted - noise.to(device)).square().mean(dim=(1, 2, 3)) * weight.to(device)).mean()

    return loss


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pictures: UInt8Array, batch: int = 64) -> Tensor:
    """Return the modes of the pictures' posteriors, (n, 4, h, w) float32, *not* yet times the scaling factor."""
    return torch.cat([vae.encode(to_unit(chunk)).latent_dist.mode() for chunk in _chunks(pictures, batch)])


def _chunks(pictures: UInt8Array, batch: int) -> Iterator[UInt8Array]:
    for start in range(0, len(pictures), batch):
        yield pictures[start : start + batch]

