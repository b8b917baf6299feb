"""What subjects may share of a branch: everything behind the input layer, which is as wide as a subject has voxels.

Also each subject's repairs are its own, because how far predictions shrink depends on how noisy a subject's responses are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from havir_explorer.decode.files import PREFIXES, Parts
from havir_explorer.decode.manifest import Manifest
from havir_explorer.errors import WeightsInvalid
from havir_explorer.records import Branch

_INPUT, _REPAIR = "stem.0.", "repair"
_ALIKE: Mapping[Branch, tuple[str, ...]] = {"structural": ("structural", "latent_shape"), "semantic": ("semantic", "image_shape", "text_shape")}
"""What two decoders must agree in for one's trunk to fit the other, by branch."""


def is_own(name: str) -> bool:
    """Whether a parameter or buffer of a branch, by its name, belongs to one subject rather than to the trunk."""
    return name.startswith((_INPUT, _REPAIR))


def share(first: nn.Module, other: nn.Module) -> nn.Module:
    """Return ``other``, another subject's module of a branch, with the first's trunk: the same objects, so that each subject's steps move it for both."""
    mine, stem = other.get_submodule("stem"), first.get_submodule("stem")
    other.add_module("stem", nn.Sequential(next(mine.children()), *list(stem.children())[1:]))
    for name, part in first.named_children():
        if name != "stem" and not name.startswith(_REPAIR):
            other.add_module(name, part)
    return other


@torch.no_grad()
def adopt(module: nn.Module, branch: Branch, source: Parts, *, freeze: bool) -> None:
    """Start a branch from another subject's trunk.

    Parameters
    ----------
    module : StructuralGenerator or SemanticExtractor
    branch : {'structural', 'semantic'}
    source : Parts
        The other subject's decoder; it has this branch, with a trunk of the same sizes (:func:`check`).
    freeze : bool
        Leave the trunk as it is: only the input layer learns.
    """
    state = module.state_dict()
    for name, value in state.items():
        if not is_own(name):
            value.copy_(_tensor(source, branch, name))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_own(name) or not freeze)


def check(blank: Manifest, branches: Sequence[Branch], source: Parts) -> None:
    """Make sure that another decoder's trunks fit a decoder that is about to be trained.

    Raises
    ------
    WeightsInvalid
        A branch is absent, of other sizes, or was trained for another generator.
    """
    theirs = source.manifest
    for branch in branches:
        other = [name for name in _ALIKE[branch] if getattr(theirs, name) != getattr(blank, name)]
        if branch not in source.branches or other:
            what = f"differs in {', '.join(other)}" if other else "has no such branch"
            msg = f"the {branch} branch of {blank.subject} cannot start from the decoder of {theirs.subject}, which {what}; train it with the same options"
            raise WeightsInvalid(msg)
    if theirs.generator and theirs.generator != blank.generator:
        msg = f"{blank.subject} cannot start from the decoder of {theirs.subject}: it was trained for another generator; encode the targets with that one"
        raise WeightsInvalid(msg)


def _tensor(source: Parts, branch: Branch, name: str) -> Tensor:
    return source.tensors[f"{PREFIXES[branch]}{name}"]
