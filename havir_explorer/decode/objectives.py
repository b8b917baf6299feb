"""What each branch is taught: which of a picture's targets, by which loss, from which start."""

from __future__ import annotations

from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from havir_explorer.decode import losses
from havir_explorer.decode.blocks import Repair
from havir_explorer.decode.havir import SemanticExtractor, StructuralGenerator, semantic_extractor, structural_generator
from havir_explorer.decode.manifest import Manifest
from havir_explorer.decode.mixco import Mixing
from havir_explorer.decode.options import Options
from havir_explorer.decode.targets import Kind
from havir_explorer.records import Branch

Tensors = tuple[Tensor, ...]
_Kind = TypeVar("_Kind", bound=nn.Module)


class Objective(Protocol):
    """How the loop sees a branch; predictions and targets are tuples, one tensor a head."""

    @property
    def branch(self) -> Branch:
        """Its name."""

    @property
    def number(self) -> int:
        """What tells its random numbers from the other branch's."""

    def rate(self, options: Options) -> float:
        """Peak learning rate."""

    def module(self, manifest: Manifest) -> nn.Module:
        """Return a module of the manifest's sizes; its parameters are as torch leaves them."""

    @property
    def targets(self) -> tuple[Kind, ...]:
        """Which of a picture's targets it learns, one a head."""

    @property
    def mixes(self) -> bool:
        """Whether brain responses may be mixed for its contrast."""

    def loss(self, predicted: Tensors, target: Tensors, options: Options, mixing: Mixing | None = None) -> Tensor:
        """Return the loss of a batch, float (); ``mixing`` is how the responses behind the predictions were mixed."""

    def start(self, module: nn.Module, mean: Tensors, spread: tuple[float, ...]) -> None:
        """Give an untrained module a head start, from mean and standard deviation of the training targets."""

    def repairs(self, module: nn.Module, options: Options) -> tuple[tuple[Repair, float], ...]:
        """Return each head's repair and the share of the lost spread that it restores."""


class Structural:
    """Spatial voxels to latents."""

    branch: Branch = "structural"
    number, mixes = 1, False
    targets: tuple[Kind, ...] = ("latents",)

    def rate(self, options: Options) -> float:
        """Peak learning rate."""
        return options.structural_rate

    def module(self, manifest: Manifest) -> nn.Module:
        """Return a module of the manifest's sizes."""
        return structural_generator(manifest)

    def loss(self, predicted: Tensors, target: Tensors, options: Options, mixing: Mixing | None = None) -> Tensor:
        """Squared errors of the latents and of their edges."""
        return losses.structural_loss(predicted[0], target[0] if mixing is None else mixing.mix(target[0]), options.edges)

    def start(self, module: nn.Module, mean: Tensors, spread: tuple[float, ...]) -> None:
        """Leave the module as drawn: its upsampler has no head that could begin at the mean."""

    def repairs(self, module: nn.Module, options: Options) -> tuple[tuple[Repair, float], ...]:
        """Return the latents' repair."""
        return ((_of(StructuralGenerator, module).repair, options.repair_latents),)


class Semantic:
    """Semantic voxels to image and text tokens."""

    branch: Branch = "semantic"
    number, mixes = 2, True
    targets: tuple[Kind, ...] = ("image_embeds", "text_embeds")

    def rate(self, options: Options) -> float:
        """Peak learning rate."""
        return options.semantic_rate

    def module(self, manifest: Manifest) -> nn.Module:
        """Return a module of the manifest's sizes."""
        return semantic_extractor(manifest)

    def loss(self, predicted: Tensors, target: Tensors, options: Options, mixing: Mixing | None = None) -> Tensor:
        """Sum of both heads' token losses."""
        of_head = partial(losses.token_loss, temperature=options.temperature, mse=options.mse, contrast=options.contrast, mixing=mixing)
        return torch.stack([of_head(head, true) for head, true in zip(predicted, target, strict=True)]).sum()

    @torch.no_grad()
    def start(self, module: nn.Module, mean: Tensors, spread: tuple[float, ...]) -> None:
        """Let both heads begin at the mean target, so that training is spent on what differs between pictures."""
        extractor = _of(SemanticExtractor, module)
        for head, middle, width in zip((extractor.to_image, extractor.to_text), mean, spread, strict=True):
            head.weight.mul_(0.1 * width)
            head.bias.copy_(middle.flatten())

    def repairs(self, module: nn.Module, options: Options) -> tuple[tuple[Repair, float], ...]:
        """Return both heads' repairs."""
        extractor = _of(SemanticExtractor, module)
        return (extractor.repair_image, options.repair_tokens), (extractor.repair_text, options.repair_tokens)


OBJECTIVES: dict[Branch, Objective] = {"structural": Structural(), "semantic": Semantic()}


def _of(kind: type[_Kind], module: nn.Module) -> _Kind:
    if not isinstance(module, kind):
        msg = f"expected a {kind.__name__}, got a {type(module).__name__}"
        raise TypeError(msg)
    return module
