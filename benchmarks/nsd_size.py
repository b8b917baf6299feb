"""Readers and the prepared store at the Natural Scenes Dataset's true size, on a synthetic tree of subj01's dimensions.

    python benchmarks/nsd_size.py --sessions 1 [--workers 2] [--nifti] [--targets 1000] [--train structural] [--to FOLDER]

Writes sessions of 81 x 104 x 83 voxels by 750 trials in the chunks NSD's files have (1.05 GB each), or as NIfTI, into a temporary folder, prepares them, and
prints how long that takes beside a plain sequential read of the same files, from disk and from memory, and how long trials and batches take. With
--targets it also writes a target store of so many pictures at the published size (0.55 MB each), of random numbers, and prints how long its batches take.
With --train a branch of the full size, or both, trains on such a store for a few steps: 5 GB of memory for the structural branch, 14 for the semantic one,
less with --semantic-width.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

import h5py
import nibabel
import numpy as np
import pandas as pd
from nsd_training import training_rows
from scipy.io import savemat

from havir_explorer.data import betas, preparing
from havir_explorer.data.dataset import Dataset
from havir_explorer.data.nsd import NSD
from havir_explorer.decode import target_making
from havir_explorer.decode.target_store import Manifest, TargetStore
from havir_explorer.decode.targets import Rows, Shapes
from havir_explorer.records import IntArray, UInt8Array

GRID = (81, 104, 83)
GENERAL, EXTRA = 15_724, 4_000  # voxels of nsdgeneral, and of ROIs outside it
SUBJECT = "subj01"
NIFTI: Any = nibabel.Nifti1Image  # nibabel's constructors carry no types


def write_tree(root: Path, sessions: int, *, nifti: bool = False) -> None:
    """Write design, regions and betas; pictures and transforms are not read here."""
    rng = np.random.default_rng(0)
    _write_design(root / "nsddata/experiments/nsd", rng)
    _write_regions(root / "nsddata/ppdata" / SUBJECT / "func1pt8mm/roi", root / "nsddata/freesurfer" / SUBJECT / "label")
    for session in range(1, sessions + 1):
        file = betas.path(root, SUBJECT, session)
        file.parent.mkdir(parents=True, exist_ok=True)
        if nifti:
            _write_nifti(file.with_name(f"{file.stem}.nii.gz"), rng)
        else:
            _write_session(file, rng)
        print(f"wrote session {session}", flush=True)


def _write_design(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    images = np.stack([np.concatenate([np.arange(1, 1001), 1001 + 9000 * subject + np.arange(9000)]) for subject in range(8)])
    ordering = rng.permutation(np.repeat(np.arange(1, 10_001), 3))
    savemat(folder / "nsd_expdesign.mat", {"masterordering": ordering[None], "subjectim": images, "sharedix": np.arange(1, 1001)[None]})
    pd.DataFrame({"cocoId": np.arange(73_000), "nsdId": np.arange(73_000)}).to_csv(folder / "nsd_stim_info_merged.csv")


def _write_regions(folder: Path, labels: Path) -> None:
    """Label the most posterior voxels of an ellipsoid's shell: scattered in the file as a cortex is."""
    folder.mkdir(parents=True)
    labels.mkdir(parents=True)
    x, y, z = np.indices(GRID)
    radius = sum(((axis - side / 2) / (side / 2)) ** 2 for axis, side in zip((x, y, z), GRID, strict=True))
    shell = np.flatnonzero(((radius > 0.55) & (radius < 0.95)).ravel())
    chosen = shell[np.argsort(y.ravel()[shell], kind="stable")][: GENERAL + EXTRA]
    for name, voxels in (("nsdgeneral", chosen[:GENERAL]), ("floc-faces", chosen[GENERAL - 2000 :])):
        for side, mine in (("", True), ("lh.", x.ravel()[voxels] < GRID[0] // 2), ("rh.", x.ravel()[voxels] >= GRID[0] // 2)):
            codes = np.full(GRID, -1, np.int16)
            codes.ravel()[voxels] = np.where(mine, 1, 0)
            nibabel.save(NIFTI(codes, np.diag([1.8, 1.8, 1.8, 1])), folder / f"{side}{name}.nii.gz")
    (labels / "floc-faces.mgz.ctab").write_text("0 Unknown\n1 FFA-1\n")


def _write_session(file: Path, rng: np.random.Generator) -> None:
    with h5py.File(file, "w") as opened:
        data = opened.create_dataset("betas", (betas.TRIALS, *GRID[::-1]), np.int16, chunks=(betas.TRIALS, 1, 1, 1))
        for plane in range(GRID[2]):
            values = rng.integers(-3000, 3000, (GRID[1], GRID[0], betas.TRIALS), np.int16)
            for row in range(GRID[1]):
                for column in range(GRID[0]):
                    data.id.write_direct_chunk((0, plane, row, column), values[row, column].tobytes())


def _write_nifti(file: Path, rng: np.random.Generator) -> None:
    """Write volume by volume; the values are rounded so that they pack about as well as responses do."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((*GRID, betas.TRIALS))
    header.set_data_dtype(np.int16)
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(betas.TRIALS):
            stream.write((rng.normal(0, 300, np.prod(GRID))).astype(np.int16).tobytes())


def _files(root: Path) -> list[Path]:
    return sorted(betas.folder(root, SUBJECT).glob("betas_session*"))


def forget(files: list[Path]) -> None:
    """Ask the system to drop these files from memory, so that the next read comes from disk; what is mapped stays."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(root: Path) -> float:
    """Return the seconds a plain sequential read of all beta files takes."""
    began = time.perf_counter()
    for file in _files(root):
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass
    return time.perf_counter() - began


def prepare(root: Path, workers: int) -> tuple[float, float, float]:
    """Prepare in this process from nothing; return the seconds it took, those foretold, and peak memory in GB."""
    shutil.rmtree(root / "prepared", ignore_errors=True)
    responses = NSD(root, cache=root / "cache").measured(SUBJECT)
    began = time.perf_counter()
    plan = preparing.plan(responses, "int16", workers)
    preparing.prepare(plan, workers=workers)
    seconds = time.perf_counter() - began
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds, plan.seconds, max(peaks) / 1e6


def in_new_process(root: Path, workers: int) -> tuple[float, float, float]:
    """Run :func:`prepare` in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(prepare, root, workers).result()


class _Captioned:
    """All that making a store asks of a data set beside its encoding."""

    def captions(self, _nsd_id: int) -> tuple[str, ...]:
        return ("a caption",)

    def stimuli(self, nsd_ids: IntArray) -> UInt8Array:
        return np.zeros((len(nsd_ids), 425, 425, 3), np.uint8)


def write_targets(folder: Path, pictures: int) -> TargetStore:
    """Write a store of random targets of the published shapes, as :func:`target_making.make` writes those that a generator gives."""
    rng, shapes = np.random.default_rng(0), Shapes((4, 64, 64), (257, 768), (77, 768))
    blank = Manifest(dataset="NSD", generator=(1.0,) * 24, generator_name="random", caption_target="mean", image_source="stimulus", shapes=shapes)
    ids = np.sort(rng.choice(73_000, pictures, replace=False))

    def encode(some: IntArray) -> Iterator[tuple[range, Rows]]:
        for start in range(0, len(some), 16):
            places = range(start, min(start + 16, len(some)))
            yield places, Rows(*(rng.standard_normal((len(places), *shape), np.float32) for shape in shapes))

    plan = target_making.plan(cast("Dataset", _Captioned()), ids, folder, blank)
    return target_making.make(plan, encode)


def target_rows(folder: Path, pictures: int) -> Iterator[tuple[str, str]]:
    """Write and measure a target store, and yield what was measured and how it came out."""
    began = time.perf_counter()
    written = write_targets(folder, pictures)
    seconds, shards = time.perf_counter() - began, sorted(folder.glob("*.npy"))
    size = sum(file.stat().st_size for file in shards) / 1e9
    yield "target store", f"{pictures:,} pictures in {len(shards)} files, {size:.2f} GB, written in {seconds:.1f} s"
    rng = np.random.default_rng(1)
    places = [rng.choice(pictures, 64, replace=False) for _ in range(20)]
    cold = []
    for some in places:
        forget(shards)
        cold.append(timed(lambda some=some: TargetStore(folder, written.manifest).rows(some), 1))  # type: ignore[misc]
    began = time.perf_counter()
    store = TargetStore.open(folder)
    store.rows(np.arange(pictures))
    yield "first read of all targets", f"{time.perf_counter() - began:.2f} s"
    again = iter(places * 3)
    warm = timed(lambda: store.rows(next(again)), 60)
    yield "random batch of 64 targets", f"{warm:.1f} ms from memory, {statistics.median(cold):.0f} ms from disk (35 MB)"


def timed(work: Callable[[], object], times: int) -> float:
    """Return the median of ``times`` runs, in milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def rows(root: Path, workers: int) -> Iterator[tuple[str, str]]:
    """Measure, and yield what was measured and how it came out."""
    size = sum(file.stat().st_size for file in _files(root)) / 1e9
    yield "beta files", f"{len(_files(root))} of {size / len(_files(root)):.2f} GB"
    forget(_files(root))
    disk = read_through(root)
    memory = min(read_through(root) for _ in range(3))
    yield "plain sequential read", f"{disk:.2f} s from disk ({size / disk:.2f} GB/s), {memory:.2f} s from memory"
    forget(_files(root))
    cold, foretold, peak = in_new_process(root, workers)
    warm, *_ = in_new_process(root, workers)
    yield "prepare", f"{cold:.2f} s from disk ({foretold:.2f} s foretold), {warm:.2f} s from memory, peak memory {peak:.2f} GB, {workers} worker(s)"
    yield "prepare / plain read", f"{cold / disk:.2f} from disk, {warm / memory:.2f} from memory"
    nsd = NSD(root, cache=root / "cache")
    trials, rng = nsd.trials(SUBJECT).index.to_numpy(), np.random.default_rng(0)
    began = time.perf_counter()
    shape = nsd.responses(SUBJECT, trials[:: betas.TRIALS]).shape
    yield "first read of each session", f"{time.perf_counter() - began:.2f} s (checksums of {shape[1]:,} voxels)"
    yield "one trial", f"{timed(lambda: nsd.responses(SUBJECT, rng.choice(trials, 1)), 200):.3f} ms"
    yield "random batch of 64 trials", f"{timed(lambda: nsd.responses(SUBJECT, rng.choice(trials, 64)), 50):.2f} ms"
    stored = sum(file.stat().st_size for file in (root / "prepared").rglob("*") if file.is_file()) / 1e9
    yield "store", f"{stored:.3f} GB, {size / stored:.0f} times smaller"


def main() -> None:
    """Write, measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--targets", type=int, default=0, help="pictures of a target store to write and read")
    parser.add_argument("--train", choices=("structural", "semantic", "both"), help="train at the full size for a few steps")
    parser.add_argument("--steps", type=int, default=8, help="of --train")
    parser.add_argument("--batch", type=int, default=32, help="of --train")
    parser.add_argument("--semantic-width", type=int, default=0, help="of --train; 0 is the full one")
    parser.add_argument("--nifti", action="store_true", help="write NIfTI instead of HDF5")
    parser.add_argument("--to", type=Path, help="folder for the temporary tree")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.to) as folder:
        if asked.sessions:
            write_tree(Path(folder), asked.sessions, nifti=asked.nifti)
            show(rows(Path(folder), asked.workers))
        if asked.targets:
            show(target_rows(Path(folder) / "targets", asked.targets))
        if asked.train:
            if not asked.targets:
                write_targets(Path(folder) / "targets", 200)
            show(training_rows(Path(folder) / "targets", asked.train, asked.steps, asked.batch, asked.semantic_width))


def show(measured: Iterator[tuple[str, str]]) -> None:
    """Print measurements as they come."""
    for name, found in measured:
        print(f"{name:28} {found}", flush=True)


if __name__ == "__main__":
    main()
