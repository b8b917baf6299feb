"""A branch before and after the loop: drawn afresh, started at the mean, and repaired at the end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from havir_explorer.decode import chance
from havir_explorer.decode.blocks import Repair, initialise
from havir_explorer.decode.manifest import Manifest
from havir_explorer.decode.objectives import Objective
from havir_explorer.decode.options import Options
from havir_explorer.decode.pairs import Learner, Lesson
from havir_explorer.errors import DataInvalid

CHUNK = 128
"""Pictures looked at together without gradients."""
_SAMPLE = 2048
_WEIGHTS = 0


def fresh(objective: Objective, manifest: Manifest, seed: int) -> nn.Module:
    """Return an untrained branch on the CPU; its parameters depend on the manifest's sizes, the branch and the seed alone."""
    with torch.device("meta"):
        module = objective.module(manifest)
    module.to_empty(device="cpu")
    initialise(module, chance.generator(seed, objective.number, _WEIGHTS))
    return module


def start(lesson: Lesson, module: nn.Module) -> None:
    """Give an untrained branch a head start from the first subject's training targets (2,048 of them at most).

    Raises
    ------
    DataInvalid
        A target holds a value that is not finite.
    """
    train = lesson.pairs[0].train
    places = train[torch.from_numpy(np.linspace(0, len(train) - 1, min(len(train), _SAMPLE)).astype(np.int64))]
    sums: list[Tensor] = []
    squares: list[float] = []
    for pictures in places.split(CHUNK):
        heads = lesson.targets(0, pictures, torch.device("cpu"))
        wrong = ~torch.cat([head.flatten(1) for head in heads], 1).isfinite().all(1)
        if wrong.any():
            pairs = lesson.pairs[0]
            named = ", ".join(str(n) for n in pairs.nsd_ids(pictures[wrong])[:8])
            msg = f"the {lesson.objective.branch} targets of nsd_id {named} ({pairs.samples.subject}) hold values that are not finite; make them anew"
            raise DataInvalid(msg)
        sums = [before + head.sum(0, dtype=torch.float64) for before, head in zip(sums or [torch.zeros(())] * len(heads), heads, strict=True)]
        squares = [before + float(head.double().square().sum()) for before, head in zip(squares or [0.0] * len(heads), heads, strict=True)]
    means = [total / len(places) for total in sums]
    spreads = [max(0.0, square / (len(places) * mean.numel()) - float(mean.mean()) ** 2) ** 0.5 for square, mean in zip(squares, means, strict=True)]
    lesson.objective.start(module, tuple(mean.float() for mean in means), tuple(spreads))


def finish(lesson: Lesson, learner: Learner, options: Options) -> None:
    """Fit every subject's repairs to what the present weights make of its training pictures, read batch by batch."""
    learner.eval()
    for subject, module in enumerate(learner.subjects):
        for head, (repair, strength) in enumerate(lesson.objective.repairs(module, options)):
            repair.fit(_predictions(lesson, learner, subject, head, repair), strength)


@torch.no_grad()
def _predictions(lesson: Lesson, learner: Learner, subject: int, head: int, repair: Repair) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    pairs = lesson.pairs[subject]
    for pictures in torch.arange(len(pairs.rows)).split(CHUNK):
        predicted = learner(pairs.averaged(pictures).to(repair.gain.device), subject)[head]
        target = lesson.targets(subject, pictures, predicted.device)[head]
        yield predicted, target, torch.isin(pictures, pairs.held)
