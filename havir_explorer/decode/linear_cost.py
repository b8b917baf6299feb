"""What fitting a linear decoder takes, told before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from havir_explorer.decode import ridge
from havir_explorer.decode.components import ROWS
from havir_explorer.decode.targets import Shapes

_KERNELS = 6
"""(n, n) matrices that a fit holds at most: the kernel, a fold of it, its eigenvectors and what himalaya makes of them."""
_EIGENVALUES = 9
"""Multiplications by which an (n, n) matrix is decomposed, in n³."""
_FLOAT = 4
_SIDE = 1024


@dataclass(frozen=True)
class LinearCost:
    """What one fit takes.

    Parameters
    ----------
    images, voxels, features : int
        Training pictures; voxels of the larger branch; values of all three targets of a picture.
    memory_bytes : int
        At most, besides the program itself.
    operations : float
        Multiplications and additions.
    """

    images: int
    voxels: int
    features: int
    memory_bytes: int
    operations: float

    def seconds(self, device: str = "cpu") -> float:
        """Return about how long it takes here: matrices are multiplied to see how fast the device is."""
        one = torch.ones(_SIDE, _SIDE, device=device)
        return self.operations * min(_multiply(one) for _ in range(4)) / (2 * _SIDE**3)

    def sentence(self, device: str = "cpu") -> str:
        """Say it."""
        minutes = max(1, round(self.seconds(device) / 60))
        gigabytes = max(0.1, self.memory_bytes / 1e9)
        return (
            f"linear decoder: {self.images:,} images, {self.voxels:,} voxels, {self.features:,} features of the targets; about {gigabytes:.1f} GB of memory "
            f"and {minutes:,} min on {device}"
        )


def cost(images: int, spatial: int, semantic: int, shapes: Shapes, *, components: int, folds: int) -> LinearCost:
    """Estimate what a fit takes.

    Parameters
    ----------
    images : int
        Training pictures.
    spatial, semantic : int
        Voxels of each branch.
    shapes : Shapes
        Of one picture's targets.
    components, folds : int
        As in :class:`~havir_explorer.decode.linear_fit.LinearOptions`.
    """
    n, features, tried = images, sum(int(np.prod(shape)) for shape in shapes), len(ridge.GRID)
    finding = 3 * n**2 + 2.5 * min(ROWS, n) * features
    solving = _KERNELS * n**2 + n * max(spatial, semantic) + 2 * n * components * (tried + 2)
    ending = (components + min(ROWS, n)) * features
    inner, outer = round(n * (1 - 1 / folds)), round(n / folds)
    fold = _EIGENVALUES * inner**3 + tried * (2 * inner**3 + 2 * outer * inner * (inner + 2 * components))
    branch = folds * fold + _EIGENVALUES * n**3 + tried * 2 * n**2 * (n + 2 * components)
    operations = n**2 * features + 3 * _EIGENVALUES * n**3 + 2 * branch + 2 * n**2 * (spatial + semantic) + 2 * n * components * features
    return LinearCost(n, max(spatial, semantic), features, int(_FLOAT * max(finding, solving, ending)), float(operations))


def _multiply(one: torch.Tensor) -> float:
    began = time.perf_counter()
    float((one @ one)[0, 0])
    return time.perf_counter() - began
