"""``havir prepare``: a subject's betas into the compact store that is mapped into memory, with what it will cost said first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from havir_explorer.cli.options import DatasetOption, JsonOption, SubjectOption
from havir_explorer.cli.show import console, duration, emit, progress_bar, size
from havir_explorer.errors import RequestError

if TYPE_CHECKING:
    from havir_explorer.data.nsd import NSD
    from havir_explorer.data.prepared import Dtype
    from havir_explorer.data.preparing import Plan


def prepare(
    *,
    dataset: DatasetOption = "demo",
    subject: SubjectOption = "subj01",
    dtype: Annotated[str, typer.Option("--dtype", help="int16 as NSD's files have it, or float32 percent signal change.")] = "int16",
    convention: Annotated[str | None, typer.Option("--convention", help="b1, b2, b3, brain-diffuser, mindeye1 or mindeye2. [the store's; b3]")] = None,
    workers: Annotated[int, typer.Option("--workers", help="Sessions read side by side, a process each.")] = 1,
    delete_originals: Annotated[bool, typer.Option("--delete-originals", help="Delete each beta file once the store was compared with it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a subject's voxels in use into a compact store. Run it again to go on after a stop."""
    from havir_explorer.data import preparing

    if workers < 1:
        msg = f"--workers must be 1 or more; got {workers}"
        raise RequestError(msg)
    tree = _tree(dataset, convention)
    with progress_bar(f"looking at {subject}"):
        plan = preparing.plan(tree.measured(subject), _dtype(dtype), workers)
    console(to_stderr=True).print(_statement(plan, delete=delete_originals))
    began = time.perf_counter()
    with progress_bar(f"preparing {subject}") as show:
        record = preparing.prepare(plan, workers=workers, progress=show)
        deleted = preparing.delete_originals(plan, record, progress=show) if delete_originals else ()
    seconds = round(time.perf_counter() - began, 2)
    if as_json:
        found = {"store": str(plan.folder), "subject": subject, "convention": record.convention, "dtype": record.dtype, "voxels": record.n_voxels}
        emit({**found, "sessions": list(record.sessions), "prepared": list(plan.todo), "deleted": [str(file) for file in deleted], "wall_seconds": seconds})
        return
    ending = f"; deleted {len(deleted)} original files" if delete_originals else ""
    console().print(f"{len(record.sessions)} sessions of {subject} are ready in {plan.folder} ({seconds:.0f} s){ending}")
    console().print(f"every command reads them there from now on; next: havir targets --dataset {dataset}")


def _tree(dataset: str, convention: str | None) -> NSD:
    """Open the NSD tree that is to be prepared, under the convention asked for."""
    from havir_explorer import data
    from havir_explorer.data.nsd import NSD

    name = f"{dataset}#{convention}" if convention else dataset
    tree = data.open_dataset(name)
    if not isinstance(tree, NSD):
        msg = f"{tree.name} at {tree.root} is prepared already: its responses come normalised and are read as they are; prepare takes an NSD tree"
        raise RequestError(msg)
    return tree


def _dtype(name: str) -> Dtype:
    if name == "int16":
        return "int16"
    if name == "float32":
        return "float32"
    msg = f"--dtype takes int16 or float32; got {name!r}"
    raise RequestError(msg)


def _statement(plan: Plan, *, delete: bool) -> str:
    """Say what will be read, written and deleted, and how long it should take."""
    who, record = plan.responses.subject, plan.record
    done = len(plan.numbers) - len(plan.todo)
    already = f" ({done} already prepared)" if done else ""
    parts = [
        f"{who}: {len(plan.numbers)} sessions{already}, {record.n_voxels:,} voxels of nsdgeneral and the ROIs, {record.dtype}, convention {record.convention}",
        f"writes {size(plan.bytes_to_write)} to {plan.folder} ({size(plan.bytes_free)} free), about {duration(plan.seconds)}",
    ]
    if plan.ready:
        parts[1] = f"all of it is in {plan.folder}"
    if delete:
        parts.append("then deletes the original beta files, each after comparing it: voxels outside nsdgeneral and the ROIs are gone with them")
    return "\n".join(parts)
