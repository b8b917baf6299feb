"""Random numbers that are a function of where they are used, so that a resumed training needs no generator's state."""

from __future__ import annotations

import numpy as np
import torch


def state(*places: int) -> int:
    """Return a seed for these whole numbers: a run's seed, a branch, a step."""
    return int(np.random.SeedSequence([place % 2**64 for place in places]).generate_state(1, np.uint64)[0] >> 1)


def generator(*places: int) -> torch.Generator:
    """Return a CPU generator that starts at :func:`state`."""
    return torch.Generator().manual_seed(state(*places))
