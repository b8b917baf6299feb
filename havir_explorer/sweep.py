"""What a sweep draws: subjects x trials x masks x seeds as requests, cut into chunks, each drawn by one worker and kept whole or not at all.

Workers only draw; one process writes. So a row is there once and only once, whatever happens to a worker and however often a chunk is redrawn.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd

from havir_explorer import masks, measure, pipeline, rows, store
from havir_explorer.batch import run_many
from havir_explorer.cluster import HERE, Where, connected
from havir_explorer.data import open_dataset
from havir_explorer.data.dataset import Atlas, Dataset
from havir_explorer.decode.files import read_manifest
from havir_explorer.diffuse import source
from havir_explorer.errors import OutputError, RequestError, WeightsMissing
from havir_explorer.paths import stamp
from havir_explorer.records import Mask, Reconstruction, Request
from havir_explorer.rows import Row
from havir_explorer.spread import each

Progress = Callable[[float, str], None]

CHUNK_PICTURES = 32
"""At most this many pictures are lost with a worker."""
CHUNK_SECONDS = 60
"""About how long a chunk may take: what a lost worker or a stop can cost."""
UNKNOWN = 8
"""Pictures of a chunk where nothing is known of the workers: enough for a GPU to draw together, few enough for a CPU."""
PICTURES = "pictures"
"""Folder of the pictures within a sweep's: ``pictures/subj01/KEY.png``, each with its recipe inside."""
_ROW_BYTES = 1000  # at most, in the partition
_WHOLE = "nsdgeneral"  # a lesion of it is no lesion but the absence of a brain


@dataclass(frozen=True)
class Sweep:
    """What to draw.

    Parameters
    ----------
    base : Request
        Everything that does not vary: data set, repeats, models, settings. ``{subject}`` in its decoder stands for the subject's name.
    subjects : tuple of str
    trials : tuple of int
        0-based over the experiment.
    masks : tuple of Mask
    seeds : tuple of int
    each_roi : bool
        Also a lesion of every ROI that a subject has, those of the file ``nsdgeneral`` left out.
    """

    base: Request
    subjects: tuple[str, ...]
    trials: tuple[int, ...]
    masks: tuple[Mask, ...] = (Mask(),)
    seeds: tuple[int, ...] = (0,)
    each_roi: bool = False


@dataclass(frozen=True)
class Chunk:
    """Requests of one subject that one worker draws together.

    Parameters
    ----------
    requests : tuple of Request
    sources : str
        Digest of the files they are drawn from.
    pictures : bool
        Whether the pictures are wanted too.
    """

    requests: tuple[Request, ...]
    sources: str
    pictures: bool = False

    @property
    def key(self) -> str:
        """Digest of what is in it, and the name of its partition; 32 hex characters."""
        return hashlib.sha256("\n".join((self.sources, *(request.key for request in self.requests))).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Drawn:
    """What a worker hands back.

    Parameters
    ----------
    rows : tuple of Row
    pictures : tuple of bytes
        PNG, in the order of the rows; empty unless they were wanted.
    """

    rows: tuple[Row, ...]
    pictures: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a sweep will take.

    Parameters
    ----------
    folder : Path
    total, done : int
        Pictures of the whole sweep, and those of them already there.
    chunks : tuple of Chunk
        What is left to draw.
    seconds : float
        Estimated for the rest from this machine's speed; loading the models is not in it.
    bytes_to_write : int
        At most.
    bytes_free : int
    like_here : bool
        Whether the workers are known to draw on what this machine draws on.
    """

    folder: Path
    total: int
    done: int
    chunks: tuple[Chunk, ...]
    seconds: float
    bytes_to_write: int
    bytes_free: int
    like_here: bool = True


def requests(sweep: Sweep) -> tuple[Request, ...]:
    """Return every picture of a sweep, known to be possible.

    Raises
    ------
    RequestError
        A subject, trial or ROI that is not there, or nothing to draw.
    WeightsMissing, WeightsInvalid
        A subject without a trained decoder, one of another subject or other voxels, or no generator.
    """
    dataset = open_dataset(sweep.base.dataset)
    source.locate(sweep.base.generator)
    found = tuple(request for subject in dict.fromkeys(sweep.subjects) for request in _of_subject(sweep, dataset, subject))
    if not found:
        msg = "a sweep needs at least one subject, trial, mask and seed"
        raise RequestError(msg)
    return found


def _of_subject(sweep: Sweep, dataset: Dataset, subject: str) -> Iterator[Request]:
    known = dataset.trials(subject).index
    absent = [trial for trial in sweep.trials if trial not in known]
    if absent:
        msg = f"{subject} has no trial {absent[0]} in {dataset.name}; its trials lie in {known.min()} to {known.max()}"
        raise RequestError(msg)
    atlas = dataset.atlas(subject)
    chosen = dict.fromkeys((*sweep.masks, *(lesions(atlas, sweep.base.mask) if sweep.each_roi else ())))
    for mask in chosen:
        masks.gains(mask, atlas)
        if mask.fill == "trial" and mask.fill_trial not in known:
            msg = f"{subject} has no trial {mask.fill_trial} in {dataset.name} to fill a mask with"
            raise RequestError(msg)
    base = replace(sweep.base, subject=subject, decoder=sweep.base.decoder.replace("{subject}", subject))
    folder = pipeline.decoder_folder(dataset, subject, base.decoder)
    if not folder.is_dir():
        msg = f"no trained decoder of {subject} at {folder}; train one with `havir train`, or name the decoders as FOLDER/{{subject}}"
        raise WeightsMissing(msg)
    read_manifest(folder).check(dataset, subject)
    settings = [replace(base.settings, seed=seed) for seed in dict.fromkeys(sweep.seeds)]
    for trial, mask, seeded in product(dict.fromkeys(sweep.trials), chosen, settings):
        yield replace(base, trial=trial, mask=mask, settings=seeded)


def lesions(atlas: Atlas, fill: Mask | None = None) -> tuple[Mask, ...]:
    """Return one lesion an ROI, in the atlas's order; what fills the silence is that of ``fill``."""
    names = dict.fromkeys(roi.name for roi in atlas.rois if roi.file != _WHOLE and not roi.voxels.all())
    return tuple(replace(fill or Mask(), mute=(name,)) for name in names)


def condition(mask: Mask) -> str:
    """Return a mask in words, all of it: masks that differ have different words."""
    if mask.is_empty:
        return "no mask"
    parts = [f"mute {', '.join(mask.mute)}"] * bool(mask.mute) + [f"keep {', '.join(mask.keep)}"] * bool(mask.keep)
    parts += [f"gain {', '.join(f'{name} {factor:g}' for name, factor in mask.gains)}"] * bool(mask.gains)
    fill = {"mean": "", "trial": f" (fill trial {mask.fill_trial})", "noise": f" (fill noise {mask.fill_seed})"}[mask.fill]
    return "; ".join(parts) + fill


def plan(wanted: Sequence[Request], folder: Path, where: Where = HERE, *, pictures: bool = False) -> Plan:
    """Compare what is wanted with what is there, cut the rest into chunks, and foretell time and disk.

    Raises
    ------
    OutputError
        The folder holds results of other weights or data, or rows without the pictures wanted now; or there is no room.
    DataInvalid
        A partition is damaged.
    """
    made_from = {subject: stamp(*store.sources(request)) for subject, request in {r.subject: r for r in wanted}.items()}
    there = _there(wanted, folder, made_from, pictures=pictures)
    todo = [request for request in wanted if request.key not in there]
    cost = pipeline.cost(wanted[0])
    like_here = where.like_here(cost.device)
    together = int(CHUNK_SECONDS / max(cost.seconds, 1e-6)) if like_here else UNKNOWN
    size = max(1, min(CHUNK_PICTURES, together, math.ceil(len(todo) / (4 * where.hands))))
    chunks = tuple(Chunk(tuple(some), made_from[some[0].subject], pictures) for some in _cut(todo, size))
    needed = len(todo) * (_ROW_BYTES + pictures * _picture_bytes(wanted[0]))
    free = shutil.disk_usage(folder).free
    if needed > free:
        msg = f"the sweep needs up to {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; make room, or leave the pictures out"
        raise OutputError(msg)
    seconds = len(todo) * cost.seconds / where.side_by_side(cost.device)
    return Plan(folder, len(wanted), len(wanted) - len(todo), chunks, seconds, needed, free, like_here=like_here)


def _there(wanted: Sequence[Request], folder: Path, made_from: dict[str, str], *, pictures: bool) -> set[str]:
    """The keys of the wanted requests whose rows are in the folder."""
    subjects = {request.key: request.subject for request in wanted}
    found = rows.read(folder, ("request", "sources"))
    found = found[found["request"].isin(subjects.keys())]
    for key, made in zip(found["request"], found["sources"], strict=True):
        if made != made_from[subjects[key]]:
            msg = f"{folder} holds pictures of {subjects[key]} that were made with other weights or data than today's; choose another folder with --out"
            raise OutputError(msg)
        if pictures and not _picture(folder, subjects[key], key).is_file():
            msg = f"{folder} was begun without --pictures; leave it out, or choose another folder with --out"
            raise OutputError(msg)
    return set(found["request"])


def _cut(todo: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for subject in dict.fromkeys(request.subject for request in todo):
        own = [request for request in todo if request.subject == subject]
        yield from (own[start : start + size] for start in range(0, len(own), size))


def _picture(folder: Path, subject: str, key: str) -> Path:
    return folder / PICTURES / subject / f"{key}.png"


def _picture_bytes(request: Request) -> int:
    """A picture that does not compress at all."""
    found = source.locate(request.generator)
    side = found.config("image_unet")["sample_size"] * 2 ** (len(found.config("vae")["block_out_channels"]) - 1)
    return 3 * int(side) ** 2


def draw(chunk: Chunk) -> Drawn:
    """Draw a chunk; what a worker does."""
    done = run_many(chunk.requests)
    return Drawn(tuple(_row(result, chunk.sources) for result in done), tuple(store.png(result) for result in done) if chunk.pictures else ())


def _row(result: Reconstruction, sources: str) -> Row:
    request = result.request
    return Row(
        request=request,
        sources=sources,
        nsd_id=pipeline.shown(open_dataset(request.dataset), request),
        condition=condition(request.mask),
        kind=result.kind,
        synthetic=result.synthetic,
        trained_on=result.trained_on,
        scores=result.scores,
        seconds=sum(spent for _, spent in result.seconds),
    )


def carry_out(made: Plan, where: Where = HERE, *, progress: Progress | None = None) -> None:
    """Draw what is left of a sweep; the folder is claimed by :func:`~havir_explorer.rows.alone`.

    Parameters
    ----------
    made : Plan
    where : Where
    progress : callable, optional
        Called with the share done and a phrase. What it raises stops the work; finished chunks stay.

    Raises
    ------
    HavirError
        As :func:`~havir_explorer.batch.run_many`, :func:`~havir_explorer.cluster.connected` and :func:`~havir_explorer.spread.each`.
    OutputError
        A partition or picture cannot be written.
    """
    if not made.chunks:
        return
    done, tell = made.done, progress or _silent
    with connected(where) as client:
        first = f"waiting for {where}" if where.slurm or where.scheduler else "loading the models"
        tell(done / made.total, f"{done:,} of {made.total:,} pictures, {first}")
        for place, drawn in each(draw, made.chunks, client):
            _keep(made.folder, made.chunks[place], drawn)
            done += len(made.chunks[place].requests)
            tell(done / made.total, f"{done:,} of {made.total:,} pictures")


def _keep(folder: Path, chunk: Chunk, drawn: Drawn) -> None:
    """Write a chunk: the pictures first, then the rows, which say that it is finished."""
    for request, content in zip(chunk.requests, drawn.pictures, strict=chunk.pictures):
        store.write_files({_picture(folder, request.subject, request.key): content}, make_folder=True)
    rows.append(folder, chunk.key, drawn.rows)


def _silent(_share: float, _phrase: str) -> None:
    """Tell nobody."""


def means(found: pd.DataFrame) -> pd.DataFrame:
    """Return one row a condition: the number of pictures, and the mean of every score and of its chance level."""
    columns = [name for score in measure.METRICS for name in (score, f"{score} chance") if score in found.columns]
    groups = found.groupby("condition", sort=False)
    return pd.concat([groups.size().rename("pictures"), groups[columns].mean()], axis=1)
