"""``havir fetch``: the Natural Scenes Dataset's files, or some of them, into a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from havir_explorer.cli.options import JsonOption
from havir_explorer.cli.show import console, emit, names, numbers, progress_bar, table
from havir_explorer.errors import Cancelled

if TYPE_CHECKING:
    from havir_explorer.data.fetch import Bucket, Order, Report, Survey

app = typer.Typer(help="Download measured data, resumable at any byte and checked.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _common() -> None:
    pass


@app.command()
def nsd(
    *,
    subjects: Annotated[str, typer.Option("--subjects", help="Some of 1 to 8, e.g. 1,2 or 1-4, or 'all'.")],
    sessions: Annotated[str, typer.Option("--sessions", help="1-based, e.g. 1-3,7, or 'all'. About 1 GB each.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the tree; made when missing. Give it to other commands as --dataset.")],
    images: Annotated[str, typer.Option("--images", help="Pictures: none, shared (by every subject), needed (by these sessions) or all (39.6 GB).")] = "none",
    preparation: Annotated[str, typer.Option("--preparation", help="Of the betas: b1, b2 or b3.")] = "b3",
    extras: Annotated[str, typer.Option("--extras", help="Also surfaces, mni (the transform to MNI space), or both.")] = "",
    accept: Annotated[bool, typer.Option("--accept-nsd-terms", help="You agree to NSD's terms; asked once a folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come, and how large it is, and stop.")] = False,
    endpoint: Annotated[str, typer.Option("--endpoint", help="Address of another S3 server that holds the bucket.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Fetch some of the Natural Scenes Dataset from its public bucket."""
    from havir_explorer.data import fetch as fetching

    order = _order(subjects, sessions, images, preparation, extras)
    root, bucket = to.expanduser().resolve(), fetching.Bucket(endpoint)
    if not dry_run:
        if not fetching.terms_accepted(root):
            console(to_stderr=True).print(fetching.TERMS)
        fetching.accept_terms(root, accepted=accept)
        fetching.make(root)
    found = fetching.survey(bucket, order, root)
    if not as_json:
        _show(found, bucket.name)
    report = None if dry_run else _fetch(bucket, found)
    if as_json:
        emit(_as_dict(found, bucket.name, report))
    elif report is not None:
        _tell(found, report)


def _order(subjects: str, sessions: str, images: str, preparation: str, extras: str) -> Order:
    from havir_explorer.data.fetch import Order

    which = () if sessions.strip().lower() == "all" else numbers(sessions, "--sessions")
    return Order(_people(subjects), which, images, preparation, names(extras))  # type: ignore[arg-type]  # the record says what is not one of its words


def _people(text: str) -> tuple[str, ...]:
    """Return the subjects meant by ``all``, by numbers and ranges such as ``1,5-7``, or by their names."""
    from havir_explorer.data.fetch import SESSIONS

    if text.strip().lower() == "all":
        return tuple(SESSIONS)
    if not text.strip(" ,-0123456789") and names(text):
        return tuple(f"subj{number:02d}" for number in numbers(text, "--subjects"))
    return names(text)


def _fetch(bucket: Bucket, found: Survey) -> Report:
    from havir_explorer.data.fetch import fetch

    try:
        with progress_bar("fetching") as show:
            return fetch(bucket, found, show)
    except (Cancelled, KeyboardInterrupt):
        sys.stderr.write(f"havir: what has come so far is kept in {found.root}; run the same command again to go on\n")
        raise


def _groups(found: Survey) -> list[tuple[str, int, int, int]]:
    """Group, files, bytes still to come, bytes here."""
    rows: dict[str, list[int]] = {}
    for item in found.items:
        row = rows.setdefault(item.group, [0, 0, 0])
        for place, count in enumerate((1, item.left, item.remote.size - item.left)):
            row[place] += count
    return [(group, *row) for group, row in rows.items()]  # type: ignore[misc]


def _show(found: Survey, source: str) -> None:
    from havir_explorer.data.fetch.folder import size
    from havir_explorer.data.fetch.keys import PICTURE_BYTES

    rows = [(group, str(files), size(left), size(here)) for group, files, left, here in _groups(found)]
    if found.some is not None:
        some = found.some
        count = f"{some.count:,}" if some.exact else f"at most {some.count:,}"
        rows.append(("pictures", count, f"at most {size(some.lacking * PICTURE_BYTES)}", f"{some.count - some.lacking:,} pictures"))
    rows.append(("all", str(len(found.items)), size(found.left), ""))
    table(f"{source} → {found.root}", ("what", "files", "to come", "here"), rows)
    if found.absent:
        console().print(f"not in the bucket, and left out: {', '.join(found.absent)}")


def _tell(found: Survey, report: Report) -> None:
    from havir_explorer.data.fetch.folder import size

    if found.complete:
        console().print(f"everything is here already ({report.seconds:.1f} s)")
        return
    checks = ", ".join(f"{count} by {how}" for how, count in report.checked)
    what = f"{report.files} files{f' and {report.pictures:,} pictures' if report.pictures else ''}"
    console().print(f"{what}, {size(report.moved)} in {report.seconds:.1f} s; checked: {checks or 'nothing'}\nuse it with --dataset {found.root}")


def _as_dict(found: Survey, source: str, report: Report | None) -> dict[str, Any]:
    files: Sequence[dict[str, Any]] = [
        {"key": item.remote.key, "group": item.group, "bytes": item.remote.size, "bytes_to_come": item.left, "state": item.state} for item in found.items
    ]
    some = found.some and {"count": found.some.count, "to_come": found.some.lacking, "exact": found.some.exact}
    done = report and {**asdict(report), "checked": dict(report.checked)}
    facts = {"folder": str(found.root), "source": source, "bytes_to_come": found.left, "complete": found.complete or report is not None}
    return {**facts, "files": files, "pictures": some, "absent": list(found.absent), "fetched": done}
