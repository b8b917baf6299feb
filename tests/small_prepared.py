"""Prepare the small tree, read it, and look at what lies in its store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from small_nsd import N_TRIALS, Tree

from havir_explorer.data import preparing
from havir_explorer.data.prepared import Dtype, Record

ALL = np.arange(N_TRIALS)
STORE = Path("prepared", "subj01", "betas_fithrf_GLMdenoise_RR")


def prepare(tree: Tree, convention: str = "b3", dtype: Dtype = "int16", workers: int = 1) -> Record:
    responses = tree.nsd(tree.root / "cache", convention).measured("subj01")
    return preparing.prepare(preparing.plan(responses, dtype, workers), workers=workers)


def read(tree: Tree, convention: str | None = None) -> np.ndarray:
    return tree.nsd(tree.root / "cache", convention).responses("subj01", ALL)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
