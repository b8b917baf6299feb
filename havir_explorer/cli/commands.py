"""The ``havir`` command: every sub-command is a few lines over the functions that a script or the app calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from havir_explorer import __version__
from havir_explorer.cli import diffuse, evaluate, explore, export, fetch, networks, prepare, sweep, targets, train, weights
from havir_explorer.cli.cluster import Placed
from havir_explorer.cli.options import (
    DatasetOption,
    DecoderOption,
    GeneratorOption,
    GuidanceOption,
    JsonOption,
    MixOption,
    SchedulerOption,
    StepsOption,
    StrengthOption,
    SubjectOption,
    anywhere,
    given,
)
from havir_explorer.cli.show import OURS, can_write, console, emit, guarded, names, one_of, open_more_files, quiet, warn_in_words, write
from havir_explorer.errors import DataMissing, RequestError, nearest
from havir_explorer.records import Branch, Request

if TYPE_CHECKING:
    from havir_explorer.data.dataset import Dataset
    from havir_explorer.decode.decoders import Decoder

_ORDER = ("demo", "doctor", "fetch", "prepare", "targets", "train", "evaluate", "explore")  # the way from the bucket to the app; the rest as registered


class _InOrder(TyperGroup):
    """Lists the commands in the order in which they are used."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - click's context, which typer brings along
        known = super().list_commands(ctx)
        return [*_ORDER, *(name for name in known if name not in _ORDER)]


app = typer.Typer(
    name="havir",
    cls=_InOrder,
    help="See what a brain response looks like: reconstructions, ROI masks and the cortex that made them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(weights.app)
app.add_typer(networks.app)

_D = Request()  # every default on the command line is the record's own
_BRANCHES: dict[Branch, str] = {"structural": "Structural Generator", "semantic": "Semantic Extractor"}


def _version(asked: bool) -> None:
    if asked:
        console().print(f"havir_explorer {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    *,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def demo(
    *,
    build_only: Annotated[bool, typer.Option("--build-only", help="Build the teaching world if missing and stop.")] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Serve and print the address instead of opening a browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Open the first notebook in JupyterLab. The teaching world is built where it is missing."""
    from havir_explorer.cli.demo import build, notebook
    from havir_explorer.cli.notebook import serve

    built = build()
    file = None if build_only else notebook()
    if as_json:
        emit({**asdict(built), "notebook": file and str(file)})
    else:
        console().print(f"teaching world: {built.folder} ({f'built in {built.seconds:.0f} s' if built.fresh else 'already there'})")
    if file:
        raise typer.Exit(serve(file, browser=not no_browser))


@app.command()
def reconstruct(
    *,
    out: Annotated[Path, typer.Option("--out", help="PNG to write; its recipe goes inside it and beside it as JSON.")] = Path("reconstruction.png"),
    dataset: Annotated[str | None, typer.Option("--dataset", callback=anywhere, help=f"'demo', or the folder of a data set. [{_D.dataset}]")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help=f"[{_D.subject}]")] = None,
    trial: Annotated[int | None, typer.Option("--trial", help=f"0-based over the experiment. [{_D.trial}]")] = None,
    repeats: Annotated[str | None, typer.Option("--repeats", help=f"'mean' over the image's presentations, or 'single'. [{_D.repeats}]")] = None,
    mute: Annotated[str | None, typer.Option("--mute", help="ROIs to silence, e.g. FFA-1,FFA-2 or rh.V1.")] = None,
    keep: Annotated[str | None, typer.Option("--keep", help="ROIs to keep; everything else is silenced.")] = None,
    fill: Annotated[str | None, typer.Option("--fill", help=f"What silenced voxels say: 'mean', 'trial' or 'noise'. [{_D.mask.fill}]")] = None,
    fill_trial: Annotated[int | None, typer.Option("--fill-trial", help="The trial of --fill trial.")] = None,
    fill_seed: Annotated[int | None, typer.Option("--fill-seed", help="The seed of --fill noise.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help=f"Of the picture's noise. [{_D.settings.seed}]")] = None,
    steps: StepsOption = None,
    strength: StrengthOption = None,
    guidance: GuidanceOption = None,
    mix: MixOption = None,
    scheduler: SchedulerOption = None,
    guidance_start: Annotated[float | None, typer.Option("--guidance-start", help="Guide from this fraction of the steps. [0]")] = None,
    guidance_stop: Annotated[float | None, typer.Option("--guidance-stop", help="Guide up to this fraction of the steps. [1]")] = None,
    convention: Annotated[str | None, typer.Option("--convention", help="Whose habits: havir, brain-diffuser or mindeye. [havir]")] = None,
    generator: GeneratorOption = None,
    decoder: DecoderOption = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Start from this picture's or file's recipe; other options change it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Redraw what a subject saw from the brain response to it."""
    from havir_explorer import store
    from havir_explorer.cli.reconstruct import as_dict, drawn_or_remembered, remember, show

    base = store.read_recipe(recipe) if recipe else Request()
    mask = replace(base.mask, **given(fill=fill, fill_trial=fill_trial, fill_seed=fill_seed, **_lists(mute=mute, keep=keep)))
    numbers = given(seed=seed, steps=steps, strength=strength, guidance=guidance, mix=mix, guidance_start=guidance_start, guidance_stop=guidance_stop)
    settings = replace(base.settings, **numbers, **given(scheduler=scheduler, convention=convention))
    chosen = given(dataset=dataset, subject=subject, trial=trial, repeats=repeats, generator=generator, decoder=decoder)
    request = replace(base, mask=mask, settings=settings, **chosen)
    store.check_sidecar(can_write(out, ".png"))
    result, cached = drawn_or_remembered(request, out)
    store.write_png(result, out)
    if not cached:
        remember(result)
    if as_json:
        emit(as_dict(result, out, cached=cached))
    else:
        show(result, out, cached=cached)


def _lists(**options: str | None) -> dict[str, tuple[str, ...] | None]:
    return {name: None if text is None else names(text) for name, text in options.items()}


app.command()(diffuse.diffuse)
app.command(cls=Placed)(evaluate.evaluate)
app.command()(train.train)


@app.command("map")
def map_(
    *,
    out: Annotated[Path, typer.Option("--out", help="PNG, PDF or SVG to draw.")] = Path("map.png"),
    dataset: DatasetOption = _D.dataset,
    subject: SubjectOption = _D.subject,
    branch: Annotated[str, typer.Option("--branch", help="structural or semantic.")] = "structural",
    mesh: Annotated[str, typer.Option("--mesh", help="native, the subject's own surfaces, or fsaverage5. [native where they are here]")] = "",
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the ROI table here.")] = None,
    decoder: DecoderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw which cortex feeds a branch."""
    from havir_explorer import attribute
    from havir_explorer.data import open_dataset
    from havir_explorer.data.surface import NATIVE
    from havir_explorer.draw import native
    from havir_explorer.draw.cortex import cortical_map
    from havir_explorer.draw.figure import figure
    from havir_explorer.draw.mesh import MESH

    which = _branch(branch)
    can_write(out, ".png", ".pdf", ".svg")
    if csv is not None:
        can_write(csv, ".csv")
    chosen = one_of("--mesh", mesh, (NATIVE, MESH)) if mesh else ""
    tree = open_dataset(dataset)
    own = native.own_cortex(tree, subject) if chosen != MESH else None
    if chosen == NATIVE and own is None:
        msg = f"{tree.name} at {tree.root} holds no inflated surfaces of {subject}; get them with havir fetch nsd --extras surfaces, or take --mesh {MESH}"
        raise DataMissing(msg)
    contribution = attribute.contribution(_trained(tree, subject, decoder), which)
    atlas, surface = tree.atlas(subject), tree.surface(subject, MESH)
    rois = attribute.roi_table(contribution, atlas, tree.ncsnr(subject), attribute.tested_repeats(tree.trials(subject)))
    title, unit = f"{_BRANCHES[which]} – {subject}, {tree.name}", "percentile of weight norm"
    if own:
        drawn = native.figure(contribution.values, own, atlas, title=title, unit=unit, synthetic=tree.synthetic)
    else:
        drawn = figure(cortical_map(contribution.values, surface), surface, atlas, title=title, unit=unit, synthetic=tree.synthetic)
    write(out, drawn.savefig)
    if csv is not None:
        write(csv, lambda part: rois.to_csv(part, index=False))
    if as_json:
        written = {"map": str(out), "csv": str(csv) if csv else None}
        emit({**written, "branch": which, "method": contribution.method, "rois": json.loads(rois.to_json(orient="records"))})
    else:
        console().print(f"wrote {out}{f' and {csv}' if csv else ''}")


def _trained(tree: Dataset, subject: str, folder: str | None) -> Decoder:
    """The subject's decoder alone: a map needs no generator."""
    from havir_explorer.decode import decoders
    from havir_explorer.pipeline import decoder_folder

    tree.trials(subject)  # says which subjects there are when this is none of them
    model = decoders.load(decoder_folder(tree, subject, folder or ""))
    model.manifest.check(tree, subject)
    return model


def _branch(name: str) -> Branch:
    for known in _BRANCHES:
        if name == known:
            return known
    msg = f"branch must be 'structural' or 'semantic'; got {name!r}; {nearest(name, _BRANCHES, 1)}"
    raise RequestError(msg)


@app.command()
def doctor(*, as_json: JsonOption = False) -> None:
    """Say what works here, and what to do about what does not."""
    from havir_explorer.cli.doctor import examine, show, usable

    checks = examine()
    if as_json:
        emit({"usable": usable(checks), "checks": [asdict(check) for check in checks]})
    else:
        show(checks)
    if not usable(checks):
        raise typer.Exit(OURS)


app.command()(explore.explore)
app.command()(prepare.prepare)
app.command(cls=Placed)(sweep.sweep)
app.command()(targets.targets)
app.add_typer(fetch.app, name="fetch")
app.add_typer(export.app, name="export")


def command(arguments: Sequence[str]) -> int:
    """Run ``havir`` with these arguments and return its exit code; never raises, never exits.

    Parameters
    ----------
    arguments : sequence of str
        Without the program's name.
    """
    return guarded(lambda: int(app(args=list(arguments), prog_name="havir") or 0))


def main() -> None:
    """Entry point of the console command."""
    quiet()
    warn_in_words()
    open_more_files()
    sys.exit(command(sys.argv[1:]))
