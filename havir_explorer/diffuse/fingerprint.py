"""Which autoencoder and CLIP a model has, in a few numbers: what a decoder's targets were made with, and what it may drive."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch

from havir_explorer.diffuse.model import VersatileDiffusion

_SIDE = 64
_SHOWN = 8
_KNOWN: WeakKeyDictionary[VersatileDiffusion, tuple[float, ...]] = WeakKeyDictionary()  # whose models are let go when their files are replaced


def fingerprint(model: VersatileDiffusion) -> tuple[float, ...]:
    """Return three groups of eight numbers; training the denoiser further does not change them, another number format hardly.

    Returns
    -------
    tuple of float
        Mean and standard deviation of each latent channel of a fixed colour gradient (of the first four channels); the first eight values
        of the mean token of the unconditional image embedding; the same of the text embedding.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _computed(model)
    return _KNOWN[model]


@torch.inference_mode()
def _computed(model: VersatileDiffusion) -> tuple[float, ...]:
    ramp = torch.linspace(-1, 1, _SIDE)
    gradient = torch.stack([ramp[:, None].expand(_SIDE, _SIDE), ramp.expand(_SIDE, _SIDE), ramp[:, None] * ramp])[None]
    latents = model.vae.encode(gradient.to(model.device, model.vae.dtype)).latent_dist.mode()[0].float() * model.vae.config.scaling_factor
    spread = torch.stack([latents.mean((1, 2)), latents.std((1, 2))], dim=1)[: _SHOWN // 2].flatten()
    tokens = [embedding[0].float().mean(0)[:_SHOWN] for embedding in (model.empty_image, model.empty_text)]
    return tuple(round(float(value), 5) for value in np.concatenate([part.cpu().numpy() for part in (spread, *tokens)]))
