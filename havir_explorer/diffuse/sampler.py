"""The denoising loop: start from decoded latents at a strength, guide by both conditions, stop when asked (method 2.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from havir_explorer.diffuse.guidance import Guidance, Unconditional
from havir_explorer.diffuse.memory import enough
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.schedule import schedule
from havir_explorer.errors import RequestError
from havir_explorer.records import Decoded, FloatArray, Settings

OnStep = Callable[[int, int, Tensor], None]
"""Called with (steps done, steps to do, predicted clean latents (B, 4, h, w)); raising stops the loop."""

SHARED = ("steps", "strength", "scheduler", "guidance_start", "guidance_stop", "convention")
"""Settings that must be the same for all pictures of one batch; seed, guidance and mix may differ."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Finished latents.

    Parameters
    ----------
    latents : Tensor
        (B, 4, h, w), scaled, float32 on the CPU.
    steps_run : int
        k of the N steps.
    signal : float
        sqrt(alpha-bar) at the start: the share of the decoded latents' amplitude that survived.
    """

    latents: Tensor
    steps_run: int
    signal: float


@torch.inference_mode()
def generate(
    model: VersatileDiffusion,
    decoded: Decoded,
    settings: Sequence[Settings],
    *,
    unconditional: Unconditional | None = None,
    noise: FloatArray | None = None,
    on_step: OnStep | None = None,
) -> Drawn:
    """Redraw decoded responses.

    Parameters
    ----------
    model : VersatileDiffusion
    decoded : Decoded
        B rows.
    settings : sequence of Settings
        One a row; those named in :data:`SHARED` must be the same in all.
    unconditional : Unconditional, optional
        What stands for "no condition", in place of what the convention says.
    noise : float32 (B, 4, h, w), optional
        Unit normal, in place of each seed's own.
    on_step : callable, optional
        See :data:`OnStep`.

    Returns
    -------
    Drawn
        At strength 0 the decoded latents themselves, at strength 1 nothing of them. The latents are float32 between the steps whatever the
        model's number format. A row is the same alone or among others up to rounding: 1e-4 in a float32 model.

    Raises
    ------
    RequestError
        The batch is empty, sizes differ, or a value is not finite: given, or drawn in a number format too small for it.
    DeviceOutOfMemory
        The batch does not fit into the device's memory.
    """
    _check(model, decoded, settings, unconditional, noise)
    plan = schedule(model.scheduler_config, settings[0])
    latents = torch.tensor(decoded.latents)
    if not plan.times:
        return Drawn(latents, 0, 1.0)
    with enough(model.device, len(decoded)):
        latents = plan.start(latents, _noise(model, settings) if noise is None else torch.tensor(noise)).to(model.device)
        guided = Guidance(model, decoded, settings, plan, unconditional)
        for index in range(len(plan.times)):
            latents, clean = plan.step(guided(latents, index), index, latents)
            if on_step is not None:
                on_step(index + 1, len(plan.times), clean)
    return Drawn(_finite(model, latents.cpu()), len(plan.times), plan.alpha_bar**0.5)


def _noise(model: VersatileDiffusion, settings: Sequence[Settings]) -> Tensor:
    """Each picture's noise from its own generator on the CPU, so that neither the device nor the batch changes it."""
    return torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(s.seed)) for s in settings])


def _finite(model: VersatileDiffusion, latents: Tensor) -> Tensor:
    if not torch.isfinite(latents).all():
        rows = [int(row) for row in torch.nonzero(~torch.isfinite(latents).flatten(1).all(dim=1)).flatten()]
        kind = str(model.dtype).removeprefix("torch.")
        msg = (
            f"row {rows[0]} of {len(latents)} drew latents that are not finite ({len(rows)} rows in all): its numbers are too large for the "
            f"generator in {kind}; check the decoded embeddings' size, or draw in a wider format (HAVIR_DTYPE=float32)"
        )
        raise RequestError(msg)
    return latents


def _check(model: VersatileDiffusion, decoded: Decoded, settings: Sequence[Settings], unconditional: Unconditional | None, noise: FloatArray | None) -> None:
    rows = len(decoded)
    if rows == 0 or len(settings) != rows:
        msg = f"one Settings a decoded row is needed, and one row at least: got {len(settings)} for {rows} rows"
        raise RequestError(msg)
    for name in SHARED:
        if len({getattr(s, name) for s in settings}) > 1:
            msg = f"{name} must be the same for all pictures of one batch; run them in two calls"
            raise RequestError(msg)
    image, text = (tuple(value.shape[1:]) for value in (model.empty_image, model.empty_text))
    _fits("decoded latents", decoded.latents, model.latent_shape, (rows,))
    _fits("decoded image_embeds", decoded.image_embeds, image, (rows,))
    _fits("decoded text_embeds", decoded.text_embeds, text, (rows,))
    if unconditional is not None:
        _fits("unconditional image_embeds", unconditional.image, image, (1, rows))
        _fits("unconditional text_embeds", unconditional.text, text, (1, rows))
    if noise is not None:
        _fits("noise", noise, model.latent_shape, (rows,))


def _fits(name: str, value: FloatArray, shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    if tuple(value.shape[1:]) != shape or len(value) not in rows:
        wanted = " or ".join(str((count, *shape)) for count in dict.fromkeys(rows))
        msg = f"{name} have shape {tuple(value.shape)}, but this Versatile Diffusion takes {wanted}; use the decoder trained for it"
        raise RequestError(msg)
    if not np.isfinite(value).all():
        msg = f"{name} hold a value that is not finite; check the responses of this trial"
        raise RequestError(msg)
