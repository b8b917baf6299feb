"""Options that several commands share: one name, one sentence of help."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from havir_explorer.records import Settings

_D = Settings()
_WORDS = ("", "demo", "linear")


def anywhere(name: str | None) -> str | None:
    """Return a folder's name as it holds in every working directory, and the same however it was typed; what is no folder stays as it is.

    A request's key, a recipe and a worker elsewhere need the folder, not the way to it from here. A data set's ``#convention`` and a decoder's
    ``{subject}`` stay.
    """
    if name is None or name in _WORDS:
        return name
    whole = "{subject}" in name or Path(name).expanduser().is_dir()
    place, mark, convention = (name, "", "") if whole else name.rpartition("#")
    if place in _WORDS or not (whole or Path(place).expanduser().is_dir()):
        return name
    return os.path.normpath(Path(place).expanduser().absolute()) + mark + convention


DatasetOption = Annotated[str, typer.Option("--dataset", callback=anywhere, help="'demo', or the folder of a data set.")]
SubjectOption = Annotated[str, typer.Option("--subject", help="subj01 and so on.")]
DecoderOption = Annotated[
    str | None, typer.Option("--decoder", callback=anywhere, help="Folder of a trained decoder, or 'linear'. [the shipped one, or what `havir train` wrote]")
]
GeneratorOption = Annotated[
    str | None, typer.Option("--generator", callback=anywhere, help="Folder or cached hub id of a Versatile Diffusion, or 'demo'. [demo]")
]
StepsOption = Annotated[int | None, typer.Option("--steps", help=f"Solver steps of the full schedule. [{_D.steps}]")]
StrengthOption = Annotated[float | None, typer.Option("--strength", help=f"0 decoded latents only, 1 pure noise. [{_D.strength}]")]
GuidanceOption = Annotated[float | None, typer.Option("--guidance", help=f"Classifier-free guidance scale. [{_D.guidance}]")]
MixOption = Annotated[float | None, typer.Option("--mix", help=f"0 image embedding only, 1 text embedding only. [{_D.mix}]")]
_SOLVERS = f"Which takes the steps: karras, ddim, unipc or dpmsolver++. [{_D.scheduler}]"
SchedulerOption = Annotated[str | None, typer.Option("--scheduler", help=_SOLVERS)]
SolverOption = Annotated[str | None, typer.Option("--solver", help=_SOLVERS)]  # where --scheduler is Dask's
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def given(**options: Any) -> dict[str, Any]:  # noqa: ANN401 - each value has its option's type
    """Return what the user typed; the rest keeps the recipe's or the record's value."""
    return {name: value for name, value in options.items() if value is not None}
