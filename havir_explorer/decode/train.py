"""Train a subject's decoder: resumable, reproducible, judged on training images it has not seen."""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import branches as modules
from havir_explorer.decode import card, files
from havir_explorer.decode.cost import check_disk, cost
from havir_explorer.decode.edges import PixelEdges
from havir_explorer.decode.files import PREFIXES, Parts
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.machine import Machine
from havir_explorer.decode.manifest import Manifest, Record, voxel_hash
from havir_explorer.decode.objectives import OBJECTIVES
from havir_explorer.decode.options import Options
from havir_explorer.decode.pairs import Learner, Lesson, pair
from havir_explorer.decode.run import Notice, Plan, Progress, Run, remove
from havir_explorer.decode.samples import Samples, collect, held_count
from havir_explorer.decode.split import Split, choose
from havir_explorer.decode.targets import TargetSource
from havir_explorer.errors import RequestError, WeightsInvalid
from havir_explorer.records import Branch

STEPS = 1500
"""Enough for the teaching world."""
BOTH: tuple[Branch, ...] = ("structural", "semantic")
_SAME = ("subject", "dataset", "convention", "split", "voxel_hash", "n_spatial", "n_semantic", "latent_shape", "image_shape", "text_shape")
"""What two branches of one decoder agree in."""


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
    if steps is not None and steps < 1:
        msg = f"steps must be 1 or more; got {steps}"
        raise RequestError(msg)
    options, began = options or Options(), time.monotonic()
    if options.pixel_edges and edges is None:
        msg = "edges in pixels need the generator's decoder and the stimuli, and none were given; give edges, or compare them in latents"
        raise RequestError(msg)
    split = choose(dataset.atlas(subject), options.choice)
    samples = collect(dataset, subject, targets.nsd_ids)
    blank = _manifest(dataset, subject, targets, samples, options, split)
    kept = _kept(folder, blank, branches)
    steps = steps or _steps(options, len(samples.nsd_ids))
    costs = [cost(blank, options, branch, len(samples.trials)) for branch in branches]
    check_disk(folder, costs)
    if notice:
        notice("\n".join(f"{each}; {steps:,} steps of {options.batch} pictures" for each in costs))
    identity = json.dumps([seed, steps, blank.model_dump_json(), asdict(options)], default=lambda record: record.model_dump())
    plan, machine = Plan(options, steps, seed, identity, resume, tensorboard), Machine(device, options.precision)
    taught = []
    for number, branch in enumerate(branches):
        voxels = split.spatial if branch == "structural" else split.semantic
        of_pixels = edges if branch == "structural" else None
        lesson = Lesson(OBJECTIVES[branch], (pair(samples, voxels, targets, options.held_out, seed),), targets, of_pixels)
        taught.append(_teach(lesson, blank, plan, machine, folder, _share(progress, number, len(branches)), notice))
    seconds, listed = round(time.monotonic() - began, 1), options.listed()
    run = Record(seed=seed, steps=steps, seconds=seconds, device=str(machine.device), caption_target=options.caption_target, hyper_parameters=listed)
    parts = _joined(blank, split, taught, kept, run)
    if machine.rank == 0:
        files.write(folder, parts)
        card.write(folder)
        remove(folder, branches)
    machine.wait()
    return parts.manifest


@dataclass(frozen=True, eq=False)
class _Taught:
    """A trained branch: its tensors by the names they have in a decoder, and how it went."""

    branch: Branch
    tensors: dict[str, Tensor]
    loss: float
    step: int
    training_images: int
    held_out_images: int


def _teach(lesson: Lesson, blank: Manifest, plan: Plan, machine: Machine, folder: Path, progress: Progress | None, notice: Notice | None) -> _Taught:
    """Train one branch of one subject from the start or from its checkpoint, and repair it."""
    branch, pairs = lesson.objective.branch, lesson.pairs[0]
    module = modules.fresh(lesson.objective, blank, plan.seed)
    modules.start(lesson, module)
    learner = Learner(module.to(machine.device))
    run = Run(lesson, learner, plan, machine)
    run.loop(folder, progress=progress, notice=notice)
    machine.release()
    modules.finish(lesson, learner, plan.options)
    tensors = {f"{PREFIXES[branch]}{name}": value.detach().cpu() for name, value in module.state_dict().items()}
    return _Taught(branch, tensors, run.state.best_loss, run.state.best_step, len(pairs.train), len(pairs.held))


def _steps(options: Options, pictures: int) -> int:
    """Return how many steps show each training picture as often as the options say."""
    trained = pictures - held_count(pictures, options.held_out)
    return math.ceil(options.epochs * trained / options.batch) if options.epochs else STEPS


def _share(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Let one branch's progress move its part of the bar."""
    return None if progress is None else lambda share, line: progress((number + share) / count, line)


def _kept(folder: Path, blank: Manifest, branches: tuple[Branch, ...]) -> Parts | None:
    """Read the branch that stays as it is in the folder; None where nothing stays.

    Raises
    ------
    WeightsInvalid
        It is of another decoder than the branch that is about to be trained.
    """
    if set(branches) == set(BOTH) or not (folder / files.WEIGHTS).is_file():
        return None
    there = files.read(folder)
    stays = [branch for branch in there.branches if branch not in branches]
    if not stays:
        return None
    other = [name for name in _SAME if getattr(there.manifest, name) != getattr(blank, name)]
    if other or (there.manifest.generator and there.manifest.generator != blank.generator):
        what = f"{', '.join(other)} differ" if other else "it was trained for another generator"
        msg = (
            f"the {stays[0]} branch in {folder} is of another decoder ({what}), and one branch cannot join it: "
            "choose another --out, or train both by leaving --branch out"
        )
        raise WeightsInvalid(msg)
    tensors = {name: value for name, value in there.tensors.items() if name.startswith(PREFIXES[stays[0]])}
    return Parts(there.manifest, there.spatial, there.semantic, tensors)


def _joined(blank: Manifest, split: Split, taught: list[_Taught], kept: Parts | None, run: Record) -> Parts:
    """Put what was trained beside the branch that stays, with the losses of both; the rest of the record is of this training."""
    there = kept.manifest.record if kept else Record()
    losses = {"structural": (there.held_out_loss_structural, there.best_step_structural), "semantic": (there.held_out_loss_semantic, there.best_step_semantic)}
    losses |= {one.branch: (one.loss, one.step) for one in taught}
    record = run.model_copy(
        update={
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "training_images": taught[0].training_images,
            "held_out_images": taught[0].held_out_images,
            "held_out_loss_structural": losses["structural"][0],
            "held_out_loss_semantic": losses["semantic"][0],
            "best_step_structural": losses["structural"][1],
            "best_step_semantic": losses["semantic"][1],
            "versions": card.versions(),
        }
    )
    seen = sorted({*blank.train_nsd_ids, *(kept.manifest.train_nsd_ids if kept else ())})
    sizes = {str(branch): getattr(kept.manifest, branch) for branch in kept.branches} if kept else {}
    manifest = blank.model_copy(update={"record": record, "train_nsd_ids": tuple(seen), **sizes})
    tensors = dict(kept.tensors) if kept else {}
    for one in taught:
        tensors |= one.tensors
    return Parts(manifest, split.spatial, split.semantic, tensors)


def _manifest(dataset: Dataset, subject: str, targets: TargetSource, samples: Samples, options: Options, split: Split) -> Manifest:
    shapes = targets.shapes
    return Manifest(
        subject=subject,
        dataset=dataset.name,
        convention=dataset.convention,
        split=split.words,
        choice=split.choice,
        voxel_hash=voxel_hash(dataset.geometry(subject).flat_index),
        n_voxels=len(split.spatial),
        n_spatial=int(split.spatial.sum()),
        n_semantic=int(split.semantic.sum()),
        latent_shape=(shapes.latents[0], shapes.latents[1], shapes.latents[2]),
        image_shape=(shapes.image_embeds[0], shapes.image_embeds[1]),
        text_shape=(shapes.text_embeds[0], shapes.text_embeds[1]),
        structural=options.structural,
        semantic=options.semantic,
        train_nsd_ids=tuple(int(n) for n in samples.nsd_ids),
        generator=targets.generator,
        record=Record(),
    )
