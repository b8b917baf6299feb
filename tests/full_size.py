"""Checkpoints of random weights in the published folder layout, at the published size and at a small one.

Of the ``text_unet`` (diffusers' UNetFlatConditionModel, about 0.7 B parameters more in the published file) the 16 transformer blocks are
written whole; the rest, which is never read, is one small tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from tiny_versatile import UNET
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from havir_explorer.diffuse.source import PARTS
from havir_explorer.diffuse.versatile import VersatileUNet

WEIGHTS = {part: f"{part}/{about.safetensors}.safetensors" for part, about in PARTS.items() if about.safetensors}
"""The weight files of a checkpoint written here."""
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


@dataclass(frozen=True)
class Sizes:
    """Configurations of the parts, as their ``config.json``."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    image: Mapping[str, Any]
    text: Mapping[str, Any]


PUBLISHED = Sizes(
    {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
    {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768, "vocab_size": 49408},
)
"""Of ``shi-labs/versatile-diffusion``: 512 px, 4 x 64 x 64 latents, 257 x 768 image and 77 x 768 text embeddings (method 2.1)."""

_TOWER = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
SMALL = Sizes(
    {**PUBLISHED.unet, **UNET},
    {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "sample_size": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    {**_TOWER, "image_size": 16, "patch_size": 8},
    {**_TOWER, "vocab_size": 6, "max_position_embeddings": 6},
)
"""The same architecture, small enough for every test."""


def write(folder: Path, sizes: Sizes = SMALL, *, seed: int = 0) -> Path:
    """Write a checkpoint in float32 safetensors and return its folder."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        unet = VersatileUNet(dict(sizes.unet))
        vae = AutoencoderKL(**sizes.vae)
        image = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes.image))
        special = {"bos_token_id": sizes.text["vocab_size"] - 2, "eos_token_id": sizes.text["vocab_size"] - 1, "pad_token_id": sizes.text["vocab_size"] - 1}
        text = CLIPTextModelWithProjection(CLIPTextConfig(**sizes.text, **special))
    by_image, by_text = unet.flows()
    unused = {"conv_in.weight": torch.empty(8, 8, device="meta")}
    weights = {
        "image_unet/diffusion_pytorch_model": by_image,
        "text_unet/diffusion_pytorch_model": {**unused, **by_text},
        "vae/diffusion_pytorch_model": vae.state_dict(),
        "image_encoder/model": image.state_dict(),
        "text_encoder/model": text.state_dict(),
    }
    for name, blank in weights.items():
        file = folder / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: _drawn(key, tuple(value.shape), generator) for key, value in blank.items()}, file, metadata={"format": "pt"})
    configurations = {"image_unet/config": sizes.unet, "vae/config": sizes.vae, "scheduler/scheduler_config": SCHEDULER, "model_index": {}}
    for name, content in configurations.items():
        file = folder / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(dict(content)))
    image.config.save_pretrained(folder / "image_encoder")
    text.config.save_pretrained(folder / "text_encoder")
    _tokenizer(sizes.text["vocab_size"], text.config.max_position_embeddings).save_pretrained(folder / "tokenizer")
    side = image.config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    processor.save_pretrained(folder / "image_feature_extractor")
    return folder


def as_legacy(folder: Path, *, variant: str = "", dtype: torch.dtype = torch.float32) -> None:
    """Turn every weight file into a ``.bin`` of torch, as the published repository has them, with the published autoencoder's old names."""
    from safetensors.torch import load_file

    former = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for file in list(folder.glob("*/*.safetensors")):
        state = {name: value.to(dtype) for name, value in load_file(file).items()}
        if file.parent.name == "vae":
            for now, old in former.items():
                state = {name.replace(now, old) if ".attentions." in name else name: value for name, value in state.items()}
        if file.parent.name == "text_encoder":
            state["text_model.embeddings.position_ids"] = torch.arange(6)[None]
        stem = "pytorch_model" if file.stem == "model" else file.stem
        torch.save(state, file.with_name(f"{stem}{variant}.bin"))
        file.unlink()


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) < 2 and name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) < 2:
        return torch.ones(shape)
    return torch.randn(shape, generator=generator).div_(math.sqrt(math.prod(shape[1:])))


def _tokenizer(entries: int, length: int) -> CLIPTokenizer:
    words = [f"w{index}</w>" for index in range(entries - 4)] if entries > 6 else []
    names = ["a", "b", *words, "<|startoftext|>", "<|endoftext|>"] if words else ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[], model_max_length=length)
