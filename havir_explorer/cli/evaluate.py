"""``havir evaluate``: draw the test images under every condition, score them, and print or write the table."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from havir_explorer.cli.cluster import placed
from havir_explorer.cli.options import (
    DatasetOption,
    DecoderOption,
    GeneratorOption,
    GuidanceOption,
    JsonOption,
    MixOption,
    SolverOption,
    StepsOption,
    StrengthOption,
    SubjectOption,
    given,
)
from havir_explorer.cli.show import can_write, console, duration, emit, make_folder, names, progress_bar, size, table, write
from havir_explorer.cluster import Where
from havir_explorer.errors import Cancelled, HavirError, OutputError, RequestError
from havir_explorer.records import Repeats, Request

if TYPE_CHECKING:
    from havir_explorer.evaluate import Evaluation, Expected
    from havir_explorer.measure import Tower

_D = Request()


@placed
def evaluate(
    *,
    where: Where,
    dataset: DatasetOption = _D.dataset,
    subject: SubjectOption = _D.subject,
    limit: Annotated[int | None, typer.Option("--limit", help="At most this many test images. [all]")] = None,
    split: Annotated[str, typer.Option("--split", help="shared1000, shared982 or special515; every shared image the subject saw when left out.")] = "",
    repeats: Annotated[str, typer.Option("--repeats", help="'mean' over an image's presentations, or 'single': the first alone.")] = "mean",
    conditions: Annotated[str, typer.Option("--conditions", help="Some of them, e.g. full,no_brain, or a group: ablation, controls, all. [all]")] = "",
    protocol: Annotated[
        str, typer.Option("--protocol", help="Whose scores: own, me2 (MindEye2), bd (Brain-Diffuser) or minddiffuser. [own for the teaching world; me2]")
    ] = "",
    networks: Annotated[Path | None, typer.Option("--networks", help="Folder of the feature networks' checkpoints. [torch's hub folder]")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the first picture's noise; each next has the next.")] = 0,
    steps: StepsOption = None,
    strength: StrengthOption = None,
    guidance: GuidanceOption = None,
    mix: MixOption = None,
    solver: SolverOption = None,
    generator: GeneratorOption = None,
    decoder: DecoderOption = None,
    linear: Annotated[str, typer.Option("--linear", help="Folder of a linear decoder, for the condition linear.")] = "",
    clip: Annotated[str, typer.Option("--clip", help="OpenCLIP model for protocol own, e.g. ViT-L-14; the generator's own tower when left out.")] = "",
    clip_weights: Annotated[str, typer.Option("--clip-weights", help="Its checkpoint file, or one of its tags, e.g. openai.")] = "",
    as_table: Annotated[str, typer.Option("--table", help="Write the table as md, csv, latex or json. [what --out ends in]")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="File for the table: .md, .csv, .tex or .json.")] = None,
    rows: Annotated[Path | None, typer.Option("--rows", help="Keep every picture's scores here: .parquet.")] = None,
    keep: Annotated[Path | None, typer.Option("--keep", help="Keep the drawn pictures here for good. [until the table is made]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score reconstructions of the test images. Controls show what the brain added."""
    from havir_explorer import evaluate as scoring
    from havir_explorer.evaluate import formats
    from havir_explorer.evaluate.sharing import drawing

    settings = replace(_D.settings, **given(steps=steps, strength=strength, guidance=guidance, mix=mix, scheduler=solver))
    arguments = (dataset, subject, limit, split, repeats, conditions, seed, settings, generator, decoder, linear)
    written, kept = _format(as_table, out), make_folder(keep, "--keep") if keep else _meanwhile(arguments)
    if rows is not None:
        can_write(rows, ".parquet")
    tower = _tower(clip, clip_weights, protocol)
    with _going_on(kept), drawing(where) as drawer, progress_bar(f"evaluating {subject}") as show:
        found = scoring.evaluate(
            dataset,
            subject,
            conditions=names(conditions),
            limit=limit,
            seed=seed,
            settings=settings,
            progress=show,
            generator=generator or _D.generator,
            decoder=decoder or _D.decoder,
            linear=linear,
            clip=tower,
            protocol=protocol or ("own" if tower else ""),
            networks=networks,
            split=split,
            repeats=_repeats(repeats),
            drawer=scoring.kept(kept, _stamped, drawer, on_fault=None if keep else _not_kept()),
            on_cost=lambda cost: _notice(_statement(cost, where, kept)),
        )
    if rows is not None:
        write(rows, lambda part: formats.write_rows(found, part))
    _print(found, written, out, as_json=as_json)
    if keep is None and not found.missing:
        shutil.rmtree(kept, ignore_errors=True)
    elif keep is None:
        _notice(f"the pictures stay in {kept} for the missing scores: once their networks are here, the same command draws none of them again")


def _meanwhile(arguments: tuple[object, ...]) -> Path:
    """Where the drawn pictures are until the table is made, so that the same command goes on after a stop."""
    from havir_explorer import paths

    return paths.cache_folder() / "evaluations" / hashlib.sha256(repr(arguments).encode()).hexdigest()[:16]


@contextmanager
def _going_on(kept: Path) -> Iterator[None]:
    """Say after a stop how to go on."""
    try:
        yield
    except (KeyboardInterrupt, Cancelled, HavirError):
        if any(kept.glob("*.npy")):
            _notice(f"what is drawn is in {kept}; the same command goes on from there")
        raise


def _not_kept() -> Callable[[OutputError], None]:
    """Say once that a picture could not be kept: the table can be made without."""
    said: list[OutputError] = []

    def say(fault: OutputError) -> None:
        if not said:
            _notice(f"{fault}; this evaluation goes on, but after a stop it would begin anew")
        said.append(fault)

    return say


def _statement(cost: Expected, where: Where, kept: Path) -> str:
    """Say what will be drawn, how long it should take and what it will write."""
    seconds = duration(cost.seconds / where.side_by_side(cost.device))
    assumed = "" if where.like_here(cost.device) else " if each worker were as fast as this machine"
    many = f"{cost.images:,} test pictures under {cost.conditions} condition{'s' * (cost.conditions > 1)}"
    absent = f"\nwithout {', '.join(cost.lacking)}, whose networks are not on this machine: havir networks list" if cost.lacking else ""
    known = ", going on with what is there" if kept.is_dir() else ""
    return f"{many}: {cost.images * cost.conditions:,} to draw in {where}, about {seconds}{assumed}; kept in {kept}{known} (at most {size(cost.bytes)}){absent}"


def _notice(sentence: str) -> None:
    console(to_stderr=True).print(sentence)


def _print(found: Evaluation, written: str, out: Path | None, *, as_json: bool) -> None:
    from havir_explorer.evaluate import formats

    if out is not None:
        text = formats.format_(written)(found)
        write(out, lambda part: part.write_text(text, encoding="utf-8"))
    if as_json:
        emit(found.as_dict())
    elif written and out is None:
        typer.echo(formats.format_(written)(found), nl=False)
    else:
        header, *body = formats.grid(found)
        table(formats.heading(found), header, body)
        for line in formats.lacking(found):
            console().print(line)


def _format(asked: str, out: Path | None) -> str:
    """How the table is written, known before anything is drawn; empty for the terminal."""
    from havir_explorer.evaluate.formats import ENDINGS, format_

    if out is not None:
        can_write(out, *ENDINGS) if not asked else can_write(out, out.suffix.lower())
    name = asked or (ENDINGS[out.suffix.lower()] if out else "")
    if name:
        format_(name)
    return name


def _stamped(request: Request) -> str:
    """A digest of the files a request's pictures are drawn from."""
    from havir_explorer import paths, store

    return paths.stamp(*store.sources(request))


def _repeats(name: str) -> Repeats:
    if name == "mean":
        return "mean"
    if name == "single":
        return "single"
    msg = f"--repeats takes mean or single; got {name!r}"
    raise RequestError(msg)


def _tower(model: str, weights: str, protocol: str) -> Tower | None:
    """The feature network asked for; None is the generator's own."""
    if bool(model) != bool(weights):
        msg = f"--clip and --clip-weights go together: the model and its checkpoint; got {model or 'no model'} and {weights or 'no checkpoint'}"
        raise RequestError(msg)
    if not model:
        return None
    if protocol not in {"", "own"}:
        msg = f"--clip is for protocol own; the protocol {protocol} has its own CLIP: leave --clip out"
        raise RequestError(msg)
    from havir_explorer.measure import open_clip_tower

    return open_clip_tower(model, weights)
