"""Rows of results as a partitioned parquet set: a partition appears whole or not at all, and is never written twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import dataset as sets
from pyarrow import parquet

from havir_explorer import store
from havir_explorer.claim import claimed
from havir_explorer.errors import DataInvalid, OutputError
from havir_explorer.records import Score

ROWS = "rows"
"""Folder of the partitions within a sweep's, one folder a subject in it: ``rows/subject=subj01/HASH.parquet``."""


@dataclass(frozen=True)
class Row:
    """One picture's scores and what is needed to read them.

    Parameters
    ----------
    request : str
        Key of the request, 32 hex characters: a row's identity.
    sources : str
        Digest of the weights' and betas' files it was made from; 16 hex characters.
    dataset, subject : str
    trial, nsd_id : int
        Both 0-based.
    condition : str
        The mask in words.
    seed : int
    kind : str
    synthetic, trained_on : bool
        As in :class:`~havir_explorer.records.Reconstruction`.
    recipe : str
        The whole request as JSON.
    scores : tuple of Score
        Two columns each: the value under the score's name, and its chance level under ``<name> chance``.
    seconds : float
        Of its own share of the batch it was drawn in.
    """

    request: str
    sources: str
    dataset: str
    subject: str
    trial: int
    nsd_id: int
    condition: str
    seed: int
    kind: str
    synthetic: bool
    trained_on: bool
    recipe: str
    scores: tuple[Score, ...]
    seconds: float


def append(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    """Write one partition.

    Parameters
    ----------
    folder : Path
        Of the sweep.
    name : str
        Of the partition, decided by what is in it: the same rows written again replace themselves.
    rows : sequence of Row
        All of one subject.

    Returns
    -------
    Path

    Raises
    ------
    OutputError
        It cannot be written; no part of it stays.
    """
    path = folder / ROWS / f"subject={rows[0].subject}" / f"{name}.parquet"
    content = pa.BufferOutputStream()
    parquet.write_table(_table(rows), content, compression="zstd")
    store.write_files({path: content.getvalue().to_pybytes()}, make_folder=True)
    return path


def _table(rows: Sequence[Row]) -> pa.Table:
    plain = ("request", "sources", "dataset", "trial", "nsd_id", "condition", "seed", "kind", "synthetic", "trained_on", "recipe", "seconds")
    columns = {name: pa.array([getattr(row, name) for row in rows]) for name in plain}
    for place, score in enumerate(rows[0].scores):
        columns[score.name] = pa.array([row.scores[place].value for row in rows], pa.float64())
        columns[f"{score.name} chance"] = pa.array([row.scores[place].chance for row in rows], pa.float64())
    return pa.table(columns)


def read(folder: Path | str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return all rows of a sweep, in no particular order; empty where there is none yet.

    Parameters
    ----------
    folder : Path or str
        The sweep's.
    columns : sequence of str, optional
        Only these.

    Raises
    ------
    DataInvalid
        A partition is damaged.
    """
    place = Path(folder) / ROWS
    if not any(place.glob("*/*.parquet")):
        return pd.DataFrame(columns=[*(columns or ("request", "sources", "subject"))])
    try:
        found = sets.dataset(place, format="parquet", partitioning="hive").to_table(columns=None if columns is None else [*columns])
    except (pa.ArrowException, OSError) as fault:
        msg = f"a partition in {place} cannot be read ({str(fault).splitlines()[0]}); delete that file and run the sweep again: only its rows are drawn anew"
        raise DataInvalid(msg) from fault
    return found.to_pandas()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder and keep other sweeps out of it; the system ends the claim with the process, however that ends.

    Raises
    ------
    OutputError
        It cannot be written, or another sweep is writing it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        msg = f"cannot write a sweep to {folder}: {fault.strerror or fault}; give another folder with --out"
        raise OutputError(msg) from fault
    taken = f"another sweep is writing {folder}; wait for it to end, or choose another folder"
    with claimed(folder / ".lock", taken, "give another folder with --out"):
        for leftover in (folder / ROWS).glob("*/.*.part"):
            leftover.unlink(missing_ok=True)
        yield
