"""Classifier-free guidance by both conditions at once: e_u + g (e_c - e_u), both dropped together in e_u (method 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from havir_explorer.diffuse.conventions import CONVENTIONS
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.schedule import Schedule
from havir_explorer.diffuse.versatile import Conditions
from havir_explorer.records import Decoded, FloatArray, Settings


class Unconditional(NamedTuple):
    """What stands for "no condition": float32 (1 or B, n_image_tokens, width) and (1 or B, n_text_tokens, width)."""

    image: FloatArray
    text: FloatArray


class Guidance:
    """The guided prediction at each step of one request; what the steps share is computed here, once.

    Parameters
    ----------
    model : VersatileDiffusion
    decoded : Decoded
        B rows.
    settings : sequence of Settings
        One a row.
    schedule : Schedule
    unconditional : Unconditional, optional
        In place of the model's own.
    """

    def __init__(
        self, model: VersatileDiffusion, decoded: Decoded, settings: Sequence[Settings], schedule: Schedule, unconditional: Unconditional | None = None
    ) -> None:
        self._unet, self._dtype = model.unet, model.dtype
        model.unet.settle()
        mix, scale = (torch.tensor(values, device=model.device) for values in ([s.mix for s in settings], [s.guidance for s in settings]))
        self._scale = scale[:, None, None, None]
        self._guided = _guided_steps(schedule, settings)
        self._alone = self._both = model.unet.read(_conditions(model, Unconditional(decoded.image_embeds, decoded.text_embeds), mix))
        if any(self._guided):
            empty = _empty(model, settings[0]) if unconditional is None else unconditional
            self._both = self._alone.below(model.unet.read(_conditions(model, empty, mix)), len(settings))
        moments = model.unet.embed(torch.tensor(schedule.times, device=model.device))
        self._moments = list(zip(*(moment.split(1) for moment in moments), strict=True))

    def __call__(self, latents: Tensor, index: int) -> Tensor:
        """Return the predicted noise, float32 (B, 4, h, w), for latents (B, 4, h, w) at step ``index``."""
        given = latents.to(self._dtype)
        if not self._guided[index]:
            return self._unet.denoise(given, self._moments[index], self._alone).float()
        without, with_ = self._unet.denoise(given, self._moments[index], self._both).float().chunk(2)
        return without + self._scale * (with_ - without)


def _guided_steps(schedule: Schedule, settings: Sequence[Settings]) -> list[bool]:
    shared, off = settings[0], all(s.guidance == 1 for s in settings)
    places = (step / shared.steps for step in range(schedule.first, shared.steps))
    return [not off and shared.guidance_start <= place < shared.guidance_stop for place in places]


def _empty(model: VersatileDiffusion, settings: Settings) -> Unconditional:
    pair = model.unconditional(CONVENTIONS[settings.convention].unconditional)
    return Unconditional(*(value.float().cpu().numpy() for value in pair))


def _conditions(model: VersatileDiffusion, values: Unconditional, mix: Tensor) -> Conditions:
    image, text = (torch.from_numpy(value).to(model.device, model.dtype) for value in values)
    return Conditions.mixed(image, text, mix)
