"""Versatile Diffusion's denoiser: one UNet, two flows, mixed inside every transformer block.

Source: Xu et al. 2023, "Versatile Diffusion" (arXiv 2211.08332), section 3; the residual-space mixing is diffusers' DualTransformer2DModel.
Here the mix is an argument of the call, one number a picture, never state of the module: two requests cannot disturb each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn


class Conditions(NamedTuple):
    """What guides the denoiser, one row a picture.

    ``image`` is (B, n_image_tokens, width), ``text`` (B, n_text_tokens, width), ``mix`` the text share (B,) in [0, 1]: 0 is image only,
    1 is text only. A flow whose condition is ``None`` is not run, and ``mix`` is then ignored.
    """

    image: Tensor | None
    text: Tensor | None
    mix: Tensor | None = None

    @classmethod
    def single(cls, context: Tensor, *, text: bool) -> Conditions:
        """Return conditions that run one flow alone."""
        return cls(None, context) if text else cls(context, None)

    @classmethod
    def mixed(cls, image: Tensor, text: Tensor, mix: Tensor) -> Conditions:
        """Return conditions for both flows, leaving out one whose weight is 0 in every row."""
        if bool((mix == 0).all()):
            return cls(image, None)
        if bool((mix == 1).all()):
            return cls(None, text)
        return cls(image, text, mix)


class DualFlowBlock(nn.Module):
    """The same transformer block twice, for the image and for the text condition, mixed in residual space.

    h + m (T_text(h, c_text) - h) + (1 - m) (T_image(h, c_image) - h), which is m T_text + (1 - m) T_image.
    """

    def __init__(self, image: Transformer2DModel, text: Transformer2DModel) -> None:
        super().__init__()
        self.image, self.text = image, text

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Conditions, **_unused: object) -> tuple[Tensor]:
        """Return the mixed block output, (B, C, h, w); the further keywords are those diffusers' UNet blocks pass to any transformer."""
        image, text, mix = encoder_hidden_states
        if text is None:
            return (self.image(hidden_states, encoder_hidden_states=image, return_dict=False)[0],)
        by_text: Tensor = self.text(hidden_states, encoder_hidden_states=text, return_dict=False)[0]
        if image is None or mix is None:
            return (by_text,)
        by_image: Tensor = self.image(hidden_states, encoder_hidden_states=image, return_dict=False)[0]
        return (torch.lerp(by_image, by_text, mix.to(by_image.dtype)[:, None, None, None]),)


class VersatileUNet(nn.Module):
    """A UNet2DConditionModel whose transformer blocks are :class:`DualFlowBlock`.

    Parameters
    ----------
    config : dict
        The ``config.json`` of the checkpoint's ``image_unet``.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel.from_config(config)
        twin = UNet2DConditionModel.from_config(config)
        for name, module in list(self.unet.named_modules()):
            if isinstance(module, Transformer2DModel):
                parent, _, index = name.rpartition(".")
                self.unet.get_submodule(parent)[int(index)] = DualFlowBlock(module, twin.get_submodule(name))

    def forward(self, latents: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the predicted noise, shaped like ``latents`` (B, 4, h, w); ``times`` is (B,) or a scalar in [0, 1000)."""
        return self.unet(latents, times, conditions, return_dict=False)[0]

    def load_flows(self, image: dict[str, Tensor], text: dict[str, Tensor]) -> None:
        """Take the weights of a checkpoint's ``image_unet`` and the transformer blocks of its ``text_unet``, without copying them.

        Raises
        ------
        RuntimeError
            A key is missing, superfluous or of another shape (torch's own message names it).
        """
        twofold = {_renamed(key, "image"): value for key, value in image.items()}
        twofold |= {_renamed(key, "text"): value for key, value in text.items() if ".attentions." in key}
        self.unet.load_state_dict(twofold, assign=True)

    def flows(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weights as a checkpoint holds them: ``image_unet`` whole, of ``text_unet`` only the transformer blocks."""
        weights = self.unet.state_dict()
        text = {key.replace(".text.", ".", 1): value for key, value in weights.items() if _is_flow(key, "text")}
        image = {key.replace(".image.", ".", 1) if _is_flow(key, "image") else key: value for key, value in weights.items() if not _is_flow(key, "text")}
        return image, text


def _is_flow(key: str, flow: str) -> bool:
    parts = key.split(".")
    return "attentions" in parts and parts[parts.index("attentions") + 2] == flow


def _renamed(key: str, flow: str) -> str:
    parts = key.split(".")
    if "attentions" in parts:
        parts.insert(parts.index("attentions") + 2, flow)
    return ".".join(parts)
