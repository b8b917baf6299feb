"""Principal components of targets too large for memory, read some pictures at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from havir_explorer.decode.targets import TargetSource
from havir_explorer.records import IntArray

Tick = Callable[[float], None]
"""Called with the share done in (0, 1]; raising stops."""
ROWS = 500
"""Pictures in memory at a time: at the published size 0.5 GB as float32."""
Parts = tuple[Tensor, Tensor, Tensor]
"""Of latents, image tokens and text tokens, each flattened."""


@dataclass(frozen=True, eq=False)
class Centred:
    """The targets of some pictures less their mean, in blocks of pictures.

    Parameters
    ----------
    source : TargetSource
    places : int64 (n,)
        Rows of the source.
    mean, spread : three float32 (n_features,)
        Mean and standard deviation over these pictures, on the device where all is computed.
    """

    source: TargetSource
    places: IntArray
    mean: Parts
    spread: Parts

    def __len__(self) -> int:
        return len(self.places)

    def blocks(self, stop: int) -> Iterator[tuple[slice, Parts]]:
        """Yield blocks of the first ``stop`` pictures: which rows, and their float32 (n_rows, n_features)."""
        for rows, parts in _blocks(self.source, self.places[:stop]):
            latents, image, text = (part.to(mean.device).sub_(mean) for part, mean in zip(parts, self.mean, strict=True))
            yield rows, (latents, image, text)


def centre(source: TargetSource, places: IntArray, tick: Tick, device: str = "cpu") -> Centred:
    """Read the targets once and return them with their mean and spread."""
    sums = [torch.zeros(2, int(np.prod(shape)), dtype=torch.float64) for shape in source.shapes]
    for rows, parts in _blocks(source, places):
        for total, values in zip(sums, parts, strict=True):
            total.add_(torch.stack((values.sum(0), values.square().sum(0))))
        tick(rows.stop / len(places))
    moments = [total / len(places) for total in sums]
    latents, image, text = (torch.stack((first, (second - first.square()).clamp_min(0).sqrt())).to(device, torch.float32) for first, second in moments)
    return Centred(source, places, (latents[0], image[0], text[0]), (latents[1], image[1], text[1]))


def scores(targets: Centred, most: int, tick: Tick) -> Parts:
    """Return the leading principal components' scores.

    Every pair of blocks is multiplied once, so that memory holds two blocks and three (n, n) matrices, whatever the number of features.

    Returns
    -------
    three float32 (n, at most ``most``)
        On the targets' device; uncorrelated columns, widest first; none for targets that never vary.
    """
    count = len(targets)
    grams = [torch.zeros(count, count, device=mean.device) for mean in targets.mean]
    for rows, parts in targets.blocks(count):
        for columns, others in targets.blocks(rows.stop):
            for gram, one, other in zip(grams, parts, others, strict=True):
                gram[rows, columns] = one @ other.T
        tick((rows.stop / count) ** 2)
    return _leading(grams.pop(0), most), _leading(grams.pop(0), most), _leading(grams.pop(0), most)


def bases(targets: Centred, found: Parts, tick: Tick) -> Parts:
    """Return the directions that belong to scores (n, r): orthonormal rows, float32 (r, n_features)."""
    sums = [torch.zeros(part.shape[1], len(mean), device=mean.device) for part, mean in zip(found, targets.mean, strict=True)]
    for rows, parts in targets.blocks(len(targets)):
        for total, part, values in zip(sums, found, parts, strict=True):
            total.add_((part[rows].to(values) / part.square().sum(0).to(values)).T @ values)
        tick(rows.stop / len(targets))
    latents, image, text = (total / total.norm(dim=1, keepdim=True) for total in sums)
    return latents, image, text


def _blocks(source: TargetSource, places: IntArray) -> Iterator[tuple[slice, Parts]]:
    for start in range(0, len(places), ROWS):
        rows = slice(start, min(start + ROWS, len(places)))
        latents, image, text = (torch.from_numpy(part.reshape(len(part), -1).astype(np.float32, copy=False)) for part in source.rows(places[rows]))
        yield rows, (latents, image, text)


def _leading(gram: Tensor, most: int) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)  # reads the lower triangle, which is all there is
    values, vectors = values.flip(0)[:most], vectors.flip(1)[:, :most]
    real = values > 1e-6 * values[:1].clamp_min(1e-6)  # below, float32 has no direction to give
    return vectors[:, real] * values[real].sqrt()
