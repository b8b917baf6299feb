"""An evaluation as Markdown, LaTeX, CSV, JSON and parquet: nothing left out, nothing rounded where numbers are read back."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from havir_explorer.errors import RequestError
from havir_explorer.evaluate import Column, Evaluation, Missing, formats
from havir_explorer.measure import protocol
from havir_explorer.records import Settings

N = 30


@pytest.fixture
def found() -> Evaluation:
    rng = np.random.default_rng(0)
    labels = {"condition": np.repeat(["full", "no_brain"], N), "kind": "generated", "protocol": "me2", "nsd_id": np.tile(np.arange(N), 2)}
    rows = pd.DataFrame({**labels, "trial": 0, "seed": 0, "PixCorr": rng.normal(0.3, 0.1, 2 * N), "EffNet-B": rng.normal(0.6, 0.1, 2 * N)})
    columns = (Column("PixCorr", 0.05, True, "Pearson r, 100 % of pixels"), Column("EffNet-B", 0.9, False, "distance"))
    missing = (Missing("SwAV", "swav.pth", "havir networks fetch swav"),)
    return Evaluation("nsd", "subj01", synthetic=False, settings=Settings(), rows=rows, columns=columns, missing=missing, protocol=protocol("me2"))


def test_the_grid_has_n_chance_arrows_and_intervals(found: Evaluation) -> None:
    header, full, _, chance = formats.grid(found)
    assert header == ["condition", "PixCorr ↑", "EffNet-B ↓", "N"]
    values = found.rows.query("condition == 'full'")["PixCorr"]
    assert full[0] == "full"
    assert full[1].startswith(f"{values.mean():.3f} [")
    assert full[3] == str(N)
    assert chance == ["chance", "0.050", "0.900", ""]


def test_markdown_says_n_protocol_and_what_is_missing(found: Evaluation) -> None:
    lines = formats.markdown(found).splitlines()
    assert lines[0] == "subj01 of nsd, 30 test images (shared, repeats averaged), mean [95 % interval], protocol me2 (MindEye2)"
    assert len({line.count("|") for line in lines[2:7]}) == 1
    assert "- SwAV is missing: swav.pth is not on this machine; get it with: havir networks fetch swav" in lines


def test_latex_escapes_what_latex_reads(found: Evaluation) -> None:
    text = formats.latex(found)
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{lrrr}"
    assert r"condition & PixCorr $\uparrow$ & EffNet-B $\downarrow$ & N \\" in body
    assert any(line.startswith(r"no\_brain & ") for line in body)
    assert body[-1] == r"\end{tabular}"
    assert not any("%" in line for line in body)


def test_csv_keeps_every_digit(found: Evaluation) -> None:
    rows = list(csv.DictReader(io.StringIO(formats.comma_separated(found))))
    assert [(r["condition"], r["metric"]) for r in rows] == [(c, m) for c in ("full", "no_brain") for m in ("PixCorr", "EffNet-B", "SwAV")]
    cell = found.cells("no_brain")[1]
    assert float(rows[4]["mean"]) == cell.mean
    assert (float(rows[4]["ci95_low"]), float(rows[4]["ci95_high"])) == (cell.low, cell.high)
    assert (rows[4]["n"], rows[4]["higher_is_better"], rows[4]["protocol"]) == ("30", "False", "me2")
    assert (rows[2]["mean"], rows[2]["n"]) == ("", "0")


def test_json_is_the_command_lines(found: Evaluation) -> None:
    assert json.loads(formats.as_json(found)) == json.loads(json.dumps(found.as_dict()))


def test_parquet_gives_the_rows_and_facts_back(found: Evaluation, tmp_path: Path) -> None:
    formats.write_rows(found, tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "rows.parquet"), found.rows, check_dtype=False)
    facts = json.loads(parquet.read_schema(tmp_path / "rows.parquet").metadata[b"havir"])
    assert facts == json.loads(json.dumps(found.facts()))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(RequestError, match="tables are written as md, csv, latex, json; got 'pdf'"):
        formats.format_("pdf")
