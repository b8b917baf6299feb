"""Load and save a Versatile Diffusion, part by part, in the folder layout of the published checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from havir_explorer.diffuse import device as devices
from havir_explorer.diffuse import extras, parts, towers
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.parts import Place
from havir_explorer.diffuse.source import DEMO, EXTRAS, Source, demo_folder, locate
from havir_explorer.errors import DeviceOutOfMemory, is_shortage

__all__ = ["completed", "demo_folder", "load", "save"]


def load(
    folder: str | Path = DEMO,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    variant: str | None = None,
    denoiser: bool = True,
) -> VersatileDiffusion:
    """Load what draws pictures; the CLIP towers follow when they are first used.

    Every tensor is read, cast and placed by itself, so that memory never holds much more than the weights that stay.

    Parameters
    ----------
    folder : str or Path
        ``"demo"`` is the shipped small model; else a checkpoint folder, or the hub id of one in the hub's cache. Nothing is downloaded here.
    device : str or torch.device
        Where it runs.
    dtype : str or torch.dtype
        Number format it runs in: ``float32``, ``float16`` or ``bfloat16``. In float16 the autoencoder stays float32, whose range it needs.
    variant : str, optional
        Read only weight files with this in their names, e.g. ``fp16``.
    denoiser : bool
        False leaves the largest part without weights: encoding needs none of it.

    Raises
    ------
    WeightsMissing
        A part or file is absent.
    WeightsInvalid
        A file is truncated, or its tensors do not fit the configuration.
    RequestError
        This machine has no such device, or the number format is unknown.
    DeviceOutOfMemory
        The device has no room for the weights.
    """
    place = Place(devices.device(device), devices.dtype(dtype))
    source = locate(folder, variant)
    try:
        return _loaded(source, place, denoiser=denoiser)
    except (MemoryError, RuntimeError) as fault:
        if not is_shortage(fault):
            raise
        msg = f"{place.device} has no room for the {source} in {place.dtype}; free some, load it in half precision, or use another device"
        raise DeviceOutOfMemory(msg) from fault


def completed(model: VersatileDiffusion) -> VersatileDiffusion:
    """Return the model with the unconditional embeddings encoded by its own towers and the preview map fitted to its own autoencoder."""
    found = extras.computed(model)
    place = Place(model.device, model.dtype)
    return replace(model, empty_image=found.empty_image.to(*place), empty_text=found.empty_text.to(*place), preview_map=found.preview_map)


def save(model: VersatileDiffusion, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write every part as safetensors in the published layout."""
    image, text = model.unet.flows()
    (image_encoder, image_processor), (text_encoder, tokenizer) = model.clip("image_encoder"), model.clip("text_encoder")
    tensors = {
        "image_unet/diffusion_pytorch_model": image,
        "text_unet/diffusion_pytorch_model": text,
        "vae/diffusion_pytorch_model": model.vae.state_dict(),
        "image_encoder/model": image_encoder.state_dict(),
        "text_encoder/model": text_encoder.state_dict(),
    }
    for name, state in tensors.items():
        file = folder / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.to("cpu", dtype).contiguous() for k, v in state.items()}, file, metadata={"format": "pt"})
    extras.write(extras.Extras(model.empty_image, model.empty_text, model.preview_map), folder / EXTRAS)
    for part, config in (("image_unet", model.unet.unet.config), ("vae", model.vae.config)):
        _write_json(folder / part / "config.json", {k: v for k, v in dict(config).items() if not k.startswith("_")})
    _write_json(folder / "scheduler" / "scheduler_config.json", model.scheduler_config)
    _write_json(folder / "model_index.json", {"_class_name": "VersatileDiffusionPipeline"})
    image_encoder.config.save_pretrained(folder / "image_encoder")
    text_encoder.config.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    image_processor.save_pretrained(folder / "image_feature_extractor")


def _loaded(source: Source, place: Place, *, denoiser: bool) -> VersatileDiffusion:
    scheduler = source.config("scheduler")
    vae, unet = parts.blank(source, "vae"), parts.blank(source, "image_unet")
    for part, module in (("vae", vae), ("image_unet", unet), ("text_unet", unet)):
        parts.agreed(source, part, module)  # all is looked at before anything large is read
    known = extras.of(source)  # before the weights that stay: computing it takes some that do not
    parts.fill(source, "vae", vae, place.of_autoencoder)
    vae.decoder.to(memory_format=torch.channels_last)  # decodes in half the time on a CPU
    if denoiser:
        parts.fill_flows(source, unet, place)
    return VersatileDiffusion(
        unet=unet,
        vae=vae,
        image_encoder=towers.tower(source, "image_encoder"),
        text_encoder=towers.tower(source, "text_encoder"),
        tokenizer=towers.tokenizer(source),
        image_processor=towers.image_processor(source),
        scheduler_config=scheduler,
        empty_image=known.empty_image.to(*place),
        empty_text=known.empty_text.to(*place),
        preview_map=known.preview_map,
        towers=towers.Towers(source, place),
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
