"""An app without weights: its pipeline draws noise, it remembers nothing, and its contribution map is made up."""

from __future__ import annotations

import threading
import time

import numpy as np
import pandas as pd

from havir_explorer.app.world import Fed
from havir_explorer.draw.mesh import N_VERTICES
from havir_explorer.records import Branch, Reconstruction, Request, Score, Step

WAIT = 60  # seconds; only a broken app, or a very busy machine, needs them


def drawn(request: Request) -> Reconstruction:
    rng = np.random.default_rng([request.settings.seed, request.trial, len(request.mask.mute)])
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    scores = (Score("PixCorr", 0.4 - 0.1 * len(request.mask.mute), 0.02, True, "64 px"), Score("CLIP", 0.9, 0.5, True, "two-way"))
    return Reconstruction(request, *pictures, "generated", True, False, scores, (), 15, 0.4)


class Pipeline:
    """Draws at once, or waits before each step while ``gate`` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 3
        self.entered = threading.Event()
        self.asked: list[Request] = []
        self.fault: Exception | None = None

    def __call__(self, request, *, on_step=None):
        self.asked.append(request)
        for index in range(1, self.steps + 1):
            self.entered.set()
            assert self.gate.wait(WAIT)
            on_step(Step("diffuse", index, self.steps, np.full((16, 16, 3), index % 256, np.uint8)))
        if self.fault is not None:
            raise self.fault
        return drawn(request)


class Nothing:
    def get(self, request):
        return None

    def put(self, result):
        pass


def made_up() -> dict[Branch, Fed]:
    columns = {"roi": ["V1v", "FFA-1"], "file": ["prf-visualrois", "floc-faces"], "hemisphere": "both", "n_voxels": [9, 8], "n_in_branch": [9, 8]}
    table = pd.DataFrame({**columns, "mean": [0.8, 0.3], "sem": [0.01, np.nan], "noise_ceiling": [40.0, 30.0]})
    return {b: Fed(np.full(N_VERTICES, v, np.float32), table) for b, v in (("structural", 0.2), ("semantic", 0.9))}


def until(true) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def button(app, name: str):
    return {"run": app._panels.run.run, "cancel": app._panels.run.cancel}[name]


def tile(app, place: int) -> str:
    return app._panels.tiles.tiles[place].value
