"""What a number means, and what sees the pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from havir_explorer.records import FloatArray, UInt8Array

Features = Callable[[UInt8Array], FloatArray]
"""Pictures, uint8 (n, H, W, 3), to one feature vector each, float32 (n, D)."""

OWN_TOWER = "the generator's own CLIP image tower"


@dataclass(frozen=True)
class Tower:
    """A feature network and what to call it.

    Parameters
    ----------
    name : str
        In words, as scores are labelled.
    features : callable
        See :data:`Features`.
    """

    name: str
    features: Features


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Parameters
    ----------
    name : str
    chance : float or None
        Fixed by the protocol (0.5 for two-way identification), or None where it is measured against unrelated stimuli.
    higher_is_better : bool
    protocol : str
    """

    name: str
    chance: float | None
    higher_is_better: bool
    protocol: str
