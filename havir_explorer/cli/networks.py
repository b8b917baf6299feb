"""``havir networks``: which feature networks of the literature's scores are on this machine, and how the others come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from havir_explorer.cli.options import JsonOption
from havir_explorer.cli.show import console, emit, progress_bar, table

app = typer.Typer(name="networks", help="The feature networks that scores are computed with.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_(
    *,
    folder: Annotated[Path | None, typer.Option("--networks", help="Folder to look in. [torch's hub folder]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which checkpoints are here, and which metrics need each."""
    from havir_explorer.measure import networks

    found = [(network, networks.find(network, folder)) for network in networks.NETWORKS.values()]
    used = {network.name: _metrics(network.name) for network, _ in found}
    if as_json:
        emit(
            [
                {"name": n.name, "file": n.file, "megabytes": n.megabytes, "url": n.url, "path": str(path) if path else None, "metrics": used[n.name]}
                for n, path in found
            ]
        )
        return
    rows = [(n.name, str(path) if path else "missing", f"{n.megabytes} MB", ", ".join(used[n.name])) for n, path in found]
    table(f"looked in {folder or networks.folder()}", ("network", "checkpoint", "size", "metrics"), rows, numbers=False)
    if any(path is None for _, path in found):
        console().print("bring one with: havir networks fetch NAME")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Names that `havir networks list` shows.")],
    *,
    to: Annotated[Path | None, typer.Option("--to", help="Folder to write. [torch's hub folder]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Download checkpoints from where they are published. Run it again to go on after an interruption."""
    from havir_explorer.measure import networks
    from havir_explorer.measure.fetch import fetch as bring

    wanted, folder, written = [networks.network(name) for name in names], to or networks.folder(), []
    for network in wanted:
        console(to_stderr=True).print(f"{network.words}: about {network.megabytes} MB from {network.url} to {folder}")
        with progress_bar(f"fetching {network.name}") as show:
            written.append(bring(network, folder, show))
    if as_json:
        emit({"files": [str(file) for file in written]})
    else:
        console().print(f"wrote {', '.join(str(file) for file in written)}")


def _metrics(name: str) -> list[str]:
    from havir_explorer.measure.protocols import PROTOCOLS

    return [f"{measure.metric.name} ({protocol.name})" for protocol in PROTOCOLS.values() for measure in protocol.measures if measure.network == name]
