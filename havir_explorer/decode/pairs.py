"""Responses and targets side by side: a subject's part of what a branch is trained on, and batches of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from havir_explorer.decode import chance
from havir_explorer.decode.edges import PixelEdges
from havir_explorer.decode.mixco import Mixing
from havir_explorer.decode.objectives import Objective, Tensors
from havir_explorer.decode.options import Options
from havir_explorer.decode.samples import Samples, hold_out
from havir_explorer.decode.targets import TargetSource
from havir_explorer.records import BoolArray, IntArray


@dataclass(frozen=True, eq=False)
class Pairs:
    """One subject's pictures with its responses in a branch's voxels, and where their targets lie.

    Parameters
    ----------
    samples : Samples
    columns : float32 (n_trials, n_voxels of the branch)
        Responses to every trial of ``samples``.
    rows : int64 (n,)
        Places of the pictures in the target source.
    train, held : int64
        Pictures that are trained on, and those kept back; together all n.
    """

    samples: Samples
    columns: Tensor
    rows: IntArray
    train: Tensor
    held: Tensor

    def voxels(self, weights: Tensor, pictures: Tensor) -> Tensor:
        """Return the weighted repeats of pictures, float32 (B, n_voxels of the branch)."""
        return self.samples.mix(weights, pictures, self.columns)

    def averaged(self, pictures: Tensor) -> Tensor:
        """Return the mean over the repeats of pictures, float32 (B, n_voxels of the branch)."""
        return self.voxels(self.samples.means(pictures), pictures)

    def nsd_ids(self, pictures: Tensor) -> IntArray:
        """Return the names that the data set has for pictures."""
        return self.samples.nsd_ids[pictures.numpy()]


def pair(samples: Samples, voxels: BoolArray, targets: TargetSource, held_out: float, seed: int) -> Pairs:
    """Read a subject's responses in a branch's voxels, and hold a share of the training pictures back.

    Which are held out depends on the seed alone: both branches hold out the same.
    """
    rows = np.searchsorted(targets.nsd_ids, samples.nsd_ids)
    held = hold_out(len(rows), held_out, torch.Generator().manual_seed(seed))
    return Pairs(samples, samples.columns(voxels), rows, torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held)))


@dataclass(frozen=True, eq=False)
class Draw:
    """What a step shows: pictures of one subject, and how their repeats are mixed.

    Parameters
    ----------
    subject : int
        Place of its :class:`Pairs`.
    pictures : int64 (B,)
    weights : float32 (B, most repeats)
    """

    subject: int
    pictures: Tensor
    weights: Tensor

    def part(self, places: Tensor) -> Draw:
        """Return some of the pictures."""
        return Draw(self.subject, self.pictures[places], self.weights[places])


def draw(pairs: tuple[Pairs, ...], batch: int, *places: int) -> Draw:
    """Draw a batch: a subject, pictures of its, and their repeats' weights; a function of ``places`` (a seed, a branch, a step) alone."""
    random = chance.generator(*places)
    subject = int(torch.randint(len(pairs), (), generator=random)) if len(pairs) > 1 else 0
    one = pairs[subject]
    pictures = one.train[torch.randint(len(one.train), (batch,), generator=random)]
    return Draw(subject, pictures, one.samples.random_weights(pictures, random))


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a branch learns, and from whom.

    Parameters
    ----------
    objective : Objective
    pairs : tuple of Pairs
        One a subject; several share the trunk.
    source : TargetSource
        Read batch by batch.
    edges : PixelEdges, optional
        Where edges are compared in decoded pictures too: the branch's first head is latents.
    """

    objective: Objective
    pairs: tuple[Pairs, ...]
    source: TargetSource
    edges: PixelEdges | None = None

    def loss(self, predicted: Tensors, subject: int, pictures: Tensor, options: Options, mixing: Mixing | None = None) -> Tensor:
        """Return the loss of what was predicted for pictures, float (); a few of them are decoded where edges are compared in pixels."""
        loss = self.objective.loss(predicted, self.targets(subject, pictures, predicted[0].device), options, mixing)
        if self.edges is None or not options.pixel_edges:
            return loss
        few = pictures[: options.pixel_pictures]
        return loss + options.pixel_edges * self.edges.loss(predicted[0][: len(few)], self.pairs[subject].nsd_ids(few))

    def targets(self, subject: int, pictures: Tensor, device: torch.device) -> Tensors:
        """Read the targets of pictures, float32, one tensor a head."""
        rows = self.pairs[subject].rows[pictures.numpy()]
        return tuple(torch.from_numpy(self.source.column(kind, rows)).to(device).float() for kind in self.objective.targets)


class Learner(nn.Module):
    """A branch under training: one module a subject, whose trunks are the same objects where several subjects share one.

    Parameters
    ----------
    modules : sequence of StructuralGenerator or of SemanticExtractor
        In the order of :attr:`Lesson.pairs`.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.subjects = nn.ModuleList(modules)

    def forward(self, voxels: Tensor, subject: int) -> Tensors:
        """Return a subject's predictions, one tensor a head."""
        predicted: Tensor | Tensors = self.subjects[subject](voxels)
        return (predicted,) if isinstance(predicted, Tensor) else predicted
