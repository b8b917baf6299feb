"""OpenCLIP's image towers as feature networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from havir_explorer.errors import RequestError, WeightsInvalid, WeightsMissing
from havir_explorer.measure.records import Tower
from havir_explorer.records import FloatArray, UInt8Array


def open_clip_tower(model: str, pretrained: str | Path, *, device: str = "cpu") -> Tower:
    """Return an OpenCLIP image tower as the feature network of the CLIP scores.

    Parameters
    ----------
    model : str
        A name OpenCLIP knows, e.g. ``ViT-L-14``, or ``ViT-L-14-quickgelu`` for a file of OpenAI's weights (their tag ``openai`` sees to it
        itself); a configuration of one's own is made known by ``open_clip.add_model_config``.
    pretrained : str or Path
        A checkpoint file on this machine, or one of OpenCLIP's tags for this model, e.g. ``openai`` (downloaded by OpenCLIP).
    device : str

    Returns
    -------
    Tower
        Final embeddings; pictures are resized bilinearly and normalised as the checkpoint asks.

    Raises
    ------
    RequestError
        OpenCLIP knows no such model.
    WeightsMissing
        Neither a file nor a tag of this model.
    WeightsInvalid
        The file is not a checkpoint of this model.
    """
    network = open_clip_model(model, pretrained, device=device)
    size = network.visual.image_size
    side = size if isinstance(size, tuple) else (size, size)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (network.visual.image_mean, network.visual.image_std))

    @torch.inference_mode()
    def embed(pictures: UInt8Array) -> FloatArray:
        pixels = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
        resized = functional.interpolate(pixels, side, mode="bilinear", align_corners=False)
        found: FloatArray = network.encode_image((resized - mean) / std).float().cpu().numpy()
        return found

    return Tower(f"OpenCLIP {model} ({Path(pretrained).name})", embed)


def open_clip_model(model: str, pretrained: str | Path, *, device: str = "cpu") -> Any:  # noqa: ANN401 - OpenCLIP is not typed
    """Return an OpenCLIP model with its weights, in evaluation mode; parameters and errors as :func:`open_clip_tower`."""
    import open_clip

    if model not in open_clip.list_models():
        msg = f"OpenCLIP knows no model {model!r}; open_clip.list_models() names all, add_model_config adds one"
        raise RequestError(msg)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not Path(pretrained).is_file() and str(pretrained) not in tags:
        msg = f"{pretrained} is neither a checkpoint file nor a pretrained tag of {model}; its tags: {', '.join(tags) or 'none'}"
        raise WeightsMissing(msg)
    try:
        return open_clip.create_model(model, pretrained=str(pretrained), device=device).eval()
    except (RuntimeError, KeyError, ValueError) as error:
        msg = f"the OpenCLIP checkpoint {pretrained} does not fit {model} ({str(error).splitlines()[0]}); choose the model it was saved from"
        raise WeightsInvalid(msg) from error
