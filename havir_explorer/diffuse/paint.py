"""Latents to pictures within the memory there is: several at once, fewer, or one in tiles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from havir_explorer.diffuse.memory import enough, fitting
from havir_explorer.diffuse.model import VersatileDiffusion, to_uint8
from havir_explorer.errors import DeviceOutOfMemory
from havir_explorer.records import FloatArray, UInt8Array

Notice = Callable[[str], None]


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
    whole, batch = torch.as_tensor(latents), fitting(model, len(latents))
    tell = on_notice or _ignore
    while True:
        try:
            with enough(model.device, batch):
                return model.decode_latents(whole, batch=batch)
        except DeviceOutOfMemory:
            if batch == 1:
                break
            batch //= 2
            tell(f"memory ran out while decoding pictures; going on with {batch} at once")
    tell("memory ran out while decoding one picture; decoding it in tiles, whose seams may show")
    with enough(model.device, 1):
        return np.concatenate([_tiled(model, one) for one in whole.split(1)])


def _tiled(model: VersatileDiffusion, latents: Tensor) -> UInt8Array:
    given = latents.to(model.device, model.vae.dtype) / model.vae.config.scaling_factor
    return to_uint8(model.vae.tiled_decode(given).sample.float() / 2 + 0.5)


def _ignore(_notice: str) -> None:
    pass
