"""``havir train``: encode what a subject saw, then fit HAVIR's branches to it, with what that will cost said first."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from havir_explorer.cli.options import DatasetOption, GeneratorOption, JsonOption
from havir_explorer.cli.show import console, emit, make_folder, names, one_of, progress_bar
from havir_explorer.errors import RequestError, nearest
from havir_explorer.records import Branch, Request

if TYPE_CHECKING:
    from havir_explorer.cli.train_asked import Asked, Shape
    from havir_explorer.data.dataset import Dataset
    from havir_explorer.decode.cohort import Start
    from havir_explorer.decode.manifest import Manifest
    from havir_explorer.decode.target_store import TargetStore
    from havir_explorer.decode.targets import ImageSource
    from havir_explorer.diffuse.model import VersatileDiffusion

_D = Request()
METHODS = ("havir", "linear")


def train(
    *,
    dataset: DatasetOption = _D.dataset,
    subject: Annotated[str, typer.Option("--subject", help="subj01 and so on; several, with commas between, share one trunk.")] = _D.subject,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the weights. [the cache folder]")] = None,
    method: Annotated[str, typer.Option("--method", help="havir, or linear: cross-validated ridge regression, the baseline.")] = "havir",
    branch: Annotated[str, typer.Option("--branch", help="structural or semantic: train that one and leave the other in the folder as it is. [both]")] = "",
    size: Annotated[str, typer.Option("--size", help="small, for the teaching world and a CPU, or full, the published widths for a GPU.")] = "small",
    options: Annotated[Path | None, typer.Option("--options", help="TOML or JSON file with what else shapes the training: rates, widths, losses.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps of each branch. [1500; 120 epochs of the full size]")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Instead of --steps: how often each picture is shown.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Pictures a step. [64; 32 of the full size]")] = None,
    patience: Annotated[int | None, typer.Option("--patience", help="Stop after so many looks at held-out pictures without a better one; 0 never.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps. [the fastest there is]")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="no, bf16 or fp16. [no; bf16 for the full size on a GPU]")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of initialisation and batches.")] = 0,
    resume: Annotated[bool, typer.Option("--resume/--restart", help="Leave what is trained already, and go on from the folder's last checkpoint.")] = True,
    captions: Annotated[str | None, typer.Option("--captions", help="Text target: mean or first caption. [mean; first for the teaching world]")] = None,
    images: Annotated[str, typer.Option("--images", help="Image target: of the stimulus, or synthesised from its captions (HAVIR v1).")] = "stimulus",
    targets: Annotated[Path | None, typer.Option("--targets", help="Folder of the targets, as havir targets --out made it. [the cache folder]")] = None,
    generator: GeneratorOption = None,
    split: Annotated[str | None, typer.Option("--split", help="Voxels of the branches: default, takagi, streams, or all (to both: the control).")] = None,
    rois: Annotated[str | None, typer.Option("--rois", help="Only these ROIs of the split, with commas between: V1,V2,FFA-1.")] = None,
    edges: Annotated[str, typer.Option("--edges", help="Compare edges of latents, or of pixels (decoded pictures; slower).")] = "latents",
    mixco: Annotated[bool, typer.Option("--mixco", help="Mix brain responses for the first third of the run (BiMixCo).")] = False,
    start_from: Annotated[Path | None, typer.Option("--start-from", help="Folder of another subject's decoder: start from its trunk.")] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="With --start-from: leave that trunk as it is and learn the input layer alone.")] = False,
    sessions: Annotated[int | None, typer.Option("--sessions", help="Train on the first so many sessions alone. [all]")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the losses for TensorBoard too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a decoder on a subject's responses. Several subjects share one trunk; run it again to go on after a stop.

    On several GPUs: accelerate launch "$(command -v havir)" train --size full --dataset DIR …
    """
    from havir_explorer.cli import train_asked
    from havir_explorer.decode.enrol import BOTH
    from havir_explorer.decode.machine import leads
    from havir_explorer.decode.targets import ImageSource
    from havir_explorer.diffuse import device as devices

    began = time.perf_counter()
    asked = train_asked.asked(mixco=mixco, edges=edges, split_name=split, rois=rois)
    shape = train_asked.shape(size, options, epochs=epochs, batch=batch, patience=patience, precision=precision)
    if steps is not None and epochs is not None:
        msg = f"--steps {steps} and --epochs {epochs:g} both say how long to train; give one of them"
        raise RequestError(msg)
    branches = (one_of("--branch", branch, BOTH),) if branch else BOTH
    source = _Source(dataset, names(subject), generator or _D.generator, captions, one_of("--images", images, get_args(ImageSource)), targets)
    how = _How(branches, steps, seed, resume, str(devices.device(device)), tensorboard, _start(start_from, freeze=freeze), sessions)
    linear = one_of("--method", method, METHODS) == "linear"
    decoders = (trained_linear if linear else trained)(source, out, how, asked=asked, shape=shape)
    if not leads(how.device):
        return
    if as_json:
        spent = round(time.perf_counter() - began, 1)
        facts = [_facts(folder, manifest, branches, spent) for folder, manifest in decoders]
        emit(facts[0] if len(facts) == 1 else {"decoders": facts, "wall_seconds": spent})
        return
    for folder, _ in decoders:
        console().print(f"the decoder is in {folder}: {_next(folder, branch, linear=linear)}")


def _next(folder: Path, branch: str, *, linear: bool) -> str:
    from havir_explorer.decode.files import PREFIXES, read

    if linear or set(read(folder).branches) == set(PREFIXES):
        return f"use it with --decoder {folder}"
    return f"the other branch is still missing: train it with the same --out and --branch {_other(branch)}"


def _facts(folder: Path, manifest: Manifest, branches: tuple[Branch, ...], seconds: float) -> dict[str, object]:
    said = {"weights": str(folder), "subject": manifest.subject, "branches": list(branches), "images": len(manifest.train_nsd_ids)}
    return {**said, "wall_seconds": seconds, **manifest.record.model_dump()}


def _start(folder: Path | None, *, freeze: bool) -> Start | None:
    """The decoder to start from."""
    if folder is None:
        if freeze:
            msg = "--freeze leaves another subject's trunk as it is, and none was named; name its decoder's folder with --start-from"
            raise RequestError(msg)
        return None
    from havir_explorer.decode.cohort import Start

    return Start(folder, freeze)


def _other(branch: str) -> str:
    return "semantic" if branch == "structural" else "structural"


@dataclass(frozen=True)
class _Source:
    """What is trained on."""

    dataset: str
    subjects: tuple[str, ...]
    generator: str
    captions: str | None
    images: ImageSource
    targets: Path | None


@dataclass(frozen=True)
class _How:
    """Which branches are trained, for how long, and where."""

    branches: tuple[Branch, ...]
    steps: int | None
    seed: int
    resume: bool
    device: str
    tensorboard: bool
    start: Start | None
    sessions: int | None


def trained(source: _Source, out: Path | None, how: _How, *, asked: Asked, shape: Shape) -> list[tuple[Path, Manifest]]:
    """Train branches of the subjects' decoders on every image that is not shared; return their folders and what is said of them.

    Its targets come from the store named, or the data set's under the cache folder; those that it lacks are added (:mod:`havir_explorer.encoding`).

    Raises
    ------
    RequestError
        A subject is unknown, the voxels asked for leave a branch without any, or an option is out of range.
    OutputError
        The folder cannot be made or written.
    """
    from havir_explorer.cli import train_asked
    from havir_explorer.decode.cohort import fit_cohort
    from havir_explorer.decode.enrol import Member
    from havir_explorer.decode.machine import leads, main_process_first
    from havir_explorer.decode.options import Options
    from havir_explorer.decode.split import choose

    tree = _tree(source.dataset, source.subjects)
    for subject in source.subjects:
        choose(tree.atlas(subject), asked.options(shape.changed(Options())).choice)  # said before anything is encoded
    members = [Member(tree, subject, folder) for subject, folder in zip(source.subjects, _folders(out, tree, source.subjects), strict=True)]
    with main_process_first(how.device):
        store, model = _targets(tree, source)
    options = replace(asked.options(shape.options(store, how.device)), caption_target=store.caption_target, image_source=store.image_source)
    if shape.size == "small" and shape.file is None and not tree.synthetic:
        _notice(f"the small size is made for the teaching world; for {tree.name} take --size full")
    if how.sessions is not None:
        options = replace(options, sessions=_positive("--sessions", how.sessions))
    edges = train_asked.pixel_edges(tree, model) if options.pixel_edges else None
    del model  # its memory is the training's now
    with progress_bar("training") if leads(how.device) else nullcontext() as show:
        manifests = fit_cohort(
            members,
            store,
            members[0].folder if len(members) == 1 else members[0].folder.parent,
            branches=how.branches,
            steps=how.steps,
            seed=how.seed,
            progress=show,
            notice=_notice,
            resume=how.resume,
            options=options,
            device=how.device,
            edges=edges,
            tensorboard=how.tensorboard,
            start=how.start,
        )
    return [(member.folder, manifest) for member, manifest in zip(members, manifests, strict=True)]


def _positive(option: str, value: int) -> int:
    if value < 1:
        msg = f"{option} takes a number from 1 on; got {value}"
        raise RequestError(msg)
    return value


def trained_linear(source: _Source, out: Path | None, how: _How, *, asked: Asked, shape: Shape) -> list[tuple[Path, Manifest]]:
    """Fit each subject's linear decoder on every image that is not shared; return as :func:`trained`, and raise what that raises.

    Raises
    ------
    RequestError
        An option is given that only HAVIR's training has.
    """
    from havir_explorer.cli import train_linear
    from havir_explorer.cli.train_asked import Shape
    from havir_explorer.decode.linear_fit import LinearOptions
    from havir_explorer.decode.split import Choice, choose

    havirs = (how.steps is not None, len(how.branches) == 1, how.tensorboard, how.start, how.sessions, asked.mixco, asked.pixels, shape != Shape())
    if any(havirs):
        msg = (
            "--method linear has no steps, sizes or batches and fits both branches: it takes --split, --rois, --captions, --images, --generator, --seed, "
            "--device, --restart and --out alone"
        )
        raise RequestError(msg)
    choice, runs_on = asked.choice or Choice(), how.device if how.device.startswith("cuda") else "cpu"  # himalaya's other devices lose precision
    tree = _tree(source.dataset, source.subjects)
    for subject in source.subjects:
        choose(tree.atlas(subject), choice)  # said before anything is encoded
    folders = _folders(out, tree, source.subjects, "linear")
    store, _ = _targets(tree, source)
    options = LinearOptions(choice=choice, caption_target=store.caption_target, image_source=store.image_source)
    return [
        (folder, train_linear.train(tree, subject, store, folder, options, seed=how.seed, resume=how.resume, device=runs_on))
        for subject, folder in zip(source.subjects, folders, strict=True)
    ]


def _tree(dataset: str, subjects: tuple[str, ...]) -> Dataset:
    """Open the data set, once it is known that it has the subjects."""
    from havir_explorer.data import open_dataset

    tree = open_dataset(dataset)
    for subject in subjects or ("",):
        if subject not in tree.subjects():
            msg = f"{tree.name} has no subject {subject!r}; {nearest(subject, tree.subjects())}"
            raise RequestError(msg)
    return tree


def _targets(tree: Dataset, source: _Source) -> tuple[TargetStore, VersatileDiffusion]:
    """Open the data set's targets, to which those that the training lacks are added, and the generator that made them."""
    import numpy as np

    from havir_explorer import encoding
    from havir_explorer.decode.targets import CaptionTarget

    rule = None if source.captions is None else one_of("--captions", source.captions, get_args(CaptionTarget))
    tables = [tree.trials(subject) for subject in source.subjects]
    seen = np.unique(np.concatenate([table.loc[~table["shared"], "nsd_id"].to_numpy(dtype=np.int64) for table in tables]))
    with progress_bar("looking at targets") as show:
        work = encoding.prepare(tree, seen, source.generator, captions=rule, images=source.images, folder=source.targets, progress=show)
    if work.plan.todo:
        _notice(str(work))
    with progress_bar("encoding stimuli") as show:
        return encoding.make(work, progress=show), work.encode.model


def _folders(out: Path | None, tree: Dataset, subjects: tuple[str, ...], method: str = "havir") -> list[Path]:
    """Return each subject's folder for the weights, once it is known that they can be written: ``out`` itself where there is one subject."""
    from havir_explorer import paths

    if out is not None and len(subjects) == 1:
        return [make_folder(out, "--out")]
    home = out or paths.cache_folder() / method / tree.name
    return [make_folder(home / subject, "--out") for subject in subjects]


def _notice(sentence: str) -> None:
    console(to_stderr=True).print(sentence)
