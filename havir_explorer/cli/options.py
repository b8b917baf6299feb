"""Options that several commands share: one name, one sentence of help."""

from __future__ import annotations

from typing import Annotated

import typer

DatasetOption = Annotated[str, typer.Option("--dataset", help="'demo', or the folder of an NSD tree.")]
SubjectOption = Annotated[str, typer.Option("--subject", help="subj01 and so on.")]
DecoderOption = Annotated[str | None, typer.Option("--decoder", help="Folder of a trained HAVIR; the shipped one when left out.")]
GeneratorOption = Annotated[str | None, typer.Option("--generator", help="Folder or cached hub id of a Versatile Diffusion, or 'demo'.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
