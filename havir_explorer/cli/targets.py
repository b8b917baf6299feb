"""``havir targets``: the pictures and captions in use as a generator encodes them, into a store for every subject's training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from havir_explorer.cli.options import DatasetOption, GeneratorOption, JsonOption
from havir_explorer.cli.show import console, emit, names, one_of, progress_bar
from havir_explorer.errors import RequestError, nearest
from havir_explorer.records import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from havir_explorer.data.dataset import Dataset
    from havir_explorer.records import IntArray

_D = Request()


def targets(
    *,
    dataset: DatasetOption = _D.dataset,
    subject: Annotated[str, typer.Option("--subject", help="Whose pictures, e.g. subj01,subj02; all subjects when left out.")] = "",
    generator: GeneratorOption = None,
    captions: Annotated[str | None, typer.Option("--captions", help="Text target: mean or first caption. [mean; first for the teaching world]")] = None,
    images: Annotated[str, typer.Option("--images", help="Image tokens: of the stimulus, or synthesised from its captions by the generator.")] = "stimulus",
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the store. [the cache folder]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode what decoders are trained towards. Pictures and captions, once for all subjects; run it again to go on after a stop."""
    from havir_explorer import encoding
    from havir_explorer.data import open_dataset
    from havir_explorer.decode.targets import CaptionTarget, ImageSource

    rule = None if captions is None else one_of("--captions", captions, get_args(CaptionTarget))
    source = one_of("--images", images, get_args(ImageSource))
    tree = open_dataset(dataset)
    ids = _seen(tree, names(subject) or tree.subjects())
    with progress_bar("looking at targets") as show:
        work = encoding.prepare(tree, ids, generator or _D.generator, captions=rule, images=source, folder=out, progress=show, on_notice=_notice)
    console(to_stderr=True).print(str(work))
    began = time.perf_counter()
    with progress_bar("encoding pictures") as show:
        store = encoding.make(work, progress=show)
    seconds = round(time.perf_counter() - began, 2)
    if not as_json:
        console().print(f"targets of {len(store):,} pictures are ready in {store.folder} ({len(work.plan.pictures):,} encoded in {seconds:.0f} s)")
        given = (("generator", generator), ("captions", captions), ("images", None if images == "stimulus" else images), ("targets", out))
        shown = "".join(f" --{name} {value}" for name, value in given if value is not None)
        console().print(f"next: havir train --dataset {dataset} --subject {(names(subject) or tree.subjects())[0]}{shown}")
        return
    what = {"captions": store.caption_target, "images": store.image_source, "generator": store.manifest.generator_name, **store.shapes._asdict()}
    counts = {"pictures": len(store), "encoded": len(work.plan.pictures), "mended_shards": list(work.plan.damaged)}
    emit({"store": str(store.folder), **what, **counts, "bytes_written": work.plan.bytes_to_write, "foretold_seconds": work.seconds, "wall_seconds": seconds})


def _seen(tree: Dataset, subjects: Sequence[str]) -> IntArray:
    """Every picture that these subjects saw."""
    import numpy as np

    for subject in subjects:
        if subject not in tree.subjects():
            msg = f"{tree.name} has no subject {subject!r}; {nearest(subject, tree.subjects())}"
            raise RequestError(msg)
    return np.unique(np.concatenate([tree.trials(subject)["nsd_id"].to_numpy(dtype=np.int64) for subject in subjects]))


def _notice(sentence: str) -> None:
    console(to_stderr=True).print(sentence)
