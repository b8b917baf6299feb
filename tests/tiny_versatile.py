"""A random Versatile Diffusion small enough for a test of a second, what may guide it, and diffusers' own dual-guided UNet beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from havir_explorer.diffuse import weights
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.sampler import Drawn
from havir_explorer.diffuse.versatile import VersatileUNet
from havir_explorer.errors import DeviceOutOfMemory
from havir_explorer.records import Decoded, Settings

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SPECIAL = {"bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 5}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


@lru_cache(maxsize=1)
def tiny_model() -> VersatileDiffusion:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(5)
        tower = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
        entries = {c: i for i, c in enumerate(["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"])}
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        vae = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, sample_size=8, **blocks)
        blank = torch.zeros(1)
        model = VersatileDiffusion(
            VersatileUNet(UNET).eval().requires_grad_(False),
            vae.eval().requires_grad_(False),
            CLIPVisionModelWithProjection(CLIPVisionConfig(**tower, image_size=16, patch_size=8)).eval(),
            CLIPTextModelWithProjection(CLIPTextConfig(**tower, vocab_size=6, max_position_embeddings=6, **SPECIAL)).eval(),
            CLIPTokenizer(vocab=entries, merges=[], model_max_length=6),
            CLIPImageProcessor(size={"shortest_edge": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3),
            SCHEDULER,
            blank,
            blank,
            torch.zeros(5, 3),
        )
        return weights.completed(model)


def conditions(model: VersatileDiffusion, batch: int = 3, seed: int = 0) -> Decoded:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal((batch, *shape)).astype(np.float32)  # noqa: E731
    return Decoded(draw(*model.latent_shape), draw(*model.empty_image.shape[1:]), draw(*model.empty_text.shape[1:]))


def watched(generate: Callable[..., Drawn], batches: list[Sequence[Settings]], fits: Callable[[], bool] = lambda: True) -> Callable[..., Drawn]:
    """``generate``, which writes down the settings of each batch that is asked of it, and has no memory for the last one where ``fits`` says so."""

    def limited(model, decoded, settings, **options):
        batches.append(settings)
        if not fits():
            msg = f"{len(settings)} pictures do not fit"
            raise DeviceOutOfMemory(msg)
        return generate(model, decoded, settings, **options)

    return limited


def rows(decoded: Decoded, chosen: slice) -> Decoded:
    return Decoded(decoded.latents[chosen], decoded.image_embeds[chosen], decoded.text_embeds[chosen])


def tensors(decoded: Decoded) -> list[torch.Tensor]:
    return [torch.from_numpy(value) for value in (decoded.latents, decoded.image_embeds, decoded.text_embeds)]


class PatchedDual(DualTransformer2DModel):
    """diffusers' block, given the keyword its own UNet passes and it lacks (upstream issue 13651)."""

    def forward(self, *args: object, encoder_attention_mask: object = None, **kwargs: object) -> object:
        del encoder_attention_mask
        return super().forward(*args, **kwargs)


def patched_dual(image: Transformer2DModel, text: Transformer2DModel, mix: float, lengths: tuple[int, int]) -> PatchedDual:
    """diffusers' dual block over two transformers of one configuration; ``lengths`` are the text's and the image's tokens."""
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "norm_num_groups", "cross_attention_dim")
    dual = PatchedDual(**{name: image.config[name] for name in names})
    dual.transformers = torch.nn.ModuleList([image, text])
    dual.condition_lengths, dual.transformer_index_for_condition, dual.mix_ratio = list(lengths), [1, 0], mix
    return dual


def reference_unet(ours: VersatileUNet, mix: float, lengths: tuple[int, int]) -> UNet2DConditionModel:
    """diffusers' own UNet with its dual blocks and our weights; it takes the text and image tokens in one row."""
    image, text = ours.flows()
    with torch.device("meta"):
        reference, twin = (UNet2DConditionModel.from_config(dict(ours.unet.config)) for _ in range(2))
    reference.load_state_dict(image, assign=True)
    twin.load_state_dict(text, strict=False, assign=True)
    for name, module in list(reference.named_modules()):
        if isinstance(module, Transformer2DModel):
            parent, _, index = name.rpartition(".")
            reference.get_submodule(parent)[int(index)] = patched_dual(module, twin.get_submodule(name), mix, lengths)
    return reference.eval()
