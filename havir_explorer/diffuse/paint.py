"""Latents to pictures within the memory there is: several at once, fewer, or one in tiles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from havir_explorer.diffuse.memory import Notice, enough, fitting, in_batches
from havir_explorer.diffuse.model import VersatileDiffusion, to_uint8
from havir_explorer.errors import DeviceOutOfMemory
from havir_explorer.records import FloatArray, UInt8Array


@torch.inference_mode()
def paint(model: VersatileDiffusion, latents: Tensor | FloatArray, *, on_notice: Notice | None = None) -> UInt8Array:
    """Return pictures, uint8 (B, H, W, 3), of scaled latents (B, 4, h, w).

    Parameters
    ----------
    model : VersatileDiffusion
    latents : float32 (B, 4, h, w)
    on_notice : callable, optional
        Told in a sentence when memory ran out and the pictures are decoded fewer at once, or one in tiles, which can show at their seams.

    Raises
    ------
    DeviceOutOfMemory
        Not even a tile fits.
    """
    whole = torch.as_tensor(latents)

    def work(places: range) -> UInt8Array:
        some = whole[places.start : places.stop]
        try:
            with enough(model.device, len(some)):
                return model.decode_latents(some, batch=len(some))
        except DeviceOutOfMemory:
            if len(some) > 1:
                raise
            if on_notice is not None:
                on_notice("memory ran out while decoding one picture; decoding it in tiles, whose seams may show")
            with enough(model.device, 1):
                return _tiled(model, some)

    return np.concatenate([done for _, done in in_batches(len(whole), fitting(model, len(whole)), work, on_notice)])


def _tiled(model: VersatileDiffusion, latents: Tensor) -> UInt8Array:
    given = latents.to(model.device, model.vae.dtype) / model.vae.config.scaling_factor
    tile = max(4, min(given.shape[2:]) // 8 * 4)  # at most half a side: the autoencoder's own tiles may be as large as the picture
    model.vae.tile_latent_min_size, model.vae.tile_sample_min_size = tile, tile * model.side // model.latent_shape[1]
    return to_uint8(model.vae.tiled_decode(given).sample.float() / 2 + 0.5)
