"""Load and save a Versatile Diffusion, part by part, in the folder layout of the published checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.utils import logging as progress_bars

from havir_explorer.diffuse.model import VersatileDiffusion, fit_preview
from havir_explorer.diffuse.versatile import VersatileUNet
from havir_explorer.errors import WeightsInvalid, WeightsMissing

PARTS = {
    "image_unet": ("config.json", "diffusion_pytorch_model.safetensors"),
    "text_unet": ("diffusion_pytorch_model.safetensors",),
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
    "image_encoder": ("config.json", "model.safetensors"),
    "text_encoder": ("config.json", "model.safetensors"),
    "tokenizer": ("tokenizer_config.json",),
    "image_feature_extractor": ("preprocessor_config.json",),
    "scheduler": ("scheduler_config.json",),
}
EXTRAS = "havir_extras.safetensors"
"""Encoded unconditional embeddings and the preview map, beside the parts."""


def demo_folder() -> Path:
    """Return the folder of the shipped small Versatile Diffusion."""
    return Path(str(resources.files("havir_explorer"))) / "data" / "demo" / "weights" / "versatile-diffusion"


def check(folder: Path) -> None:
    """Raise when a part is absent.

    Raises
    ------
    WeightsMissing
        Names the part, the file expected and what to do.
    """
    if not folder.is_dir():
        msg = f"no Versatile Diffusion at {folder}: the folder does not exist; give the folder that holds {', '.join(PARTS)}"
        raise WeightsMissing(msg)
    for part, files in PARTS.items():
        for name in files:
            if not (folder / part / name).is_file():
                msg = f"Versatile Diffusion at {folder} lacks its part {part}: expected {part}/{name}; copy that file from the checkpoint the folder came from"
                raise WeightsMissing(msg)


def load(folder: str | Path = "demo", *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> VersatileDiffusion:
    """Load every part.

    Parameters
    ----------
    folder : str or Path
        A checkpoint folder; ``"demo"`` is the shipped small model.
    device, dtype
        Where it runs and in which number format.

    Raises
    ------
    WeightsMissing
        A part or file is absent.
    WeightsInvalid
        A file is truncated, or its tensors do not fit the configuration.
    """
    root = demo_folder() if str(folder) == "demo" else Path(folder)
    check(root)
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    extras = _tensors(root, EXTRAS) if (root / EXTRAS).exists() else {}
    model = VersatileDiffusion(
        unet=_unet(root).to(**place).eval().requires_grad_(False),
        vae=_pretrained(AutoencoderKL, root, "vae").to(**place).eval().requires_grad_(False),
        image_encoder=_pretrained(CLIPVisionModelWithProjection, root, "image_encoder").to(**place).eval().requires_grad_(False),
        text_encoder=_pretrained(CLIPTextModelWithProjection, root, "text_encoder").to(**place).eval().requires_grad_(False),
        tokenizer=_tokenizer(root),
        image_processor=_pretrained(CLIPImageProcessor, root, "image_feature_extractor"),
        scheduler_config=_json(root / "scheduler" / "scheduler_config.json"),
        empty_image=extras.get("empty_image", torch.zeros(1)).to(**place),
        empty_text=extras.get("empty_text", torch.zeros(1)).to(**place),
        preview_map=extras.get("preview_map", torch.zeros(5, 3)),
    )
    return model if extras else completed(model)


def completed(model: VersatileDiffusion) -> VersatileDiffusion:
    """Return the model with the unconditional embeddings encoded by its own towers and the preview map fitted to its own autoencoder."""
    grey = torch.full((1, model.side, model.side, 3), 128, dtype=torch.uint8).numpy()
    generator = torch.Generator().manual_seed(0)
    latents = torch.nn.functional.interpolate(torch.randn(8, model.latent_shape[0], 4, 4, generator=generator), size=model.latent_shape[1:], mode="bilinear")
    return replace(
        model,
        empty_image=torch.from_numpy(model.embed_images(grey)).to(model.device, model.dtype),
        empty_text=torch.from_numpy(model.embed_texts([""])).to(model.device, model.dtype),
        preview_map=fit_preview(latents, model.decode_latents(latents)),
    )


def save(model: VersatileDiffusion, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write every part as safetensors in the published layout."""
    image, text = model.unet.flows()
    parts = {
        "image_unet/diffusion_pytorch_model": image,
        "text_unet/diffusion_pytorch_model": text,
        "vae/diffusion_pytorch_model": model.vae.state_dict(),
        "image_encoder/model": model.image_encoder.state_dict(),
        "text_encoder/model": model.text_encoder.state_dict(),
    }
    for name, tensors in parts.items():
        file = folder / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.to("cpu", dtype).contiguous() for k, v in tensors.items()}, file, metadata={"format": "pt"})
    extras = {"empty_image": model.empty_image, "empty_text": model.empty_text, "preview_map": model.preview_map}
    save_file({k: v.to("cpu", torch.float32).contiguous() for k, v in extras.items()}, folder / EXTRAS)
    for part, config in (("image_unet", model.unet.unet.config), ("vae", model.vae.config)):
        _write_json(folder / part / "config.json", {k: v for k, v in dict(config).items() if not k.startswith("_")})
    _write_json(folder / "scheduler" / "scheduler_config.json", model.scheduler_config)
    _write_json(folder / "model_index.json", {"_class_name": "VersatileDiffusionPipeline"})
    model.image_encoder.config.save_pretrained(folder / "image_encoder")
    model.text_encoder.config.save_pretrained(folder / "text_encoder")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    model.image_processor.save_pretrained(folder / "image_feature_extractor")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _unet(root: Path) -> VersatileUNet:
    with torch.device("meta"):  # no memory for weights that are replaced at once
        unet = VersatileUNet(_json(root / "image_unet" / "config.json"))
    weights = "diffusion_pytorch_model.safetensors"
    try:
        unet.load_flows(_tensors(root, f"image_unet/{weights}"), _tensors(root, f"text_unet/{weights}"))
    except RuntimeError as fault:
        detail = str(fault).splitlines()[-1].strip()
        msg = f"image_unet and text_unet at {root} do not fit the configuration in image_unet/config.json: {detail}"
        raise WeightsInvalid(msg) from fault
    return unet


def _pretrained(kind: Any, root: Path, part: str) -> Any:  # noqa: ANN401 - diffusers and transformers share no base class for this
    quiet = {"low_cpu_mem_usage": False} if kind is AutoencoderKL else {}  # else diffusers advises on a package this needs not
    showed = progress_bars.is_progress_bar_enabled()
    progress_bars.disable_progress_bar()
    try:
        return kind.from_pretrained(root / part, local_files_only=True, **quiet)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as fault:
        msg = f"part {part} of the Versatile Diffusion at {root} cannot be loaded: {str(fault).splitlines()[0]}; copy it from the checkpoint again"
        raise WeightsInvalid(msg) from fault
    finally:
        if showed:
            progress_bars.enable_progress_bar()


def _tokenizer(root: Path) -> CLIPTokenizer:
    """Load the tokenizer; transformers makes an empty one, without a word, of a folder that holds no vocabulary."""
    if not (root / "tokenizer" / "tokenizer.json").is_file() and not all((root / "tokenizer" / name).is_file() for name in ("vocab.json", "merges.txt")):
        msg = f"Versatile Diffusion at {root} lacks its part tokenizer: expected tokenizer/tokenizer.json, or tokenizer/vocab.json and tokenizer/merges.txt"
        raise WeightsMissing(msg)
    tokenizer: CLIPTokenizer = _pretrained(CLIPTokenizer, root, "tokenizer")
    entries = _json(root / "text_encoder" / "config.json").get("vocab_size")
    if len(tokenizer) != entries:
        msg = f"part tokenizer of the Versatile Diffusion at {root} has {len(tokenizer)} entries, its text_encoder {entries}; copy both from one checkpoint"
        raise WeightsInvalid(msg)
    return tokenizer


def _tensors(root: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(root / name)
    except (OSError, SafetensorError) as fault:
        msg = f"{name} of the Versatile Diffusion at {root} is not a readable safetensors file ({fault}); copy it from the checkpoint again"
        raise WeightsInvalid(msg) from fault


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as fault:
        msg = f"{file} is not valid JSON ({fault}); copy it from the checkpoint again"
        raise WeightsInvalid(msg) from fault
