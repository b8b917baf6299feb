"""Which autoencoder and CLIP a model has, in a few numbers: what a decoder's targets were made with, and what it may drive."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from havir_explorer.diffuse.model import VersatileDiffusion

_SIDE = 64
_SHOWN = 8


@lru_cache(maxsize=4)
@torch.inference_mode()
def fingerprint(model: VersatileDiffusion) -> tuple[float, ...]:
    """Return three groups of eight numbers; training the denoiser further does not change them, another number format hardly.

    Returns
    -------
    tuple of float
        Mean and standard deviation of each latent channel of a fixed colour gradient (of the first four channels); the first eight values
        of the mean token of the unconditional image embedding; the same of the text embedding.
    """
    ramp = torch.linspace(-1, 1, _SIDE)
    gradient = torch.stack([ramp[:, None].expand(_SIDE, _SIDE), ramp.expand(_SIDE, _SIDE), ramp[:, None] * ramp])[None]
    latents = model.vae.encode(gradient.to(model.device, model.dtype)).latent_dist.mode()[0].float() * model.vae.config.scaling_factor
    spread = torch.stack([latents.mean((1, 2)), latents.std((1, 2))], dim=1)[: _SHOWN // 2].flatten()
    tokens = [embedding[0].float().mean(0)[:_SHOWN] for embedding in (model.empty_image, model.empty_text)]
    return tuple(round(float(value), 5) for value in np.concatenate([part.cpu().numpy() for part in (spread, *tokens)]))
