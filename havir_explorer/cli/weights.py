"""``havir weights``: download a Versatile Diffusion, check it, and write it again with only what is used."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from havir_explorer.cli.options import JsonOption
from havir_explorer.cli.show import console, emit, progress_bar, table
from havir_explorer.errors import WeightsInvalid

if TYPE_CHECKING:
    from havir_explorer.diffuse.checkpoint import PartReport

app = typer.Typer(name="weights", help="Download, check and compact a Versatile Diffusion.", no_args_is_help=True, rich_markup_mode=None)

VariantOption = Annotated[str | None, typer.Option("--variant", help="Weight files with this in their names, e.g. fp16.")]
FolderArgument = Annotated[str, typer.Argument(help="Folder of a checkpoint, a hub id that was fetched, or 'demo'.")]


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Hub id, as owner/name or owner/name@revision.")] = "shi-labs/versatile-diffusion",
    *,
    to: Annotated[Path | None, typer.Option("--to", help="Folder to write; one in the cache folder when left out, found again by the id.")] = None,
    variant: VariantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download the files that are used. Run it again to go on after an interruption."""
    from havir_explorer.diffuse import checkpoint, source
    from havir_explorer.diffuse import fetch as fetching

    folder = to or source.fetched_folder(name)
    plan = fetching.plan(name, variant)
    console(to_stderr=True).print(f"{name}: {len(plan.files)} files, {plan.bytes / 1e9:.2f} GB, to {folder}")
    with progress_bar(f"fetching {name}") as show:
        fetching.download(plan, folder, show)
    _stop_at_faults(checkpoint.examine(source.Source(name if to is None else str(to), folder, variant), checksums=False))
    if as_json:
        emit({"folder": str(folder), "commit": plan.commit, "bytes": plan.bytes, "files": [file.name for file in plan.files]})
    else:
        console().print(f"wrote {folder}: use it with --generator {name if to is None else to}")


@app.command()
def check(
    folder: FolderArgument,
    *,
    variant: VariantOption = None,
    checksums: Annotated[bool, typer.Option("--checksums/--no-checksums", help="Read every file to its end.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Check every part. Is it there, its number format, its shapes against what the code needs, its checksum."""
    from havir_explorer.diffuse import checkpoint, source

    found = source.locate(folder, variant)
    with progress_bar("checking") as show:
        reports = checkpoint.examine(found, checksums=checksums, progress=show)
    if as_json:
        emit({"folder": str(found.root), "usable": not any(report.faults for report in reports), "parts": [asdict(report) for report in reports]})
    else:
        rows = [
            (r.part, r.state, r.dtype, f"{r.used} of {r.tensors}" if r.tensors else "", f"{r.bytes / 1e6:,.1f}" if r.bytes else "", r.sha256[:8])
            for r in reports
        ]
        table(f"Versatile Diffusion at {found.root}; used of the tensors in each file", ("part", "state", "format", "used", "MB", "sha256"), rows)
    _stop_at_faults(reports)


@app.command()
def compact(
    folder: FolderArgument,
    *,
    to: Annotated[Path, typer.Option("--to", help="New folder to write.")],
    dtype: Annotated[str, typer.Option("--dtype", help="float32, float16 or bfloat16.")] = "float16",
    towers: Annotated[bool, typer.Option("--towers/--no-towers", help="Keep the CLIP towers, for training targets and CLIP scores.")] = False,
    variant: VariantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one folder with only the used parts. It draws the same pictures."""
    from havir_explorer.diffuse import compact as compacting
    from havir_explorer.diffuse import device, source

    found, wanted = source.locate(folder, variant), device.dtype(dtype)
    with progress_bar("compacting") as show:
        done = compacting.compact(found, to, dtype=wanted, towers=towers, progress=show)
    before, after = dict(done.before), dict(done.after)
    if as_json:
        emit({"folder": str(to), "before": before, "after": after, "bytes_before": sum(before.values()), "bytes_after": sum(after.values())})
        return
    rows = [(part, *(f"{size[part] / 1e6:.1f}" if part in size else "–" for size in (before, after))) for part in {**before, **after}]
    total = ("all", *(f"{sum(size.values()) / 1e6:.1f}" for size in (before, after)))
    table(f"wrote {to}", ("part", "MB before", "MB after"), [*rows, total])


def _stop_at_faults(reports: tuple[PartReport, ...]) -> None:
    faults = [fault for report in reports for fault in report.faults]
    for fault in faults[:-1]:
        console(to_stderr=True).print(f"havir: {fault}")
    if faults:
        raise WeightsInvalid(faults[-1])
