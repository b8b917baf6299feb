"""An evaluation as text: Markdown, LaTeX, CSV, and rows for parquet. Every table carries N, chance and the protocol."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from havir_explorer.errors import RequestError, nearest
from havir_explorer.evaluate.tables import Cell, Evaluation

CHANCE = "chance"


def heading(found: Evaluation) -> str:
    """Return a table's line above: what was tested, on how many images, by which protocol."""
    what = f"{found.subject} of {found.dataset}{' (synthetic)' if found.synthetic else ''}"
    which = f"{found.n_images} test images ({found.split or 'shared'}, {'repeats averaged' if found.repeats == 'mean' else 'first repeat alone'})"
    return f"{what}, {which}, mean [95 % interval], protocol {found.protocol.name} ({found.protocol.source})"


def lacking(found: Evaluation) -> list[str]:
    """Return one line for each metric that is missing, then for each condition."""
    return [f"{m.metric} is missing: {m.file} is not on this machine; get it with: {m.get}" for m in found.missing] + list(found.left_out)


def grid(found: Evaluation) -> list[list[str]]:
    """Return the table's cells: a header, a row a condition, and chance last."""
    header = ["condition", *(column.title for column in found.columns), "N"]
    counts = found.rows["condition"].value_counts()
    body = [[name, *(_interval(cell) for cell in found.cells(name)), str(counts[name])] for name in found.conditions]
    return [header, *body, [CHANCE, *(f"{column.chance:.3f}" for column in found.columns), ""]]


def markdown(found: Evaluation) -> str:
    """Return a Markdown table."""
    header, *body = grid(found)
    rule = ["---", *("---:" for _ in header[1:])]
    lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *body)]
    notes = [f"- {column.name}: {column.protocol}" for column in found.columns] + [f"- {line}" for line in lacking(found)]
    return "\n".join([heading(found), "", *lines, "", *notes, ""])


def latex(found: Evaluation) -> str:
    """Return a LaTeX ``tabular``, with what is to be said beside it as comments."""
    header, *body = ([_escaped(cell) for cell in row] for row in grid(found))
    rows = [" & ".join(row) + r" \\" for row in body]
    notes = [f"% {line}" for line in (heading(found), *(f"{c.name}: {c.protocol}" for c in found.columns), *lacking(found))]
    top = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\hline", " & ".join(header) + r" \\", r"\hline"]
    return "\n".join([*notes, *top, *rows[:-1], r"\hline", rows[-1], r"\hline", r"\end{tabular}", ""])


def comma_separated(found: Evaluation) -> str:
    """Return CSV, one line a condition and metric, missing ones with empty numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("condition", "metric", "mean", "ci95_low", "ci95_high", "chance", "n", "higher_is_better", "protocol", "words"))
    for name in found.conditions:
        for column, cell in zip(found.columns, found.cells(name), strict=True):
            numbers = (cell.mean, cell.low, cell.high, column.chance)
            writer.writerow((name, column.name, *numbers, found.n_images, column.higher_is_better, found.protocol.name, column.protocol))
        for line, missing in zip(lacking(found), found.missing, strict=False):
            writer.writerow((name, missing.metric, "", "", "", "", 0, "", found.protocol.name, line))
    return out.getvalue()


def as_json(found: Evaluation) -> str:
    """Return JSON."""
    return json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Evaluation], str]] = {"md": markdown, "csv": comma_separated, "latex": latex, "json": as_json}
"""Every way to write a table, by the name the command line takes."""
ENDINGS = {".md": "md", ".csv": "csv", ".tex": "latex", ".json": "json"}
"""What a file's name says about how it is written."""


def format_(name: str) -> Callable[[Evaluation], str]:
    """Return the writer of that name.

    Raises
    ------
    RequestError
        There is none.
    """
    if name not in FORMATS:
        msg = f"tables are written as {', '.join(FORMATS)}; got {name!r}; {nearest(name, FORMATS, 1)}"
        raise RequestError(msg)
    return FORMATS[name]


def write_rows(found: Evaluation, path: Path) -> None:
    """Write the rows as parquet, with :meth:`~havir_explorer.evaluate.tables.Evaluation.facts` as the metadata ``havir``."""
    table = pa.Table.from_pandas(found.rows, preserve_index=False)
    kept = {**(table.schema.metadata or {}), b"havir": json.dumps(found.facts()).encode()}
    parquet.write_table(table.replace_schema_metadata(kept), path)


def _interval(cell: Cell) -> str:
    return f"{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]"


_SPECIAL = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text)
