"""The rows of the ablation table: what each condition takes away, so that what it loses against ``full`` is what that was worth."""

from __future__ import annotations

import dataclasses
from typing import Literal

from havir_explorer.errors import RequestError, nearest
from havir_explorer.records import Settings


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
    """

    name: str
    why: str
    strength: float | None = None
    mix: float | None = None
    responses: Literal["own", "wrong", "none"] = "own"

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
    )
}
ALL: tuple[str, ...] = tuple(CONDITIONS)


def condition(name: str) -> Condition:
    """Return the condition of that name.

    Raises
    ------
    RequestError
        There is none.
    """
    if name not in CONDITIONS:
        msg = f"no condition is called {name!r}; {nearest(name, ALL, len(ALL))}"
        raise RequestError(msg)
    return CONDITIONS[name]
