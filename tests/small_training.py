"""A training of a second, for tests of the loop: ``python small_training.py FOLDER STEP…`` runs it again and again, killed at these steps (0: not killed).

``share`` instead of steps trains once, as one of the processes that torch's launcher started.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch._dynamo  # noqa: F401 - the first optimiser step imports it: once here rather than in every child
from small_world import TEST, TRAIN, SmallEncoder, SmallWorld

from havir_explorer.decode.cohort import fit_cohort
from havir_explorer.decode.enrol import Member
from havir_explorer.decode.manifest import Manifest, SemanticSizes, StructuralSizes
from havir_explorer.decode.options import Options
from havir_explorer.decode.targets import Targets, build

STEPS = 14
OPTIONS = Options(
    structural=StructuralSizes(width=12, blocks=1, dropout=0.1, block_dropout=0.1, maps=4, channels=4),
    semantic=SemanticSizes(width=12, blocks=1, dropout=0.1, block_dropout=0.1),
    batch=16,
    check_every=4,
    save_every=3,
    held_out=0.2,
    mixco=0.3,
)


def small_targets(world: SmallWorld) -> Targets:
    return build(world, np.arange(TRAIN + TEST), SmallEncoder())


def fit_branches(world: SmallWorld, subject: str, targets: Targets, folder: Path, **asked) -> Manifest:
    """Train a subject alone; what is asked for as in ``fit_cohort``."""
    (manifest,) = fit_cohort((Member(world, subject, folder),), targets, folder, **asked)
    return manifest


def train(folder: Path, last: int) -> None:
    """Train; the ``last``-th step kills this process as a power cut would."""
    steps = 0

    def count(share: float, line: str) -> None:
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

    world = SmallWorld()
    fit_branches(world, "subj01", small_targets(world), folder, steps=STEPS, seed=5, options=OPTIONS, progress=count)


def share(folder: Path) -> None:
    """Train the structural branch without dropout, whose masks depend on how many processes there are."""
    still = OPTIONS.structural.model_copy(update={"dropout": 0.0, "block_dropout": 0.0})
    world = SmallWorld()
    said = dict(notice=print, progress=lambda _share, line: print(line))  # noqa: C408
    fit_branches(world, "subj01", small_targets(world), folder, branches=("structural",), steps=8, options=replace(OPTIONS, structural=still), **said)


if __name__ == "__main__":
    if sys.argv[2:] == ["share"]:
        share(Path(sys.argv[1]))
        sys.exit()
    for last in (int(step) for step in sys.argv[2:]):
        child = os.fork()
        if not child:
            train(Path(sys.argv[1]), last)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended != (-signal.SIGKILL if last else 0):
            sys.exit(f"the training that was to be killed at its step {last} ended with {ended}")
