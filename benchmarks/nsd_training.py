"""Training at the Natural Scenes Dataset's true size: 15,724 voxels, the published shapes of targets, the full widths; part of nsd_size.py."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import branches, cost
from havir_explorer.decode.files import PREFIXES
from havir_explorer.decode.machine import Machine
from havir_explorer.decode.manifest import Manifest, Record
from havir_explorer.decode.objectives import OBJECTIVES
from havir_explorer.decode.options import Options
from havir_explorer.decode.pairs import Learner, Lesson, pair
from havir_explorer.decode.presets import preset
from havir_explorer.decode.run import Plan, Run, checkpoint
from havir_explorer.decode.samples import Samples
from havir_explorer.decode.target_store import TargetStore
from havir_explorer.records import Branch, FloatArray, IntArray

SPATIAL, SEMANTIC, REPEATS = 5_000, 10_724, 3
_WARM = 2


@dataclass(frozen=True)
class Measured:
    """What a few steps of a branch took.

    Parameters
    ----------
    told : str
        What is said before a training starts.
    step : float
        Median seconds of a step.
    checkpoint : float
        Seconds of the last look at held-out pictures and of the checkpoint.
    bytes_written : int
        Of the checkpoint.
    peak : float
        Of the process's memory, in GB.
    """

    told: str
    step: float
    checkpoint: float
    bytes_written: int
    peak: float


class _Noise:
    """Responses of random numbers, the same for a trial whenever it is read."""

    def responses(self, _subject: str, trials: IntArray) -> FloatArray:
        return np.random.default_rng(int(trials[0])).standard_normal((len(trials), SPATIAL + SEMANTIC), np.float32)


def measure(branch: Branch, targets: Path, steps: int, batch: int, width: int) -> Measured:
    """Train a branch of the full size for a few steps in this process, and save a checkpoint."""
    store = TargetStore.open(targets)
    manifest, options = _manifest(store, replace(preset("full", store.shapes.latents), batch=batch, check_every=10**9, save_every=10**9), width)
    repeats = torch.arange(len(store) * REPEATS).reshape(len(store), REPEATS)
    samples = Samples(cast("Dataset", _Noise()), "subj01", store.nsd_ids, np.arange(len(store) * REPEATS), repeats, torch.full((len(store),), REPEATS))
    chosen = (np.arange(SPATIAL + SEMANTIC) < SPATIAL) == (branch == "structural")
    lesson = Lesson(OBJECTIVES[branch], (pair(samples, chosen, store, options.held_out, 0),), store)
    module = branches.fresh(lesson.objective, manifest, 0)
    branches.start(lesson, module)
    run, times = Run(lesson, Learner(module), Plan(options, steps, 0, "benchmark"), Machine()), [time.perf_counter()]
    with tempfile.TemporaryDirectory(dir=targets.parent) as folder:
        run.loop(Path(folder), progress=lambda _share, _line: times.append(time.perf_counter()))
        written = checkpoint(Path(folder), branch).stat().st_size
    each = np.diff(times)
    step = statistics.median(each[min(_WARM, steps - 2) : -1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return Measured(str(cost.cost([manifest], options, branch, [len(samples.trials)])), step, float(each[-1] - step), written, peak)


def _manifest(store: TargetStore, options: Options, width: int) -> tuple[Manifest, Options]:
    options = replace(options, semantic=options.semantic.model_copy(update={"width": width or options.semantic.width}))
    shapes = store.shapes
    manifest = Manifest(
        subject="subj01",
        dataset="NSD",
        convention="none",
        split="5,000 spatial",
        voxel_hash="",
        n_voxels=SPATIAL + SEMANTIC,
        n_spatial=SPATIAL,
        n_semantic=SEMANTIC,
        latent_shape=(shapes.latents[0], shapes.latents[1], shapes.latents[2]),
        image_shape=(shapes.image_embeds[0], shapes.image_embeds[1]),
        text_shape=(shapes.text_embeds[0], shapes.text_embeds[1]),
        structural=options.structural,
        semantic=options.semantic,
        train_nsd_ids=(),
        record=Record(),
    )
    return manifest, options


def training_rows(targets: Path, asked: str, steps: int, batch: int, width: int) -> Iterator[tuple[str, str]]:
    """Measure each branch asked for (``both`` or one) in a process of its own, and yield what was measured and how it came out."""
    for branch in PREFIXES:
        if asked not in (branch, "both"):
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(measure, branch, targets, steps, batch, width).result()
        yield f"train {branch}", found.told
        yield "", f"{found.step:.2f} s a step of {batch} pictures, {batch / found.step:.2f} pictures a second, peak memory {found.peak:.2f} GB"
        yield "", f"a look at the held-out pictures and a checkpoint of {found.bytes_written / 1e9:.2f} GB: {found.checkpoint:.1f} s"
