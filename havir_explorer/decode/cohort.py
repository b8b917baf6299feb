"""The training of one subject, or of several that share a trunk: one loop for both."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from havir_explorer.claim import claimed
from havir_explorer.data import storing
from havir_explorer.decode import branches as modules
from havir_explorer.decode import card, files, trunk
from havir_explorer.decode.cost import check_disk, cost
from havir_explorer.decode.edges import PixelEdges
from havir_explorer.decode.enrol import BOTH, Enrolled, Member, Taught, again, enrol, joined
from havir_explorer.decode.files import PREFIXES, Parts
from havir_explorer.decode.machine import Machine
from havir_explorer.decode.manifest import Manifest, Record
from havir_explorer.decode.objectives import OBJECTIVES
from havir_explorer.decode.options import Options
from havir_explorer.decode.pairs import Learner, Lesson, Pairs, pair
from havir_explorer.decode.run import Notice, Plan, Progress, Run, checkpoint_bytes, remove
from havir_explorer.decode.samples import held_count
from havir_explorer.decode.targets import TargetSource
from havir_explorer.errors import RequestError, WeightsInvalid, WeightsMissing
from havir_explorer.records import Branch

STEPS = 1500
"""Enough for the teaching world."""


@dataclass(frozen=True)
class Start:
    """Another subject's decoder to start from.

    Parameters
    ----------
    folder : Path
    freeze : bool
        Leave its trunk as it is, so that only the input layer learns; otherwise all learns.
    """

    folder: Path
    freeze: bool = False


def fit_cohort(
    members: Sequence[Member],
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
) -> tuple[Manifest, ...]:
    """Train a branch after the other, on one subject or on several with one trunk, and save each subject's decoder.

    What several subjects share is everything behind the input layer (:mod:`~havir_explorer.decode.trunk`), as in MindEye2's shared-subject models
    (Scotti et al. 2024), which map voxels to a common space by one linear layer a subject. A step shows pictures of one subject, drawn at random.
    Each decoder then runs alone; its manifest lists the training pictures of all subjects, because its trunk has seen them. A branch's weights do
    not depend on whether the other is trained in the same call.

    Parameters
    ----------
    members : sequence of Member
        No subject of a data set twice. A branch in a member's folder that is not trained stays as it is; a decoder can be loaded once both are there.
    targets : TargetSource
        Of any pictures, all of theirs among them; shared (test) pictures are never used. Read batch by batch.
    folder : Path
        Receives each branch's loss curve and, on the way, its checkpoint.
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
        Leave what the same run has finished, and continue from the folder's checkpoints: on a CPU to the same weights as without the
        interruption, on a GPU but for the order in which it adds.
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
    tuple of Manifest
        In the order of ``members``, as saved. The weights are those of the step that was best on held-out images, per branch.

    Raises
    ------
    RequestError
        A subject named twice, ``steps`` below 1, edges in pixels without a decoder, a batch that the processes cannot share evenly, or the device
        lacks the number format.
    DataInvalid
        Too few training images, or targets that are not finite.
    WeightsInvalid
        The checkpoint is of another run, the branch that stays is of another decoder, or the decoder to start from does not fit.
    TrainingDiverged
        A loss is not finite any more; the last checkpoint stays.
    DeviceOutOfMemory
        Not even one picture at a time fits, or the weights and the optimiser do not.
    OutputError
        The disk is full, the folder cannot be written, or another process trains the same branch in it.
    """
    options = options or Options()
    _check(members, steps, options, edges)
    everyone = [enrol(member, targets, options, branches) for member in members]
    source = files.read(start.folder) if start else None
    if source:
        trunk.check(everyone[0].blank, branches, source)
    steps = steps or _steps(options, sum(len(one.samples.nsd_ids) for one in everyone))
    machine = Machine(device, options.precision, subjects=len(members))
    if machine.rank:
        progress = notice = None  # one process speaks for all
    told = [seed, steps, *(one.blank.model_dump_json() for one in everyone), asdict(options), *_digest(start)]
    plan = Plan(options, steps, seed, json.dumps(told, default=lambda record: record.model_dump()), resume, tensorboard)
    done = _done(everyone, branches, plan)
    if done:
        if notice:
            notice(f"{' and '.join(branches)}: trained already, by the same options, in {folder}; --restart trains anew")
        return done
    _check_shares(machine, options)
    drawing = {"structural": edges.needs if edges and options.pixel_edges else 0, "semantic": 0}
    blanks, trials = [one.blank for one in everyone], [len(one.samples.trials) for one in everyone]
    costs = [cost(blanks, options, branch, trials, drawing[branch]) for branch in branches]
    check_disk(folder, costs, checkpoint_bytes(folder, branches))
    if notice:
        notice("\n".join([f"{each}; {steps:,} steps of {options.batch} pictures" for each in costs] + _shares(machine, options, branches)))
    school = _School(everyone, targets, machine, folder, source, freeze=bool(start and start.freeze))
    taught = [school.teach(branch, plan, edges, _share(progress, number, len(branches)), notice) for number, branch in enumerate(branches)]
    record = _record(plan, members, school.machine, source, start, sum(branch[0].seconds for branch in taught))
    parts = [joined(again(one, branches), [branch[place] for branch in taught], record, school.seen) for place, one in enumerate(everyone)]
    if school.machine.rank == 0:
        for one, whole in zip(everyone, parts, strict=True):
            files.write(one.member.folder, whole)
            card.write(one.member.folder)
        remove(folder, branches)
    school.machine.wait()
    return tuple(whole.manifest for whole in parts)


@dataclass(frozen=True, eq=False)
class _School:
    """Who is taught, from what, and on which machine."""

    everyone: Sequence[Enrolled]
    targets: TargetSource
    machine: Machine
    folder: Path
    source: Parts | None
    freeze: bool

    @property
    def seen(self) -> frozenset[int]:
        """Every picture that the trunk has seen."""
        before = self.source.manifest.train_nsd_ids if self.source else ()
        return frozenset({*before, *(n for one in self.everyone for n in one.blank.train_nsd_ids)})

    def teach(self, branch: Branch, plan: Plan, edges: PixelEdges | None, progress: Progress | None, notice: Notice | None) -> list[Taught]:
        """Train one branch from the start or from its checkpoint, and repair it for each subject."""
        objective, options = OBJECTIVES[branch], plan.options
        pairs = [pair(one.samples, one.voxels(branch), self.targets, options.held_out, plan.seed) for one in self.everyone]
        lesson = Lesson(objective, _apart(pairs), self.targets, edges if branch == "structural" else None)
        made = [modules.fresh(objective, self.everyone[0].blank, plan.seed)]
        for one in self.everyone[1:]:
            made.append(trunk.share(made[0], modules.fresh(objective, one.blank, plan.seed)))  # so that two trunks are in memory at most
        modules.start(lesson, made[0])
        if self.source:
            trunk.adopt(made[0], branch, self.source, freeze=self.freeze)
        with self.machine.room(f"the {branch} branch"):
            learner = Learner(*(module.to(self.machine.device) for module in made))
        run = Run(lesson, learner, plan, self.machine)
        with _claim(self.folder, branch) if self.machine.rank == 0 else nullcontext():
            run.loop(self.folder, progress=progress, notice=notice)
        self.machine.release()
        with self.machine.room(f"the {branch} branch's repair"):
            modules.finish(lesson, learner, options)
        ended = run.state.best_loss, run.state.best_step, run.state.seconds
        states = [{f"{PREFIXES[branch]}{name}": value.detach().cpu() for name, value in module.state_dict().items()} for module in made]
        return [Taught(branch, state, _name(plan), *ended, len(one.train), len(one.held)) for state, one in zip(states, lesson.pairs, strict=True)]


@contextmanager
def _claim(folder: Path, branch: Branch) -> Iterator[None]:
    """Keep a second training of the branch out of the folder: the two would overwrite each other's checkpoint."""
    storing.room(folder, "decoder's folder", "choose another one")
    lock = folder / f".{branch}.lock"
    taken = f"another havir train is training the {branch} branch in {folder}; wait for it to end, or give another folder with --out"
    with claimed(lock, taken, "choose another folder"):
        yield
        lock.unlink(missing_ok=True)


def _apart(pairs: Sequence[Pairs]) -> tuple[Pairs, ...]:
    """Take out of every subject's training pictures those that any subject holds back: a shared trunk would have seen them."""
    held = np.concatenate([one.nsd_ids(one.held) for one in pairs])
    return tuple(replace(one, train=one.train[torch.from_numpy(~np.isin(one.nsd_ids(one.train), held))]) for one in pairs)


def _check(members: Sequence[Member], steps: int | None, options: Options, edges: PixelEdges | None) -> None:
    twice = [subject for (_, subject), count in Counter((member.dataset.root, member.subject) for member in members).items() if count > 1]
    if twice:
        msg = f"{twice[0]} is named twice; name each subject once"
        raise RequestError(msg)
    if steps is not None and steps < 1:
        msg = f"steps must be 1 or more; got {steps}"
        raise RequestError(msg)
    if options.pixel_edges and edges is None:
        msg = "edges in pixels need the generator's decoder and the stimuli, and none were given; give edges, or compare them in latents"
        raise RequestError(msg)


def _check_shares(machine: Machine, options: Options) -> None:
    if options.batch % machine.count:
        msg = f"{machine.count} processes cannot share batches of {options.batch} pictures evenly; choose a --batch that is a multiple of {machine.count}"
        raise RequestError(msg)


def _shares(machine: Machine, options: Options, branches: Sequence[Branch]) -> list[str]:
    """Say what several processes change besides the time."""
    if machine.count == 1 or not any(OBJECTIVES[branch].mixes for branch in branches):
        return []
    each, contrasted = options.batch // machine.count, "and the semantic branch contrasts only these with each other"
    more = f"--batch {options.batch * machine.count} contrasts {options.batch}, as one process does"
    return [f"{machine.count} processes are shown {each} pictures of a batch each, {contrasted}; {more}"]


def _done(everyone: Sequence[Enrolled], branches: Sequence[Branch], plan: Plan) -> tuple[Manifest, ...]:
    """Return the manifests that are there when the same run has written all of them, and may be left as they are."""
    try:
        there = tuple(files.read(one.member.folder).manifest for one in everyone) if plan.resume else ()
    except (WeightsMissing, WeightsInvalid):
        return ()
    same = all({"structural": m.record.run_structural, "semantic": m.record.run_semantic}[branch] == _name(plan) for m in there for branch in branches)
    return there if same else ()


def _name(plan: Plan) -> str:
    """Return the digest of all that decides a run."""
    return hashlib.sha256(plan.identity.encode()).hexdigest()


def _steps(options: Options, pictures: int) -> int:
    """Return how many steps show each training picture as often as the options say."""
    trained = pictures - held_count(pictures, options.held_out)
    return math.ceil(options.epochs * trained / options.batch) if options.epochs else STEPS


def _digest(start: Start | None) -> tuple[str, ...]:
    """What a checkpoint must agree in about where a run started."""
    if start is None:
        return ()
    with (start.folder / files.WEIGHTS).open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest(), f"freeze {start.freeze}"


def _record(plan: Plan, members: Sequence[Member], machine: Machine, source: Parts | None, start: Start | None, seconds: float) -> Record:
    options = plan.options
    return Record(
        seed=plan.seed,
        steps=plan.steps,
        seconds=round(seconds, 1),
        device=str(machine),
        caption_target=options.caption_target,
        image_source=options.image_source,
        hyper_parameters=options.listed(),
        started_from=f"{source.manifest.subject} of {source.manifest.dataset}, trunk {'frozen' if start and start.freeze else 'free'}" if source else "",
        trunk_of=tuple(member.subject for member in members) if len(members) > 1 else (),
    )


def _share(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Let one branch's progress move its part of the bar."""
    return None if progress is None else lambda share, line: progress((number + share) / count, line)
