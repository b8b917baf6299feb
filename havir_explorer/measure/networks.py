"""The feature networks of the literature's scores, with weights that the user has: found, loaded without unpickling, never downloaded here.

Adding one is a row of :data:`NETWORKS` and a test that its checkpoint's layout loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

from havir_explorer.errors import RequestError, WeightsInvalid, nearest
from havir_explorer.measure.tower import open_clip_model
from havir_explorer.records import FloatArray

BATCH = 32
_Norms = tuple[tuple[float, float, float], tuple[float, float, float]]
_IMAGENET: _Norms = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP: _Norms = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

Pixels = Callable[[FloatArray], FloatArray]
"""Resized pictures, float32 (n, h, w, 3) in [0, 1], to one feature vector each, float32 (n, D)."""


@dataclass(frozen=True)
class Network:
    """A network and where its weights come from.

    Parameters
    ----------
    name : str
        As ``havir networks fetch`` takes it.
    words : str
        What the protocols call it.
    file : str
        Name of the checkpoint, as torch's hub or our own fetch keeps it.
    url : str
        Where that is published.
    megabytes : int
        Its size, about.
    load : callable
        Checkpoint and device to the module, in evaluation mode.
    mean, std : (float, float, float)
        What its input is normalised by.
    hub : (str, str) or None
        Repository and file in the Hugging Face hub, when a copy in its cache will do.
    """

    name: str
    words: str
    file: str
    url: str
    megabytes: int
    load: Callable[[Path, str], nn.Module]
    mean: tuple[float, float, float] = _IMAGENET[0]
    std: tuple[float, float, float] = _IMAGENET[1]
    hub: tuple[str, str] | None = None


def _torchvision(build: Callable[[], nn.Module], file: Path, device: str, *, prefix: str = "", without: tuple[str, ...] = ()) -> nn.Module:
    """Load a checkpoint of a torchvision module; ``prefix`` is taken off its keys, and those that begin with one of ``without`` are left out."""
    with torch.device("meta"):
        module = build()
    with _readable(file):
        state: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 - weights only: no code of the file is run
        kept = {key.removeprefix(prefix): value for key, value in state.items() if not key.removeprefix(prefix).startswith(without)}
        module.load_state_dict(kept, assign=True)
    return module.eval().to(device)


def _open_clip(model: str, file: Path, device: str) -> nn.Module:
    """Load the image tower of an OpenCLIP checkpoint; its output is what ``encode_image`` returns."""
    with _readable(file):
        tower: nn.Module = open_clip_model(model, file).visual
    return tower.eval().to(device)


def _backbone() -> nn.Module:
    network = models.resnet50(weights=None)
    network.fc = nn.Identity()
    return network


# torchvision feeds Inception with inputs normalised its own way whenever it loads published weights: so must we.
_INCEPTION = partial(models.inception_v3, weights=None, transform_input=True, init_weights=False)
_EFFICIENT = partial(models.efficientnet_b1, weights=None)
_HEADS = ("projection_head", "prototypes")


def _published(name: str, words: str, weights: models.WeightsEnum, build: Callable[[], nn.Module]) -> Network:
    return Network(name, f"{words}, torchvision {weights.name}", weights.url.rpartition("/")[2], weights.url, _size(weights), partial(_torchvision, build))


def _size(weights: models.WeightsEnum) -> int:
    return round(weights.meta["_file_size"])


def _clip(name: str, words: str, model: str, repository: str, megabytes: int, norms: _Norms = _CLIP) -> Network:
    file = "open_clip_model.safetensors"
    url = f"https://huggingface.co/{repository}/resolve/main/{file}"
    saved = f"{repository.rpartition('/')[2]}.safetensors"
    return Network(name, f"OpenAI CLIP {words}", saved, url, megabytes, partial(_open_clip, model), norms[0], norms[1], (repository, file))


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        _published("alexnet", "AlexNet", models.AlexNet_Weights.IMAGENET1K_V1, partial(models.alexnet, weights=None)),
        _published("inception", "Inception v3", models.Inception_V3_Weights.IMAGENET1K_V1, _INCEPTION),
        _published("efficientnet-v1", "EfficientNet-B1", models.EfficientNet_B1_Weights.IMAGENET1K_V1, _EFFICIENT),
        _published("efficientnet-v2", "EfficientNet-B1", models.EfficientNet_B1_Weights.IMAGENET1K_V2, _EFFICIENT),
        Network(
            "swav",
            "SwAV ResNet-50, 800 epochs",
            "swav_800ep_pretrain.pth.tar",
            "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
            114,
            partial(_torchvision, _backbone, prefix="module.", without=_HEADS),
        ),
        # OpenAI trained with QuickGELU, which OpenCLIP's plain configuration of the same name has not.
        _clip("clip-vit-l-14", "ViT-L/14", "ViT-L-14-quickgelu", "timm/vit_large_patch14_clip_224.openai", 1710),
        _clip("clip-vit-b-32", "ViT-B/32", "ViT-B-32-quickgelu", "timm/vit_base_patch32_clip_224.openai", 605, _IMAGENET),
    )
}


def network(name: str) -> Network:
    """Return the network of that name.

    Raises
    ------
    RequestError
        There is none.
    """
    if name not in NETWORKS:
        msg = f"no feature network is called {name!r}; {nearest(name, NETWORKS, len(NETWORKS))}"
        raise RequestError(msg)
    return NETWORKS[name]


def folder() -> Path:
    """Return where torch's hub keeps checkpoints, and where they are looked for when no folder is named."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find(wanted: Network, place: Path | None = None) -> Path | None:
    """Return the checkpoint of a network on this machine, or None.

    Parameters
    ----------
    wanted : Network
    place : Path, optional
        The only folder to look in; torch's hub and, for CLIP, the Hugging Face cache when left out.
    """
    file = (place or folder()) / wanted.file
    if file.is_file():
        return file
    if place is None and wanted.hub is not None:
        cached = huggingface_hub.try_to_load_from_cache(*wanted.hub)
        return Path(cached) if isinstance(cached, str) else None
    return None


def features(wanted: Network, module: nn.Module, layer: str = "", *, batch: int = BATCH) -> Pixels:
    """Return what reads a layer of a network.

    Parameters
    ----------
    wanted : Network
        Its normalisation.
    module : Module
        As :attr:`Network.load` returns it.
    layer : str
        Name of a submodule, whose output is flattened; the network's own output when empty.
    batch : int
        Pictures at once.
    """
    device = next(module.parameters()).device
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (wanted.mean, wanted.std))

    @torch.inference_mode()
    def read(pictures: FloatArray) -> FloatArray:
        found: list[FloatArray] = []
        for start in range(0, len(pictures), batch):
            pixels = torch.from_numpy(np.ascontiguousarray(pictures[start : start + batch])).to(device).permute(0, 3, 1, 2)
            found.append(_output(module, layer, (pixels - mean) / std).flatten(1).float().cpu().numpy())
        return np.concatenate(found)

    return read


def _output(module: nn.Module, layer: str, pixels: Tensor) -> Tensor:
    if not layer:
        return module(pixels)
    kept: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: kept.append(output.clone()))
    try:
        module(pixels)
    finally:
        handle.remove()
    return kept[0]


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except WeightsInvalid:
        raise
    except Exception as fault:  # torch and safetensors name no common class for a file that is not the checkpoint it should be
        why = str(fault).strip().splitlines()
        msg = f"the checkpoint {file} cannot be read as what its name says ({why[0] if why else type(fault).__name__}); delete it and fetch it again"
        raise WeightsInvalid(msg) from fault
