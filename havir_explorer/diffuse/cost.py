"""What one picture will cost, before it is begun: operations counted on the configuration, over the speed that this machine reaches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from havir_explorer.diffuse import parts, tensors
from havir_explorer.diffuse.parts import Place
from havir_explorer.diffuse.source import EXTRAS, Source
from havir_explorer.records import Settings

LONG = 30.0
"""Seconds from which a picture's cost is worth saying first."""
_SHARE = 0.8
"""Part of a matrix product's speed that the whole network reaches; measured at the published size on a CPU (benchmarks/RESULTS.md)."""
_MAPS = 6
"""Feature maps of the autoencoder's largest layer that are in memory together while it decodes; measured likewise."""


@dataclass(frozen=True)
class Cost:
    """An estimate for one picture.

    Parameters
    ----------
    seconds : float
        Of drawing it: the steps, and two decodings (the decoded latents and the picture). Loading and scores are not in it.
    bytes : int
        Of memory: the weights that stay, and the largest feature maps.
    steps : int
        Denoising steps that run.
    step_flops, decode_flops : float
        Floating-point operations of one step and of one decoding.
    device : str
    """

    seconds: float
    bytes: int
    steps: int
    step_flops: float
    decode_flops: float
    device: str

    @property
    def is_long(self) -> bool:
        """True when a user should know before it begins."""
        return self.seconds > LONG

    def __str__(self) -> str:
        minutes = self.seconds / 60
        wait = f"{max(self.seconds, 1):.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        room = f"{self.bytes / 1e9:.1f} GB" if self.bytes > 1e8 else f"{self.bytes / 1e6:.0f} MB"
        return f"one picture will take about {wait} and {room} of memory on {self.device} ({self.steps} steps)"


def estimate(source: Source, settings: Settings, place: Place) -> Cost:
    """Return what a picture of these settings will cost.

    Parameters
    ----------
    source : Source
    settings : Settings
        Steps, strength, guidance, its interval, and mix decide.
    place : Place
        Device and number format it will run in.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        A part that is needed to tell is absent or damaged.
    """
    unet, vae = source.config("image_unet"), source.config("vae")
    steps = min(int(settings.steps * settings.strength), settings.steps)
    rows = 1 if settings.guidance == 1 else 1 + settings.guidance_stop - settings.guidance_start  # the mean over the steps
    by_image, by_text = (_step_flops(_frozen(unet), tokens) for tokens in _tokens(source))
    flows = (0.0 if settings.mix == 1 else by_image.attention) + (0.0 if settings.mix == 0 else by_text.attention)
    step = rows * (by_image.rest + flows)
    decode, largest = _decoding(_frozen(vae), int(unet["sample_size"]))
    seconds = (steps * step + 2 * decode) / (_SHARE * _speed(place))
    return Cost(seconds, _weights(source, place) + _MAPS * largest * place.of_autoencoder.dtype.itemsize, steps, step, decode, str(place.device))


@dataclass(frozen=True)
class _Flops:
    """Of one row: in the transformer blocks, and in everything else."""

    attention: float
    rest: float


_Frozen = tuple[tuple[str, Any], ...]


def _frozen(config: Mapping[str, Any]) -> _Frozen:
    """A configuration that a cache can key on."""
    pairs = ((name, tuple(value) if isinstance(value, list) else value) for name, value in config.items() if not name.startswith("_"))
    return tuple(sorted(pairs))


@lru_cache(maxsize=8)
def _step_flops(config: _Frozen, tokens: int) -> _Flops:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
        size, width = unet.config.sample_size, unet.config.cross_attention_dim
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            unet(torch.empty(1, unet.config.in_channels, size, size), torch.tensor(1), torch.empty(1, tokens, width))
    total = counter.get_total_flops()
    blocks = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name.split(".")[-2:-1] == ["attentions"]}
    return _Flops(sum(blocks.values()), total - sum(blocks.values()))


@lru_cache(maxsize=8)
def _decoding(config: _Frozen, size: int) -> tuple[float, int]:
    """Operations of one decoding, and numbers in its largest feature map."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config))
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            side = vae.decode(torch.empty(1, vae.config.latent_channels, size, size)).sample.shape[-1]
    widest = vae.config.block_out_channels[min(1, len(vae.config.block_out_channels) - 1)]
    return float(counter.get_total_flops()), int(widest * side * side)


def _tokens(source: Source) -> tuple[int, int]:
    """Image and text tokens, from the extras or else from the towers' configurations."""
    beside = source.root / EXTRAS
    if beside.is_file():
        held = tensors.contents(beside)
        if {"empty_image", "empty_text"} <= held.keys():
            return held["empty_image"].shape[1], held["empty_text"].shape[1]
    image, text = parts.blank(source, "image_encoder").config, parts.blank(source, "text_encoder").config
    return (image.image_size // image.patch_size) ** 2 + 1, int(text.max_position_embeddings)


def _weights(source: Source, place: Place) -> int:
    room = 0
    for part, there in (("image_unet", place), ("text_unet", place), ("vae", place.of_autoencoder)):
        held = parts.contents(source, part)
        room += there.dtype.itemsize * sum(torch.Size(held[name].shape).numel() for name in parts.present(part, held).values())
    return room


@lru_cache(maxsize=8)
def _speed(place: Place) -> float:
    """Operations a second that a matrix product reaches here, the best of a few short ones."""
    left = torch.ones(1024, 1024, device=place.device, dtype=place.dtype)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        (left @ left).sum().item()  # the sum waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best
