"""What a checkpoint's own parts say once and for all: its unconditional embeddings, and the cheap map from its latents to colours."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from havir_explorer import paths
from havir_explorer.diffuse import parts, tensors, towers
from havir_explorer.diffuse.model import VersatileDiffusion, fit_preview
from havir_explorer.diffuse.parts import Place
from havir_explorer.diffuse.source import EXTRAS, Source
from havir_explorer.errors import WeightsInvalid

_SIDE = 8
"""Largest side of the latents that the preview map is fitted to: the autoencoder is convolutional, and 64 would take minutes on a CPU."""


class Extras(NamedTuple):
    """All float32 on the CPU.

    Parameters
    ----------
    empty_image, empty_text : (1, n_tokens, width)
        Encodings of a mid-grey picture and of the empty caption (method 2.2).
    preview_map : (5, 3)
        From a latent pixel, and 1, to RGB in [0, 1].
    """

    empty_image: Tensor
    empty_text: Tensor
    preview_map: Tensor


def of(source: Source) -> Extras:
    """Return a checkpoint's extras: those beside its parts, else those computed before, else computed now and remembered in the cache folder.

    They are computed in float32 on the CPU, whatever the model will run in, so that one checkpoint has one set of them.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        A part they are computed from is absent or damaged, or the file that holds them is.
    """
    beside = source.root / EXTRAS
    if beside.is_file():
        return _read(source, beside)
    remembered = paths.cache_folder() / "generators" / f"{paths.stamp(source.root)}{source.variant or ''}.safetensors"
    if remembered.is_file():
        with suppress(WeightsInvalid):  # a damaged memory is made anew
            return _read(source, remembered)
    found = computed(_encoders(source))
    with suppress(OSError):  # where it cannot be remembered it is computed again
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write(found, remembered)
    return found


def computed(model: VersatileDiffusion) -> Extras:
    """Return what a model's own towers and autoencoder say; its denoiser is not used."""
    grey = torch.full((1, model.side, model.side, 3), 128, dtype=torch.uint8).numpy()
    channels, side = model.latent_shape[0], min(model.latent_shape[1], _SIDE)
    generator = torch.Generator().manual_seed(0)
    latents = functional.interpolate(torch.randn(8, channels, 4, 4, generator=generator), size=(side, side), mode="bilinear")
    return Extras(
        torch.from_numpy(model.embed_images(grey)),
        torch.from_numpy(model.embed_texts([""])),
        fit_preview(latents, model.decode_latents(latents)),
    )


def write(extras: Extras, file: Path) -> None:
    """Write extras whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    save_file({name: value.to("cpu", torch.float32).contiguous() for name, value in extras._asdict().items()}, part)
    part.replace(file)


def _read(source: Source, file: Path) -> Extras:
    found = tensors.contents(file)
    held = {name: kept.shape for name, kept in found.items()}
    lengths = {"empty_image": 3, "empty_text": 3, "preview_map": 2}
    if any(len(held.get(name, ())) != length for name, length in lengths.items()) or held["preview_map"] != (5, 3):
        msg = f"{source}: {file.name} holds {held}, expected empty_image and empty_text (1, tokens, width) and preview_map (5, 3); {source.remedy}"
        raise WeightsInvalid(msg)
    return Extras(**tensors.read(file, lengths, device=torch.device("cpu"), dtype=torch.float32))


def _encoders(source: Source) -> VersatileDiffusion:
    """The parts that encode and decode, in float32 on the CPU; the denoiser stays without weights."""
    place = Place(torch.device("cpu"), torch.float32)
    vae = parts.blank(source, "vae")
    parts.fill(source, "vae", vae, place)
    nothing = torch.zeros(1)
    return VersatileDiffusion(
        parts.blank(source, "image_unet"),
        vae,
        towers.tower(source, "image_encoder"),
        towers.tower(source, "text_encoder"),
        towers.tokenizer(source),
        towers.image_processor(source),
        source.config("scheduler"),
        nothing,
        nothing,
        torch.zeros(5, 3),
        towers.Towers(source, place),
    )
