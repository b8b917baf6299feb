"""A subject as it enters training, and as it leaves it: its voxels, its pictures, its decoder's manifest."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import card, files
from havir_explorer.decode.files import PREFIXES, Parts
from havir_explorer.decode.manifest import Manifest, Record, voxel_hash
from havir_explorer.decode.options import Options
from havir_explorer.decode.samples import Samples, collect
from havir_explorer.decode.split import Split, choose
from havir_explorer.decode.targets import TargetSource
from havir_explorer.errors import WeightsInvalid
from havir_explorer.records import BoolArray, Branch

BOTH: tuple[Branch, ...] = ("structural", "semantic")
_SAME = ("subject", "dataset", "convention", "split", "voxel_hash", "n_spatial", "n_semantic", "latent_shape", "image_shape", "text_shape")
"""What two branches of one decoder agree in."""


@dataclass(frozen=True, eq=False)
class Member:
    """A subject to train on, and the folder that receives its decoder."""

    dataset: Dataset
    subject: str
    folder: Path


@dataclass(frozen=True, eq=False)
class Enrolled:
    """A subject before its training.

    Parameters
    ----------
    member : Member
    split : Split
        Which voxels each branch reads.
    samples : Samples
        Its training pictures.
    blank : Manifest
        Of its decoder, without a record.
    kept : Parts or None
        The branch that is not trained and stays as it is.
    """

    member: Member
    split: Split
    samples: Samples
    blank: Manifest
    kept: Parts | None

    def voxels(self, branch: Branch) -> BoolArray:
        """Return the voxels that a branch reads, bool (n_voxels,)."""
        return self.split.spatial if branch == "structural" else self.split.semantic


@dataclass(frozen=True, eq=False)
class Taught:
    """A trained branch: its tensors by the names they have in a decoder, the digest of the run that made them, and how it went."""

    branch: Branch
    tensors: dict[str, Tensor]
    run: str
    loss: float
    step: int
    seconds: float
    training_images: int
    held_out_images: int


def enrol(member: Member, targets: TargetSource, options: Options, branches: Sequence[Branch]) -> Enrolled:
    """Find out what a subject brings; errors as :func:`~havir_explorer.decode.cohort.fit_cohort`."""
    dataset, subject = member.dataset, member.subject
    split = choose(dataset.atlas(subject), options.choice)
    samples = collect(dataset, subject, targets.nsd_ids, options.sessions)
    blank = _manifest(dataset, subject, targets, samples, options, split)
    return Enrolled(member, split, samples, blank, _kept(member.folder, blank, branches))


def again(one: Enrolled, branches: Sequence[Branch]) -> Enrolled:
    """Look once more for a branch that stays: another process may have trained it meanwhile, each branch on a GPU of its own."""
    return replace(one, kept=_kept(one.member.folder, one.blank, branches))


def joined(one: Enrolled, taught: Sequence[Taught], run: Record, seen: frozenset[int]) -> Parts:
    """Put what was trained beside the branch that stays, with the losses of both; the rest of the record is of this training; ``seen`` are its pictures."""
    blank, split, kept = one.blank, one.split, one.kept
    there = kept.manifest.record if kept else Record()
    losses = {"structural": (there.held_out_loss_structural, there.best_step_structural), "semantic": (there.held_out_loss_semantic, there.best_step_semantic)}
    losses |= {new.branch: (new.loss, new.step) for new in taught}
    runs = {"structural": there.run_structural, "semantic": there.run_semantic}
    runs |= {new.branch: new.run for new in taught}
    record = run.model_copy(
        update={
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "training_images": taught[0].training_images,
            "held_out_images": taught[0].held_out_images,
            "held_out_loss_structural": losses["structural"][0],
            "held_out_loss_semantic": losses["semantic"][0],
            "best_step_structural": losses["structural"][1],
            "best_step_semantic": losses["semantic"][1],
            "run_structural": runs["structural"],
            "run_semantic": runs["semantic"],
            "versions": card.versions(),
        }
    )
    pictures = sorted({*seen, *blank.train_nsd_ids, *(kept.manifest.train_nsd_ids if kept else ())})
    sizes = {str(branch): getattr(kept.manifest, branch) for branch in kept.branches} if kept else {}
    manifest = blank.model_copy(update={"record": record, "train_nsd_ids": tuple(pictures), **sizes})
    tensors = dict(kept.tensors) if kept else {}
    for new in taught:
        tensors |= new.tensors
    return Parts(manifest, split.spatial, split.semantic, tensors)


def _kept(folder: Path, blank: Manifest, branches: Sequence[Branch]) -> Parts | None:
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
