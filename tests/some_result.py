"""A result that nobody computed, and a look at what a folder holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from havir_explorer.records import Mask, Reconstruction, Request, Score, Settings


def some_request() -> Request:
    mask = Mask(mute=("FFA-1", "rh.V1"), gains=(("PPA", 1.5),), fill="trial", fill_trial=4)
    return Request(subject="subj02", trial=7, repeats="single", mask=mask, settings=Settings(seed=11, mix=0.25))


def some_result(request: Request) -> Reconstruction:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    scores = (Score("PixCorr", float(np.float32(0.25)), 0.01, True, "64 px"), Score("CLIP", 0.93, 0.5, True, "two-way"))
    return Reconstruction(request, *pictures, "generated", True, False, scores, (("decode", 0.1), ("diffuse", 1.2)), 15, 0.4)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())
