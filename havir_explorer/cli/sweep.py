"""``havir sweep``: many pictures at once, of subjects x trials x masks x seeds, on as many workers as there are."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from havir_explorer.cli.cluster import placed
from havir_explorer.cli.options import GeneratorOption, GuidanceOption, JsonOption, MixOption, SolverOption, StepsOption, StrengthOption, anywhere, given
from havir_explorer.cli.show import console, duration, emit, names, numbers, progress_bar, size, table
from havir_explorer.cluster import Where
from havir_explorer.errors import Cancelled, HavirError
from havir_explorer.records import Mask, Request, Settings

if TYPE_CHECKING:
    import pandas as pd

    from havir_explorer.sweep import Plan

_D = Request()


@placed
def sweep(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; what is in it already is not drawn again.")],
    where: Where,
    dataset: Annotated[str | None, typer.Option("--dataset", callback=anywhere, help=f"'demo', or the folder of a data set. [{_D.dataset}]")] = None,
    subjects: Annotated[str, typer.Option("--subjects", help="subj01,subj02 and so on.")] = _D.subject,
    trials: Annotated[str, typer.Option("--trials", help="0-based over the experiment: 0-9,20.")] = "0",
    seeds: Annotated[str, typer.Option("--seeds", help="Of the pictures' noise: 0-4.")] = "0",
    mute: Annotated[list[str] | None, typer.Option("--mute", help="ROIs to silence together, e.g. FFA-1,FFA-2; each --mute is one condition.")] = None,
    keep: Annotated[list[str] | None, typer.Option("--keep", help="ROIs to keep, all else silenced; each --keep is one condition.")] = None,
    each_roi: Annotated[bool, typer.Option("--each-roi", help="A lesion of every ROI that a subject has, one condition each.")] = False,
    whole: Annotated[bool, typer.Option("--whole/--no-whole", help="The unmasked response as a condition, to compare with.")] = True,
    fill: Annotated[str | None, typer.Option("--fill", help="What silenced voxels say: 'mean' or 'noise'. [mean]")] = None,
    repeats: Annotated[str | None, typer.Option("--repeats", help=f"'mean' over the image's presentations, or 'single'. [{_D.repeats}]")] = None,
    steps: StepsOption = None,
    strength: StrengthOption = None,
    guidance: GuidanceOption = None,
    mix: MixOption = None,
    solver: SolverOption = None,
    generator: GeneratorOption = None,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", callback=anywhere, help="Folder of the trained decoder, {subject} in it for each subject's name, or 'linear'. [as evaluate]"),
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Start from the settings of this picture or recipe; other options change them.")] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Keep the pictures too, as PNG with their recipes inside.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw and score many pictures. Run the same command again to go on after a stop."""
    from havir_explorer import rows, store
    from havir_explorer import sweep as sweeps

    start = store.read_recipe(recipe) if recipe else _D
    settings = replace(start.settings, **given(steps=steps, strength=strength, guidance=guidance, mix=mix, scheduler=solver))
    base = replace(start, settings=settings, **given(dataset=dataset, repeats=repeats, generator=generator, decoder=decoder))
    silence = replace(Mask(), **given(fill=fill))
    masks = _masks(mute or [], keep or [], silence, whole=whole)
    chosen = sweeps.Sweep(replace(base, mask=silence), names(subjects), numbers(trials, "--trials"), masks, numbers(seeds, "--seeds"), each_roi)
    with progress_bar("looking at the data"):
        wanted = sweeps.requests(chosen)
    began = time.perf_counter()
    with rows.alone(out):
        made = sweeps.plan(wanted, out, where, pictures=pictures)
        console(to_stderr=True).print(_statement(made, wanted[0].settings, where))
        _carry_out(made, where)
        found = rows.read(out)
    asked = {request.key: sweeps.condition(request.mask) for request in wanted}
    found = found[found["request"].isin(asked.keys())]
    facts = {"folder": str(out), "pictures": made.total, "drawn": made.total - made.done, "already_there": made.done, "where": str(where)}
    badges = {"synthetic": bool(found["synthetic"].all()), "seen_in_training": int(found["trained_on"].sum())}
    means = sweeps.means(found).loc[list(dict.fromkeys(asked.values()))]
    _report(means, {**facts, **badges, "wall_seconds": round(time.perf_counter() - began, 2)}, as_json=as_json)


def _masks(mute: list[str], keep: list[str], silence: Mask, *, whole: bool) -> tuple[Mask, ...]:
    chosen = [Mask()] if whole else []
    return (*chosen, *(replace(silence, mute=names(text)) for text in mute), *(replace(silence, keep=names(text)) for text in keep))


def _carry_out(made: Plan, where: Where) -> None:
    from havir_explorer import rows
    from havir_explorer import sweep as sweeps

    try:
        with progress_bar(f"drawing in {where}") as show:
            sweeps.carry_out(made, where, progress=show)
    except (KeyboardInterrupt, Cancelled, HavirError):
        if any((made.folder / rows.ROWS).glob("*/*.parquet")):
            console(to_stderr=True).print(f"what is finished is in {made.folder}; the same command goes on from there")
        raise


def _statement(made: Plan, settings: Settings, where: Where) -> str:
    """Say what will be drawn, how long it should take and what it will write."""
    left = made.total - made.done
    already = f", {made.done:,} of them already there" if made.done else ""
    if not left:
        return f"all {made.total:,} pictures are in {made.folder} already"
    many = f"{made.total:,} picture{'s' * (made.total > 1)} of {settings.steps} step{'s' * (settings.steps > 1)}{already}"
    room = f"writes at most {size(made.bytes_to_write)} to {made.folder} ({size(made.bytes_free)} free)"
    assumed = "" if made.like_here else " if each worker were as fast as this machine"
    return f"{many}; {left:,} to draw in {where}, about {duration(made.seconds)}{assumed}; {room}"


def _report(means: pd.DataFrame, facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit({**facts, "conditions": means.astype(object).where(means.notna(), None).to_dict(orient="index")})
        return
    scores = [name for name in means.columns if f"{name} chance" in means.columns]
    cells = [[str(name), f"{row['pictures']:.0f}", *(f"{row[s]:.3f} ({row[f'{s} chance']:.3f})" for s in scores)] for name, row in means.iterrows()]
    table(f"{facts['folder']}: mean over pictures (chance); CLIP is the generator's own tower", ("condition", "pictures", *scores), cells)
    if facts["seen_in_training"]:
        console().print(f"{facts['seen_in_training']:,} of them show a stimulus that the decoder was trained on: these flatter")
    console().print(f"{facts['drawn']:,} drawn, {facts['already_there']:,} already there, {facts['wall_seconds']:.0f} s in {facts['where']}")
    console().print(f"a row a picture in {facts['folder']}/rows: read them with havir_explorer.rows.read, or pandas.read_parquet")
