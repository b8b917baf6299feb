"""The parts of a Versatile Diffusion as the code needs them: built without memory from their configuration, compared with a file, filled from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from havir_explorer.diffuse import tensors
from havir_explorer.diffuse.source import Source
from havir_explorer.diffuse.tensors import Kept
from havir_explorer.diffuse.versatile import VersatileUNet
from havir_explorer.errors import WeightsInvalid

Shape = tuple[int, ...]
_TOWERS = {"image_encoder": (CLIPVisionConfig, CLIPVisionModelWithProjection), "text_encoder": (CLIPTextConfig, CLIPTextModelWithProjection)}
_FORMER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names in an autoencoder's attention until diffusers 0.18, as in the published file."""


class Place(NamedTuple):
    """Where a part goes and in which number format."""

    device: torch.device
    dtype: torch.dtype

    @property
    def of_autoencoder(self) -> Place:
        """Where the autoencoder goes: float16 has not the range that it needs."""
        return Place(self.device, torch.float32) if self.dtype == torch.float16 else self


def blank(source: Source, part: str) -> Any:  # noqa: ANN401 - a VersatileUNet, an AutoencoderKL or a CLIP tower: they share no more than nn.Module
    """Return a part in evaluation mode whose weights take no memory yet: ``image_unet`` (which holds the ``text_unet`` too), ``vae`` or a tower.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        Its configuration is absent, damaged, or describes no such part.
    """
    config = source.config(part)
    try:
        with torch.device("meta"):
            module = _built(part, config)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as fault:
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        msg = f"part {part} of the {source}: no model can be built from {part}/config.json ({reason}); {source.remedy}"
        raise WeightsInvalid(msg) from fault
    return module.eval().requires_grad_(False)


def needed(part: str, module: Any) -> dict[str, Shape]:  # noqa: ANN401 - as above
    """Return the names and shapes the code needs in a part's file; of ``text_unet`` only its transformer blocks."""
    if part in {"image_unet", "text_unet"}:
        image, text = module.flows()
        wanted = image if part == "image_unet" else text
    else:
        wanted = module.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in wanted.items()}


def present(part: str, found: Iterable[str]) -> dict[str, str]:
    """Return which names in a part's file are read, as ``{our name: name in the file}``.

    The published ``text_unet`` is a UNet over text (diffusers' UNetFlatConditionModel): only its transformer blocks serve pictures, and they
    are called as the ``image_unet``'s. Token positions, which old CLIP files hold, are counted here instead.
    """
    names = (name for name in found if not name.endswith("position_ids"))
    if part == "text_unet":
        return {name: name for name in names if ".attentions." in name}
    return {_current(name) if part == "vae" else name: name for name in names}


def faults(source: Source, part: str, file: str, needs: dict[str, Shape], found: dict[str, Kept]) -> tuple[str, ...]:
    """Compare what the code needs with what a file holds; one sentence a kind of fault, none when they agree."""
    names = present(part, found)
    absent = [name for name in needs if name not in names]
    strange = [name for name in names if name not in needs]
    other = [name for name in needs if name in names and found[names[name]].shape != needs[name]]
    start = f"part {part} of the {source}: {part}/{file}"
    end = f"do not fit the code; {source.remedy}"
    said = []
    if absent:
        held = f", and holds {names[strange[0]]} instead" if strange else ""
        said.append(f"{start} lacks {len(absent)} of {len(needs)} tensors, the first {absent[0]} {needs[absent[0]]}{held}: its names {end}")
    elif strange:
        said.append(f"{start} holds {len(strange)} tensors too many, the first {names[strange[0]]}: its names {end}")
    if other:
        first, shape = other[0], found[names[other[0]]].shape
        said.append(f"{start} holds {first} as {shape}, expected {needs[first]} ({len(other)} of {len(needs)} tensors): its shapes {end}")
    return tuple(said)


def contents(source: Source, part: str) -> dict[str, Kept]:
    """Return what a part's file holds, without reading the numbers.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        It is absent or damaged; names the part, the file and what mends it.
    """
    try:
        return tensors.contents(source.weights(part))
    except WeightsInvalid as fault:
        msg = f"part {part} of the {source}: {fault}; {source.remedy}"
        raise WeightsInvalid(msg) from fault


def agreed(source: Source, part: str, module: Any) -> dict[str, str]:  # noqa: ANN401 - as above
    """Return which tensors of a part's file are read, as :func:`present`, once it is known that they are what the code needs.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        The file is absent, damaged, or holds other tensors than the code needs.
    """
    found = contents(source, part)
    wrong = faults(source, part, source.weights(part).name, needed(part, module), found)
    if wrong:
        raise WeightsInvalid(wrong[0])
    return present(part, found)


def read(source: Source, part: str, module: Any, place: Place | None) -> dict[str, Tensor]:  # noqa: ANN401 - as above
    """Return a part's weights under our names, in ``place``, or as they are in the file on the CPU.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        As :func:`agreed`.
    """
    names = agreed(source, part, module)
    device, dtype = place or (torch.device("cpu"), None)
    kept = tensors.read(source.weights(part), names.values(), device=device, dtype=dtype)
    return {ours: kept[theirs] for ours, theirs in names.items()}


def fill(source: Source, part: str, module: nn.Module, place: Place) -> None:
    """Give a blank autoencoder or tower its weights.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        As :func:`read`.
    """
    module.load_state_dict(read(source, part, module, place), assign=True)
    module.requires_grad_(False)
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if name == "position_ids":  # not in the file: 0, 1, 2, …
                owner.register_buffer(name, torch.arange(buffer.shape[-1], device=place.device)[None], persistent=False)


def fill_flows(source: Source, unet: VersatileUNet, place: Place) -> None:
    """Give a blank denoiser the weights of both flows.

    Raises
    ------
    WeightsMissing, WeightsInvalid
        As :func:`read`.
    """
    image, text = (read(source, part, unet, place) for part in ("image_unet", "text_unet"))
    unet.load_flows(image, text)
    unet.requires_grad_(False)


def _built(part: str, config: dict[str, Any]) -> nn.Module:
    if part == "image_unet":
        return VersatileUNet(config)
    if part == "vae":
        autoencoder: nn.Module = AutoencoderKL.from_config(config)
        return autoencoder
    configuration, tower = _TOWERS[part]
    built: nn.Module = tower(configuration.from_dict(config))
    return built


def _current(name: str) -> str:
    for former, now in _FORMER.items():
        name = name.replace(former, now) if ".attentions." in name else name
    return name
