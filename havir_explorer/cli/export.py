"""``havir export``: a data set's numbers, in files that any other program reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from havir_explorer.cli.options import DatasetOption, JsonOption, SubjectOption
from havir_explorer.cli.show import can_write, console, emit, names, numbers, progress_bar, write

if TYPE_CHECKING:
    from havir_explorer.data.dataset import Dataset
    from havir_explorer.export import Regions, Responses

Numbers = TypeVar("Numbers", "Responses", "Regions")

app = typer.Typer(help="Write a data set's numbers for any other program.", no_args_is_help=True, rich_markup_mode=None)

TrialsOption = Annotated[str, typer.Option("--trials", help="0-based over the experiment, e.g. 0-99,750, or 'all' at hand.")]


@app.command()
def betas(
    *,
    out: Annotated[Path, typer.Option("--out", help="NPZ to write: trial_index, voxel_flat_index, percent_signal_change.")],
    dataset: DatasetOption = "demo",
    subject: SubjectOption = "subj01",
    trials: TrialsOption = "all",
    rois: Annotated[str, typer.Option("--rois", help="Names such as V1,FFA-1 or rh.PPA, their voxels together; all voxels when left out.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Single-trial responses in percent signal change. Before any z-scoring."""
    from havir_explorer import export

    found = _saved(out, lambda: export.responses(_open(dataset), subject, _trials(trials), names(rois)))
    n_trials, n_voxels = found.percent_signal_change.shape
    _tell({"file": str(out), "trials": n_trials, "voxels": n_voxels}, f"wrote {out}: {n_trials} trials of {n_voxels} voxels", as_json=as_json)


@app.command()
def rois(
    *,
    out: Annotated[Path, typer.Option("--out", help="NPZ to write: roi_name, roi_file, roi_voxels, voxel_flat_index, right_hemisphere, grid, affine.")],
    dataset: DatasetOption = "demo",
    subject: SubjectOption = "subj01",
    as_json: JsonOption = False,
) -> None:
    """Which voxels a subject has, and which ROIs they belong to."""
    from havir_explorer import export

    found = _saved(out, lambda: export.regions(_open(dataset), subject))
    n_rois, n_voxels = found.roi_voxels.shape
    _tell({"file": str(out), "rois": found.roi_name.tolist(), "voxels": n_voxels}, f"wrote {out}: {n_rois} ROIs over {n_voxels} voxels", as_json=as_json)


@app.command("trials")
def trial_table(
    *,
    out: Annotated[Path, typer.Option("--out", help="CSV to write, a row a trial.")],
    dataset: DatasetOption = "demo",
    subject: SubjectOption = "subj01",
    trials: TrialsOption = "all",
    as_json: JsonOption = False,
) -> None:
    """Which picture was shown when. Session, nsd_id, repeat, whether it is shared."""
    from havir_explorer import export

    can_write(out, ".csv")
    found = export.trials(_open(dataset), subject, _trials(trials))
    write(out, lambda part: found.to_csv(part, index_label="trial"))
    _tell({"file": str(out), "trials": len(found)}, f"wrote {out}: {len(found)} trials", as_json=as_json)


@app.command()
def stimuli(
    *,
    out: Annotated[Path, typer.Option("--out", help="New folder for the PNGs, called nsd00042.png by 0-based nsd_id.")],
    dataset: DatasetOption = "demo",
    subject: SubjectOption = "subj01",
    trials: TrialsOption = "all",
    as_json: JsonOption = False,
) -> None:
    """The pictures of some trials."""
    from havir_explorer import export

    tree = _open(dataset)
    with progress_bar("pictures") as show:
        files = export.stimuli(tree, subject, out, _trials(trials), progress=show)
    note = "" if tree.synthetic else "; they belong to their owners (Microsoft COCO), and NSD's terms forbid passing them on"
    _tell({"folder": str(out), "pictures": len(files)}, f"wrote {len(files)} pictures to {out}{note}", as_json=as_json)


def _trials(text: str) -> tuple[int, ...] | None:
    return None if text.strip().lower() == "all" else numbers(text, "--trials")


def _open(dataset: str) -> Dataset:
    from havir_explorer.data import open_dataset

    return open_dataset(dataset)


def _saved(out: Path, read: Callable[[], Numbers]) -> Numbers:
    """Write a record's arrays once it is known that they can be written, and return the record."""
    import numpy as np

    can_write(out, ".npz")
    found = read()
    write(out, lambda part: np.savez(part, **vars(found)))
    return found


def _tell(values: dict[str, object], sentence: str, *, as_json: bool) -> None:
    if as_json:
        emit(values)
    else:
        console().print(sentence)
