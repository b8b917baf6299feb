"""The rows of the ablation table: what each condition takes away, so that what it loses against ``full`` is what that was worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from havir_explorer.errors import RequestError, nearest
from havir_explorer.records import Kind, Settings


@dataclasses.dataclass(frozen=True)
class Condition:
    """One row of the ablation table.

    Parameters
    ----------
    name : str
    why : str
        What it removes.
    strength, mix : float or None
        Instead of the settings' own.
    responses : {'own', 'wrong', 'none'}
        The trial's, another test image's (the next one in the list), or every voxel at its mean.
    pictures : {'generated', 'mean', 'nearest'}
        Drawn by the generator; the mean training image; the training image nearest the decoded embedding.
    decoder : {'own', 'linear'}
        The request's, or the linear baseline's.
    """

    name: str
    why: str
    strength: float | None = None
    mix: float | None = None
    responses: Literal["own", "wrong", "none"] = "own"
    pictures: Literal["generated", "mean", "nearest"] = "generated"
    decoder: Literal["own", "linear"] = "own"

    @property
    def kind(self) -> Kind:
        """What a tile with such a picture is labelled."""
        if self.pictures != "generated":
            return "retrieved"
        return "decoded" if self.strength == 0 else "generated"

    def settings(self, base: Settings) -> Settings:
        """Return ``base`` with this condition's changes."""
        strength = base.strength if self.strength is None else self.strength
        return dataclasses.replace(base, strength=strength, mix=base.mix if self.mix is None else self.mix)


CONDITIONS: dict[str, Condition] = {
    c.name: c
    for c in (
        Condition("full", "nothing"),
        Condition("structure_only", "diffusion: the decoded latents as they are", strength=0.0),
        Condition("semantic_only", "the decoded latents: the start is pure noise", strength=1.0),
        Condition("no_text", "the decoded text embedding", mix=0.0),
        Condition("no_image", "the decoded image embedding", mix=1.0),
        Condition("wrong_trial", "the right brain response: that of another image instead", responses="wrong"),
        Condition("no_brain", "every brain response: all voxels at their mean", responses="none"),
        Condition("mean_image", "everything: the mean training image, the same for all", pictures="mean"),
        Condition("nearest_image", "the generator: the training image whose embedding is nearest the decoded one", pictures="nearest"),
        Condition("linear", "what is not linear in the decoder: a ridge regression decodes instead", decoder="linear"),
    )
}
ALL: tuple[str, ...] = tuple(name for name, c in CONDITIONS.items() if c.decoder == "own")
"""Those that need no second decoder."""

GROUPS: dict[str, tuple[str, ...]] = {
    "all": ALL,
    "ablation": ("full", "semantic_only", "no_text", "no_image"),
    "controls": ("full", "wrong_trial", "no_brain", "mean_image", "nearest_image"),
}
"""Conditions that are asked for together; ``ablation`` is the paper's table: full, without structure, without text, without image."""


def condition(name: str) -> Condition:
    """Return the condition of that name.

    Raises
    ------
    RequestError
        There is none.
    """
    if name not in CONDITIONS:
        known = (*CONDITIONS, *GROUPS)
        msg = f"no condition is called {name!r}; {nearest(name, known, len(known))}"
        raise RequestError(msg)
    return CONDITIONS[name]


def chosen(names: Sequence[str]) -> tuple[Condition, ...]:
    """Return the conditions of these names, groups taken apart, in order and once each.

    Raises
    ------
    RequestError
        There is no condition or group of a name.
    """
    flat = dict.fromkeys(single for name in names for single in GROUPS.get(name, (name,)))
    return tuple(condition(name) for name in flat)
