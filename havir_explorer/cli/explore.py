"""``havir explore``: the app on one's own data, with one's own decoder and generator, in a notebook made for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from havir_explorer.cli.notebook import keep_or_write, serve
from havir_explorer.cli.options import DatasetOption, JsonOption
from havir_explorer.cli.show import can_write, console, emit
from havir_explorer.errors import RequestError, nearest
from havir_explorer.records import Request

_D = Request()
_CELL = """from havir_explorer import Explorer, Request

app = Explorer({dataset!r}, request={request})
app"""


def explore(
    *,
    dataset: DatasetOption = _D.dataset,
    subject: Annotated[str, typer.Option("--subject", help="Where to start; the first subject when left out.")] = "",
    generator: Annotated[str, typer.Option("--generator", help="Folder or cached hub id of a Versatile Diffusion, or 'demo'.")] = _D.generator,
    decoder: Annotated[str, typer.Option("--decoder", help="Folder of a trained decoder; the one `havir train` wrote when left out.")] = _D.decoder,
    notebook: Annotated[Path | None, typer.Option("--notebook", help="The notebook to make or open. [explore_DATASET_SUBJECT.ipynb here]")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Serve and print the address instead of opening a browser.")] = False,
    write_only: Annotated[bool, typer.Option("--write-only", help="Write the notebook and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Open the app on your own data in JupyterLab. Data, decoder and generator are looked at first."""
    request = start(dataset, subject, generator, decoder)
    expected = cost(request)
    file = (notebook or Path(_file_name(request))).absolute()
    if not file.exists():
        can_write(file, ".ipynb")
    fresh = keep_or_write(file, cell(request))
    if as_json:
        emit({"notebook": str(file), "fresh": fresh, "subject": request.subject, "trial": request.trial, "cost": expected})
    else:
        console().print(f"{'wrote' if fresh else 'opens as you left it:'} {file}; {expected}{f'; open it with: jupyter lab {file}' if write_only else ''}")
    if not write_only:
        raise typer.Exit(serve(file, browser=not no_browser))


def start(dataset: str, subject: str, generator: str, decoder: str) -> Request:
    """Return the app's first request: the subject's first shared test picture, or its first trial where nothing is shared.

    Raises
    ------
    HavirError
        The data set cannot be read, has no such subject, or there is no decoder for it.
    """
    from havir_explorer.data import open_dataset
    from havir_explorer.decode.files import read_manifest
    from havir_explorer.pipeline import LINEAR, decoder_folder

    source = dataset if dataset == _D.dataset else str(Path(dataset).absolute())
    tree = open_dataset(source)
    chosen = subject or tree.subjects()[0]
    if chosen not in tree.subjects():
        msg = f"{tree.name} has no subject {chosen!r}; {nearest(chosen, tree.subjects())}"
        raise RequestError(msg)
    named = decoder or ""
    folder = named if named in {"", LINEAR} else str(Path(named).absolute())
    read_manifest(decoder_folder(tree, chosen, folder)).check(tree, chosen)
    table = tree.trials(chosen)
    shared = table.index[table["shared"]]
    model = str(Path(generator).absolute()) if Path(generator).is_dir() else generator
    return Request(dataset=source, subject=chosen, trial=int(shared[0] if len(shared) else table.index[0]), generator=model, decoder=folder)


def cost(request: Request) -> str:
    """Return what one picture will cost, in words; this finds an absent or damaged generator too."""
    from havir_explorer import pipeline

    return str(pipeline.cost(request))


def cell(request: Request) -> str:
    """Return the notebook's cell."""
    shown = {"subject": request.subject, "trial": request.trial, "generator": request.generator, "decoder": request.decoder}
    own = ", ".join(f"{name}={value!r}" for name, value in shown.items() if value != getattr(_D, name) or name in {"subject", "trial"})
    return _CELL.format(dataset=request.dataset, request=f"Request({own})")


def _file_name(request: Request) -> str:
    name = re.sub(r"[^\w.-]+", "_", Path(request.dataset).name)
    return f"explore_{name}_{request.subject}.ipynb"
