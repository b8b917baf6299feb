"""A loaded Versatile Diffusion: pictures to latents and embeddings, latents to pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name every torch reader knows
from transformers import CLIPImageProcessor, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from havir_explorer.diffuse.towers import COMPANIONS, Towers
from havir_explorer.diffuse.versatile import VersatileUNet
from havir_explorer.errors import WeightsMissing
from havir_explorer.records import FloatArray, UInt8Array


@dataclass(frozen=True, eq=False)
class VersatileDiffusion:
    """The parts of a checkpoint on one device.

    Parameters
    ----------
    unet, vae
        Loaded parts, in evaluation mode.
    image_encoder, text_encoder, tokenizer, image_processor
        The CLIP towers and what prepares their input; None where the checkpoint has none. The towers' weights may still be on disk.
    scheduler_config : dict
        ``scheduler_config.json``.
    empty_image, empty_text : Tensor
        (1, n_tokens, width): encodings of a mid-grey picture and of the empty caption (method 2.2), the unconditional branch.
    preview_map : Tensor
        (5, 3): linear map from a latent pixel (and 1) to RGB in [0, 1].
    towers : Towers, optional
        Reads the towers' weights when they are first used; None when they were given loaded.
    """

    unet: VersatileUNet
    vae: AutoencoderKL
    image_encoder: CLIPVisionModelWithProjection | None
    text_encoder: CLIPTextModelWithProjection | None
    tokenizer: CLIPTokenizer | None
    image_processor: CLIPImageProcessor | None
    scheduler_config: dict[str, Any]
    empty_image: Tensor
    empty_text: Tensor
    preview_map: Tensor
    towers: Towers | None = None

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.empty_image.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the denoiser."""
        return self.empty_image.dtype

    @property
    def side(self) -> int:
        """Side length of a picture in pixels."""
        return int(self.latent_shape[1]) * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of one picture's latents."""
        size = int(self.unet.unet.config.sample_size)
        return int(self.unet.unet.config.in_channels), size, size

    def unconditional(self, kind: Literal["encoded", "zeros"] = "encoded") -> tuple[Tensor, Tensor]:
        """Return the unconditional image and text embeddings, (1, n_tokens, width) each (method 2.2).

        ``encoded`` are those of a mid-grey picture and of the empty caption, as Brain-Diffuser's; ``zeros`` are MindEye's and MindBridge's.
        """
        pair = (self.empty_image, self.empty_text)
        return pair if kind == "encoded" else (torch.zeros_like(pair[0]), torch.zeros_like(pair[1]))

    def sees(self) -> bool:
        """True when the checkpoint has the CLIP image tower, which embeddings and CLIP scores of pictures need; nothing is loaded.

        Raises
        ------
        WeightsMissing
            The tower is there in part only.
        """
        return self.towers.complete("image_encoder") if self.towers else self.image_encoder is not None

    def clip(self, part: Literal["image_encoder", "text_encoder"]) -> tuple[Any, Any]:
        """Return a CLIP tower, with its weights, read now if they were not yet, and what prepares its input; safe from any thread.

        Raises
        ------
        WeightsMissing, WeightsInvalid
            The checkpoint has none, or its files are damaged.
        """
        pair = (self.image_encoder, self.image_processor) if part == "image_encoder" else (self.text_encoder, self.tokenizer)
        if self.towers is not None:
            self.towers.ready(part, *pair)
        elif None in pair:
            msg = f"this Versatile Diffusion was put together without its {part} and {COMPANIONS[part]}; give both, or load a checkpoint that has them"
            raise WeightsMissing(msg)
        return pair

    @torch.inference_mode()
    def encode_latents(self, pictures: UInt8Array, batch: int = 32) -> FloatArray:
        """Return latents, float32 (n, 4, h, w), already scaled: the mode of each posterior times the scaling factor."""
        parts = [self.vae.encode(self._unit(chunk)).latent_dist.mode() * self.vae.config.scaling_factor for chunk in _chunks(pictures, batch)]
        return torch.cat(parts).float().cpu().numpy()

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor | FloatArray, batch: int = 32) -> UInt8Array:
        """Return pictures, uint8 (B, H, W, 3), of scaled latents (B, 4, h, w)."""
        return to_uint8(torch.cat([self._decoded(chunk) for chunk in torch.as_tensor(latents).split(batch)]))

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Return pictures, float32 (n, 3, H, W), of scaled latents (n, 4, h, w) on any device: about [0, 1], not clamped, so that gradients pass."""
        return self._decoded(latents).to(latents.device)

    def _decoded(self, latents: Tensor) -> Tensor:
        given = latents.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        drawn: Tensor = self.vae.decode(given.contiguous(memory_format=torch.channels_last)).sample  # as a loaded decoder's weights lie
        return drawn.float() / 2 + 0.5

    @torch.inference_mode()
    def embed_images(self, pictures: UInt8Array, batch: int = 32) -> FloatArray:
        """Return image embeddings, float32 (n, n_tokens, width): every projected token over the norm of the projected class token."""
        (tower, processor), parts = self.clip("image_encoder"), []
        for chunk in _chunks(pictures, batch):
            hidden = tower.vision_model(pixel_values=_clip_pixels(tower, processor, chunk)).last_hidden_state
            projected = tower.visual_projection(tower.vision_model.post_layernorm(hidden))
            parts.append(projected / projected[:, :1].norm(dim=-1, keepdim=True))
        return torch.cat(parts).float().cpu().numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: list[str], batch: int = 256) -> FloatArray:
        """Return text embeddings, float32 (n, n_tokens, width): every projected token over the norm of the caption's pooled projection."""
        (tower, tokenizer), parts = self.clip("text_encoder"), []
        for start in range(0, len(texts), batch):
            out = tower(input_ids=_ids(tower, tokenizer, texts[start : start + batch]))
            projected = tower.text_projection(out.last_hidden_state)
            parts.append(projected / out.text_embeds[:, None].norm(dim=-1, keepdim=True))
        return torch.cat(parts).float().cpu().numpy()

    @torch.inference_mode()
    def image_features(self, pictures: UInt8Array, batch: int = 32) -> FloatArray:
        """Return pooled CLIP image features of unit length, float32 (n, width): what the CLIP scores compare."""
        tower, processor = self.clip("image_encoder")
        parts = [tower(pixel_values=_clip_pixels(tower, processor, chunk)).image_embeds for chunk in _chunks(pictures, batch)]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def text_features(self, texts: list[str]) -> FloatArray:
        """Return pooled CLIP text features of unit length, float32 (n, width)."""
        tower, tokenizer = self.clip("text_encoder")
        return F.normalize(tower(input_ids=_ids(tower, tokenizer, texts)).text_embeds.float(), dim=-1).cpu().numpy()

    def preview(self, latents: Tensor) -> UInt8Array:
        """Return a cheap picture, uint8 (h, w, 3), of one scaled latent (4, h, w)."""
        pixels = latents.detach().float().cpu().permute(1, 2, 0)
        weights = self.preview_map.float().cpu()
        return to_uint8((pixels @ weights[:-1] + weights[-1]).permute(2, 0, 1)[None])[0]

    def _unit(self, pictures: UInt8Array) -> Tensor:
        return (resized(pictures, self.side) * 2 - 1).to(self.device, self.vae.dtype)


def resized(pictures: UInt8Array, side: int) -> Tensor:
    """Return pictures as float32 (n, 3, side, side) in [0, 1]: area-averaged when they shrink, bilinear when they grow."""
    if len(pictures) > 1:  # one at a time: 100 stimuli of 425 px as float32 would take 200 MB
        return torch.cat([resized(picture[None], side) for picture in pictures])
    values = torch.tensor(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if values.shape[-1] == side:
        return values
    return F.interpolate(values, size=(side, side), mode="area" if values.shape[-1] > side else "bilinear")


def to_uint8(pictures: Tensor) -> UInt8Array:
    """Return (B, 3, H, W) pictures in [0, 1] as uint8 (B, H, W, 3), clamped and rounded."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def fit_preview(latents: Tensor, pictures: UInt8Array) -> Tensor:
    """Return the least-squares map (5, 3) from scaled latents (n, 4, h, w) to the pictures' RGB at the latents' resolution."""
    thumbnails = resized(pictures, latents.shape[-1]).permute(0, 2, 3, 1).reshape(-1, 3)
    pixels = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).float()
    return torch.linalg.lstsq(torch.cat([pixels, torch.ones(len(pixels), 1)], dim=1), thumbnails).solution


def _chunks(pictures: UInt8Array, batch: int) -> list[UInt8Array]:
    return [pictures[start : start + batch] for start in range(0, len(pictures), batch)]


def _clip_pixels(tower: Any, processor: Any, pictures: UInt8Array) -> Tensor:  # noqa: ANN401 - transformers is not typed
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return ((resized(pictures, int(tower.config.image_size)) - mean) / std).to(tower.device, tower.dtype)


def _ids(tower: Any, tokenizer: Any, texts: list[str]) -> Tensor:  # noqa: ANN401 - as above
    length = int(tower.config.max_position_embeddings)
    ids: Tensor = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]
    return ids.to(tower.device)
