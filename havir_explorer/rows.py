"""Rows of results as a partitioned parquet set: a partition appears whole or not at all, and is never written twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import dataset as sets
from pyarrow import parquet

from havir_explorer import store
from havir_explorer.claim import claimed
from havir_explorer.errors import DataInvalid, OutputError, reason
from havir_explorer.records import Request, Score, Settings

ROWS = "rows"
"""Folder of the partitions within a sweep's, one folder a subject in it: ``rows/subject=subj01/HASH.parquet``."""


@dataclass(frozen=True)
class Row:
    """One picture's scores and what is needed to read them.

    Parameters
    ----------
    request : Request
        Its key is the row's identity. Whatever decides the picture has a column of its own, so that a folder may hold sweeps of several settings;
        ``recipe`` is all of it as JSON.
    sources : str
        Digest of the weights' and betas' files it was made from; 16 hex characters.
    nsd_id : int
        0-based.
    condition : str
        The mask in words.
    kind : str
    synthetic, trained_on : bool
        As in :class:`~havir_explorer.records.Reconstruction`.
    scores : tuple of Score
        Two columns each: the value under the score's name, and its chance level under ``<name> chance``.
    seconds : float
        Of its own share of the batch it was drawn in.
    """

    request: Request
    sources: str
    nsd_id: int
    condition: str
    kind: str
    synthetic: bool
    trained_on: bool
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
    path = folder / ROWS / f"subject={rows[0].request.subject}" / f"{name}.parquet"
    content = pa.BufferOutputStream()
    parquet.write_table(_table(rows), content, compression="zstd")
    store.write_files({path: content.getvalue().to_pybytes()}, make_folder=True)
    return path


def _table(rows: Sequence[Row]) -> pa.Table:
    of_request = ("dataset", "trial", "repeats", "generator", "decoder")
    columns = {"request": pa.array([row.request.key for row in rows])}
    columns |= {name: pa.array([getattr(row.request, name) for row in rows]) for name in of_request}
    columns |= {field.name: pa.array([getattr(row.request.settings, field.name) for row in rows]) for field in fields(Settings)}
    of_result = ("sources", "nsd_id", "condition", "kind", "synthetic", "trained_on", "seconds")
    columns |= {name: pa.array([getattr(row, name) for row in rows]) for name in of_result}
    columns["recipe"] = pa.array([json.dumps(asdict(row.request), ensure_ascii=False) for row in rows])
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

    Returns
    -------
    DataFrame
        With every column that any partition has; a score that a row has not is NaN.

    Raises
    ------
    DataInvalid
        A partition is damaged.
    """
    place = Path(folder) / ROWS
    files = sorted(place.glob("*/*.parquet"))
    if not files:
        return pd.DataFrame(columns=[*(columns or ("request", "sources", "subject"))])
    schema = pa.unify_schemas([*(_schema(file) for file in files), pa.schema({"subject": pa.string()})])
    try:
        found = sets.dataset(place, schema, format="parquet", partitioning="hive").to_table(columns=None if columns is None else [*columns])
    except (pa.ArrowException, OSError) as fault:
        raise _damaged(place, fault) from fault
    return found.to_pandas()


def _schema(file: Path) -> pa.Schema:
    try:
        return parquet.read_schema(file)
    except (pa.ArrowException, OSError) as fault:
        raise _damaged(file, fault) from fault


def _damaged(place: Path, fault: Exception) -> DataInvalid:
    return DataInvalid(f"rows of a sweep cannot be read: {place} ({str(fault).splitlines()[0]}); delete that file and run the sweep again: it draws them anew")


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
        msg = f"cannot write a sweep to {folder}: {reason(fault)}"
        raise OutputError(msg) from fault
    taken = f"another sweep is writing {folder}; wait for it to end, or choose another folder"
    with claimed(folder / ".lock", taken, "give another folder with --out"):
        for leftover in folder.glob("*/*/.*.part"):
            leftover.unlink(missing_ok=True)
        yield
