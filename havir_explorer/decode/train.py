"""Train a subject's decoder: resumable, reproducible, judged on training images it has not seen."""

from __future__ import annotations

from pathlib import Path

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode.cohort import STEPS, Start, fit_cohort
from havir_explorer.decode.edges import PixelEdges
from havir_explorer.decode.enrol import BOTH, Member
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.manifest import Manifest
from havir_explorer.decode.options import Options
from havir_explorer.decode.run import Notice, Progress
from havir_explorer.decode.targets import TargetSource
from havir_explorer.records import Branch

__all__ = ["BOTH", "STEPS", "Start", "fit", "fit_branches"]


def fit(
    dataset: Dataset,
    subject: str,
    targets: TargetSource,
    folder: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    resume: bool = True,
    options: Options | None = None,
    device: str = "cpu",
    edges: PixelEdges | None = None,
) -> Havir:
    """Train both branches of a subject, save them and read them back; arguments and errors as :func:`fit_branches`."""
    fit_branches(dataset, subject, targets, folder, steps=steps, seed=seed, progress=progress, resume=resume, options=options, device=device, edges=edges)
    return Havir.load(folder, device=device)


def fit_branches(
    dataset: Dataset,
    subject: str,
    targets: TargetSource,
    folder: Path,
    *,
    branches: tuple[Branch, ...] = BOTH,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    notice: Notice | None = None,
    resume: bool = True,
    options: Options | None = None,
    device: str = "cpu",
    edges: PixelEdges | None = None,
    tensorboard: bool = False,
    start: Start | None = None,
) -> Manifest:
    """Train branches of a subject one after the other, and save them when all are done.

    A branch's weights do not depend on whether the other is trained in the same call.

    Parameters
    ----------
    dataset : Dataset
    subject : str
    targets : TargetSource
        Of any pictures; shared (test) pictures among them are never used. Read batch by batch.
    folder : Path
        Receives the weights, the manifest, each branch's loss curve and, on the way, its checkpoint. A branch that is not trained stays as it
        is in there; a decoder can be loaded once both are.
    branches : tuple of {'structural', 'semantic'}
    steps : int, optional
        Optimiser steps of each branch, 1 or more; left out, those of the options' epochs, or 1,500.
    seed : int
        Decides initial weights, held-out images, batches, mixing and dropout.
    progress : callable, optional
        Called with the share done in [0, 1] and a line with the losses. What it raises stops the run; the checkpoint stays.
    notice : callable, optional
        Called with what each branch will take before it starts, with its speed after the first steps, and when memory ran out.
    resume : bool
        Continue from the folder's checkpoints, to the same weights as without the interruption.
    options : Options, optional
    device : str
        ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; where accelerate launched several processes, each takes its own GPU unless this is ``cpu``.
    edges : PixelEdges, optional
        The generator's decoder and the stimuli, where ``options`` compares edges in pixels.
    tensorboard : bool
        Write the curves for TensorBoard too.
    start : Start, optional
        Another subject's decoder whose trunk is started from; its training pictures count as seen.

    Returns
    -------
    Manifest
        As saved. The weights are those of the step that was best on held-out images, per branch.

    Raises
    ------
    RequestError
        ``steps`` below 1, edges in pixels without a decoder, or the device lacks the number format.
    DataInvalid
        Too few training images.
    WeightsInvalid
        The checkpoint is of another run, or the branch that stays is of another decoder.
    TrainingDiverged
        A loss is not finite any more; the last checkpoint stays.
    DeviceOutOfMemory
        Not even one picture at a time fits.
    OutputError
        The disk is full or the folder cannot be written.
    """
    (manifest,) = fit_cohort(
        (Member(dataset, subject, folder),),
        targets,
        folder,
        branches=branches,
        steps=steps,
        seed=seed,
        progress=progress,
        notice=notice,
        resume=resume,
        options=options,
        device=device,
        edges=edges,
        tensorboard=tensorboard,
        start=start,
    )
    return manifest
