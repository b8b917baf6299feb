"""diffusers' own dual-guided pipeline, made to run: its block given the keyword that it lacks, its encoders given decoded embeddings.

Only benchmarks use it, to compare with.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, VersatileDiffusionDualGuidedPipeline
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.versatile import VersatileUNet


class PatchedDual(DualTransformer2DModel):  # type: ignore[misc]
    """diffusers' block, taking the keyword that its own UNet passes (upstream issue 13651)."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: object = None, **others: Any) -> Any:  # noqa: ANN401
        """As in diffusers."""
        del encoder_attention_mask
        return super().forward(hidden_states, encoder_hidden_states, **others)


class DualGuided(VersatileDiffusionDualGuidedPipeline):  # type: ignore[misc]
    """The pipeline over embeddings that were decoded and not encoded: what it takes is neither text nor picture here."""

    def _encode_text_prompt(self, prompt: list[Tensor], *_unused: object) -> Tensor:
        return torch.cat([*prompt])

    def _encode_image_prompt(self, prompt: list[Tensor], *_unused: object) -> Tensor:
        return torch.cat([*prompt])

    def check_inputs(self, *_unused: object) -> None:
        """Nothing: see above."""


def dual_unet(ours: VersatileUNet) -> Any:  # noqa: ANN401 - diffusers is not typed
    """Return diffusers' UNet with its dual blocks over the same weights."""
    image, text = ours.flows()
    with torch.device("meta"):
        unet, twin = (UNet2DConditionModel.from_config(dict(ours.unet.config)) for _ in range(2))
    unet.load_state_dict({name: value.contiguous() for name, value in image.items()}, assign=True)
    twin.load_state_dict({name: value.contiguous() for name, value in text.items()}, strict=False, assign=True)
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "norm_num_groups", "cross_attention_dim")
    for name, module in list(unet.named_modules()):
        if isinstance(module, Transformer2DModel):
            parent, _, index = name.rpartition(".")
            with torch.device("meta"):
                dual = PatchedDual(**{key: module.config[key] for key in names})
            dual.transformers = torch.nn.ModuleList([module, twin.get_submodule(name)])
            unet.get_submodule(parent)[int(index)] = dual
    return unet.eval().requires_grad_(False)


def set_mix(unet: Any, mix: float) -> None:  # noqa: ANN401 - diffusers is not typed
    """Set the text share of every dual block, as its pipeline does."""
    for module in unet.modules():
        if isinstance(module, DualTransformer2DModel):
            module.mix_ratio = mix


def pipeline(model: VersatileDiffusion) -> DualGuided:
    """Return diffusers' pipeline over a model's parts, the towers read: it runs where the first of its parts lies."""
    (image_encoder, image_processor), (text_encoder, tokenizer) = model.clip("image_encoder"), model.clip("text_encoder")
    found = DualGuided(
        image_encoder=image_encoder,
        image_feature_extractor=image_processor,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        image_unet=dual_unet(model.unet),
        text_unet=None,
        vae=model.vae.to(model.dtype),  # ours stays float32 in float16; the pipeline hands it the denoiser's latents as they are
        scheduler=DDIMScheduler.from_config(model.scheduler_config),
    )
    found.set_progress_bar_config(disable=True)
    return found


def pictures(found: DualGuided, without: tuple[Tensor, Tensor], image: Tensor, text: Tensor, noise: Tensor, mix: float, guidance: float, steps: int) -> Any:  # noqa: ANN401
    """Return what the pipeline draws from noise (B, 4, h, w), float32 (B, H, W, 3) in [0, 1]; ``without`` are unconditional image and text."""
    empty_image, empty_text = (value.expand(len(noise), -1, -1) for value in without)
    drawn = found(
        prompt=[empty_text, text], image=[empty_image, image], latents=noise, text_to_image_strength=mix, guidance_scale=guidance, num_inference_steps=steps,
        output_type="np",
    )  # fmt: skip
    return drawn.images
