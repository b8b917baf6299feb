"""Versatile Diffusion's denoiser: one UNet, two flows, mixed inside every transformer block."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn


class Conditions(NamedTuple):
    """What guides the denoiser, one row a picture.

    ``image`` is (B, n_image_tokens, width), ``text`` (B, n_text_tokens, width), ``mix`` the text share (B,) in [0, 1]: 0 is image only,
    1 is text only. A flow whose condition is ``None`` is not run and ``mix`` is ignored.
    """

    image: Tensor | None
    text: Tensor | None
    mix: Tensor | None = None

    @classmethod
    def single(cls, context: Tensor, *, text: bool) -> Conditions:
        """Return conditions that run one flow alone."""
        return cls(None, context) if text else cls(context, None)


class DualFlowBlock(nn.Module):
    """The same transformer block twice, for the image and for the text condition, mixed in residual space.

    h + m (T_text(h, c_text) - h) + (1 - m) (T_image(h, c_image) - h), which is m T_text + (1 - m) T_image
    (diffusers' DualTransformer2DModel; Xu et al. 2023, section 3.3).
    """

    def __init__(self, image: Transformer2DModel, text: Transformer2DModel) -> None:
        super().__init__()
        self.image, self.text = image, text

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Conditions, **_unused: object) -> tuple[Tensor]:
        """Return the mixed block output; the other keywords are those diffusers' UNet blocks pass along."""
        image, text, mix = encoder_hidden_states
        if text is None:
            return (self.image(hidden_states, encoder_hidden_states=image, return_dict=False)[0],)
        if image is None:
            return (self.text(hidden_states, encoder_hidden_states=text, return_dict=False)[0],)
        share = mix.to(hidden_states.dtype)[:, None, None, None]
        by_text = self.text(hidden_states, encoder_hidden_states=text, return_dict=False)[0]
        by_image = self.image(hidden_states, encoder_hidden_states=image, return_dict=False)[0]
        return (torch.lerp(by_image, by_text, share),)


class VersatileUNet(nn.Module):
    """A UNet2DConditionModel whose transformer blocks are :class:`DualFlowBlock`."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel.from_config(config)
        twin = UNet2DConditionModel.from_config(config)
        for name, module in list(self.unet.named_modules()):
            if isinstance(module, Transformer2DModel):
                parent, _, index = name.rpartition(".")
                self.unet.get_submodule(parent)[int(index)] = DualFlowBlock(module, twin.get_submodule(name))

    def forward(self, latents: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        return self.unet(latents, times, conditions, return_dict=False)[0]
