"""The denoising loop: start from decoded latents at a strength, guide by both conditions, stop when asked (method 2.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.versatile import Conditions
from havir_explorer.errors import RequestError
from havir_explorer.records import Decoded, Settings

OnStep = Callable[[int, int, Tensor], None]
"""Called with (steps done, steps to do, predicted clean latents (B, 4, h, w)); raising stops the loop."""


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
def generate(model: VersatileDiffusion, decoded: Decoded, settings: Sequence[Settings], *, on_step: OnStep | None = None) -> Drawn:
    """Redraw decoded responses.

    Parameters
    ----------
    model : VersatileDiffusion
    decoded : Decoded
        B rows.
    settings : sequence of Settings
        One a row; seed, guidance and mix may differ, steps and strength may not.
    on_step : callable, optional
        See :data:`OnStep`.

    Returns
    -------
    Drawn
        At strength 0 the decoded latents themselves, at strength 1 nothing of them.

    Raises
    ------
    RequestError
        The batch is empty, sizes differ, or a decoded value is not finite.
    """
    _check(model, decoded, settings)
    steps, strength = settings[0].steps, settings[0].strength
    start = torch.from_numpy(decoded.latents).to(model.device, model.dtype)
    run = min(int(steps * strength), steps)
    if run == 0:
        return Drawn(start.float().cpu(), 0, 1.0)
    scheduler = DDIMScheduler.from_config(model.scheduler_config)
    scheduler.set_timesteps(steps, device=model.device)
    times = scheduler.timesteps[steps - run :]
    noise = torch.stack([_noise(model, s.seed) for s in settings])
    latents = noise if strength == 1 else scheduler.add_noise(start, noise, times[:1].expand(len(start)))
    signal = 0.0 if strength == 1 else float(scheduler.alphas_cumprod[int(times[0])] ** 0.5)
    guided = _Guidance(model, decoded, settings)
    for done, time in enumerate(times, start=1):
        stepped = scheduler.step(guided(latents, time), time, latents)
        latents = stepped.prev_sample
        if on_step is not None:
            on_step(done, run, stepped.pred_original_sample)
    return Drawn(latents.float().cpu(), run, signal)


class _Guidance:
    """Classifier-free guidance: e_u + g (e_c - e_u), both conditions dropped together in e_u, both rows in one forward pass."""

    def __init__(self, model: VersatileDiffusion, decoded: Decoded, settings: Sequence[Settings]) -> None:
        image, text = (torch.from_numpy(e).to(model.device, model.dtype) for e in (decoded.image_embeds, decoded.text_embeds))
        mix = torch.tensor([s.mix for s in settings], device=model.device)
        scale = torch.tensor([s.guidance for s in settings], device=model.device, dtype=model.dtype)
        self._scale, self._unet = scale[:, None, None, None], model.unet
        self._off = bool((scale == 1).all())
        if not self._off:
            image = torch.cat([model.empty_image.expand_as(image), image])
            text = torch.cat([model.empty_text.expand_as(text), text])
            mix = mix.repeat(2)
        self._conditions = Conditions.mixed(image, text, mix)

    def __call__(self, latents: Tensor, time: Tensor) -> Tensor:
        if self._off:
            return self._unet(latents, time, self._conditions)
        unguided, guided = self._unet(latents.repeat(2, 1, 1, 1), time, self._conditions).chunk(2)
        return unguided + self._scale * (guided - unguided)


def _noise(model: VersatileDiffusion, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(model.latent_shape, generator=generator).to(model.device, model.dtype)


def _check(model: VersatileDiffusion, decoded: Decoded, settings: Sequence[Settings]) -> None:
    if len(decoded) == 0 or len(settings) != len(decoded):
        msg = f"one Settings a decoded row is needed: got {len(settings)} for {len(decoded)} rows"
        raise RequestError(msg)
    if len({(s.steps, s.strength) for s in settings}) > 1:
        msg = "steps and strength must be the same for all pictures of one batch; run them in two calls"
        raise RequestError(msg)
    expected = {"latents": model.latent_shape, "image_embeds": tuple(model.empty_image.shape[1:]), "text_embeds": tuple(model.empty_text.shape[1:])}
    for name, shape in expected.items():
        value = getattr(decoded, name)
        if tuple(value.shape[1:]) != tuple(shape):
            msg = f"decoded {name} have shape {tuple(value.shape[1:])}, but this Versatile Diffusion takes {tuple(shape)}; use the decoder trained for it"
            raise RequestError(msg)
        if not torch.isfinite(torch.from_numpy(value)).all():
            msg = f"decoded {name} hold a value that is not finite; check the responses of this trial"
            raise RequestError(msg)
