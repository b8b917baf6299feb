"""Write the teaching world to disk in NSD's own layout, so that the NSD reader reads it unchanged.

The ground truth (receptive fields, tuning, planted noise ceilings) lies in ``truth/subjXX.npz`` beside the data: arrays named as in
:class:`~havir_explorer.data.demo.brain.Wiring`. Only tests and teaching views that say so may read it.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.io import savemat

from havir_explorer.data import WORLD
from havir_explorer.data.demo import anatomy, brain, design, features, scenes
from havir_explorer.data.demo.bricks import write_betas, write_stimuli
from havir_explorer.data.nsd import MARKER
from havir_explorer.errors import HavirError, OutputError
from havir_explorer.records import FloatArray

__all__ = ["WORLD", "Progress", "measured_ncsnr", "write_world"]

WORLD_VERSION = 1
Progress = Callable[[float, str], None]

_STALE = 3600.0
"""Seconds after which a half-written world beside the real one is nobody's any more; a build takes about one minute."""
_NSD = Path("nsddata/experiments/nsd")
_BETAS = "betas_fithrf_GLMdenoise_RR"


def write_world(folder: Path, progress: Progress) -> None:
    """Write the whole world, or nothing.

    Parameters
    ----------
    folder : Path
        Where the tree shall be; must not exist or be empty. It appears complete, by a rename of a folder made beside it.
    progress : callable (float, str) -> None
        Called with the share done in [0, 1] and a few words. An exception raised in it stops the work and leaves nothing behind.

    Raises
    ------
    OutputError
        The place cannot be written, or the disk is full.
    """
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        partial.chmod(0o755)
        _write(partial, progress)
        _put_in_place(partial, folder)
    except (OSError, RuntimeError) as problem:
        why = _reason(problem)
        if why is None:
            raise
        msg = f"the teaching world (about 270 MB) cannot be written to {folder}: {why}; free some space or set HAVIR_CACHE to another folder"
        raise OutputError(msg) from problem
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    progress(1.0, "The teaching world is ready")


def _sweep(folder: Path) -> None:
    """Remove what builds that were killed have left beside ``folder``; one that still runs is younger."""
    for left in folder.parent.glob(f".{folder.name}-*"):
        if time.time() - left.stat().st_mtime > _STALE:
            shutil.rmtree(left, ignore_errors=True)


def _reason(problem: OSError | RuntimeError) -> str | None:
    """Say why a write failed; None when the failure is not the disk's. HDF5 names the errno in its text only, at times in a RuntimeError."""
    if isinstance(problem, HavirError):
        return None
    if getattr(problem, "errno", None) == errno.ENOSPC or f"errno = {errno.ENOSPC}" in str(problem):
        return "the disk is full"
    return (problem.strerror or str(problem)) if isinstance(problem, OSError) else None


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename; when another process was faster and its world is complete, keep that one."""
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / MARKER).is_file():
            raise


def _write(root: Path, progress: Progress) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    plan = design.design()
    report = _Report(progress)
    report.add(0.0, "Laying out the experiment")
    stop = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="havir-stimuli") as side:
        stimuli = side.submit(_write_stimuli, root, plan, report, stop)
        try:
            _write_design(root, plan)
            report.add(0.04, "Growing the cortex")
            cortex = anatomy.load_cortex()
            report.add(0.08, "Looking at the pictures")
            for number, who in enumerate(brain.INDIVIDUALS):
                _write_subject(root, plan, cortex, number, who, report)
        except BaseException:
            stop.set()  # the pictures' thread ends after the one it is drawing
            raise
        stimuli.result()
    _write_marker(root, time.perf_counter() - wall, time.process_time() - cpu)


class _Report:
    """Adds up the shares of two threads; an exception of the caller's function stops both."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done, self._lock = progress, 0.0, threading.Lock()
        self._failure: BaseException | None = None

    def add(self, share: float, words: str) -> None:
        """Report that another share of the work is done."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._done = min(self._done + share, 0.99)
            try:
                self._progress(self._done, words)
            except BaseException as failure:
                self._failure = failure
                raise


def _write_design(root: Path, plan: design.Design) -> None:
    folder = root / _NSD
    folder.mkdir(parents=True)
    savemat(folder / "nsd_expdesign.mat", {name: values.astype(np.float64) for name, values in design.matlab_variables(plan).items()}, do_compression=True)
    design.stimulus_table(plan).to_csv(folder / "nsd_stim_info_merged.csv")


def _write_stimuli(root: Path, plan: design.Design, report: _Report, stop: threading.Event) -> None:
    folder = root / "nsddata_stimuli"
    write_stimuli(folder / "stimuli" / "nsd" / "nsd_stimuli.hdf5", plan.shown, lambda share: report.add(0.4 * share, "Drawing pictures"), stop)
    notes = [
        {"image_id": int(coco), "id": 5 * int(nsd_id) + k, "caption": text}
        for nsd_id, coco in zip(plan.shown, design.coco_ids(plan.shown), strict=True)
        for k, text in enumerate(scenes.captions(scenes.scene(int(nsd_id))))
    ]
    (folder / "captions.json").write_text(json.dumps({"annotations": notes}))


def _write_subject(root: Path, plan: design.Design, cortex: anatomy.Cortex, number: int, who: brain.Individual, report: _Report) -> None:
    body = anatomy.anatomy(cortex, who.seed, who.scale)
    wiring = brain.wire(body, who)
    eccentricity = np.zeros(len(cortex.flat_index), np.int64)
    eccentricity[body.active] = brain.eccentricity_codes(wiring)
    body.codes["prf-eccrois"] = eccentricity
    _write_anatomy(root, body, who.name)
    behaviour = root / "nsddata/ppdata" / who.name / "behav"
    behaviour.mkdir(parents=True)
    design.behaviour(plan, number).to_csv(behaviour / "responses.tsv", sep="\t", index=False, na_rep="NaN")
    seen = [scenes.scene(int(nsd_id)) for nsd_id in plan.ids[number]]
    maps = features.channel_maps(np.stack([scenes.draw(one, features.SIDE) for one in seen]))
    report.add(0.08, f"{who.name}: responding to the pictures")
    signal = brain.signals(wiring, maps, features.semantic_features(seen), seen)
    _write_betas(root, plan, wiring, signal, who, report)
    truth = root / "truth"
    truth.mkdir(exist_ok=True)
    np.savez_compressed(truth / f"{who.name}.npz", **asdict(wiring), channel_names=features.CHANNELS, semantic_names=features.SEMANTIC, kind_names=scenes.KINDS)


def _write_betas(root: Path, plan: design.Design, wiring: brain.Wiring, signal: FloatArray, who: brain.Individual, report: _Report) -> None:
    """Write every session, then ncsnr as NSD does: measured from the repeats, of responses z-scored within their session."""
    folder = root / "nsddata_betas/ppdata" / who.name / "func1pt8mm" / _BETAS
    folder.mkdir(parents=True)
    total = np.zeros((design.PICTURES, signal.shape[1]), np.float32)
    for number in range(design.SESSIONS):
        picture = plan.ordering[number * design.TRIALS_PER_SESSION :][: design.TRIALS_PER_SESSION] - 1
        betas = brain.session(wiring, signal[picture], (who.seed, 2, number))
        write_betas(folder / f"betas_session{number + 1:02d}.hdf5", betas, wiring.flat_index, anatomy.SHAPE)
        total += _by_picture(picture) @ _z_score(betas)
        report.add(0.34 / design.SESSIONS / len(brain.INDIVIDUALS), f"{who.name}: session {number + 1} of {design.SESSIONS}")
    _save_volume(folder / "ncsnr.nii.gz", _fill(wiring.flat_index, measured_ncsnr(total), 0.0))


def measured_ncsnr(total: FloatArray) -> FloatArray:
    """Estimate the noise-ceiling signal-to-noise ratio as NSD does, from responses z-scored within their session.

    Parameters
    ----------
    total : float32 (n_pictures, n_voxels)
        Sum over the three repeats of every picture. The squares of all trials need not be kept: z-scoring makes their mean 1.

    Returns
    -------
    float32 (n_voxels,)
        sqrt(signal variance / noise variance); noise variance is the mean over pictures of the variance over repeats, signal variance
        what it leaves of 1 (Allen et al. 2022, Methods).
    """
    k = design.REPEATS
    noise = (k - np.square(total).mean(0) / k) / (k - 1)
    return np.asarray(np.sqrt(np.maximum(1.0 - noise, 0.0) / noise), np.float32)


def _z_score(betas: npt.NDArray[np.int16]) -> FloatArray:
    values = betas.astype(np.float32)
    values -= values.mean(0)
    values /= np.sqrt(np.einsum("tv,tv->v", values, values) / len(values))
    return values


def _by_picture(picture: npt.NDArray[np.int64]) -> sparse.csr_array:
    """Return the matrix that sums trials of the same picture, (n_pictures, n_trials)."""
    return sparse.csr_array((np.ones(len(picture), np.float32), (picture, np.arange(len(picture)))), shape=(design.PICTURES, len(picture)))


def _write_anatomy(root: Path, body: anatomy.Anatomy, subject: str) -> None:
    cortex, place = body.cortex, root / "nsddata/ppdata" / subject
    volumes, rois, transforms = place / "func1pt8mm", place / "func1pt8mm/roi", place / "transforms"
    labels = root / "nsddata/freesurfer" / subject / "label"
    for folder in (rois, transforms, labels):
        folder.mkdir(parents=True)
    for file, codes in body.codes.items():
        for prefix, mine in (("", None), ("lh.", ~cortex.right), ("rh.", cortex.right)):
            values = codes if mine is None else np.where(mine, codes, -1)
            _save_volume(rois / f"{prefix}{file}.nii.gz", _fill(cortex.flat_index, values.astype(np.int16), -1))
        lines = ["0 Unknown", *(f"{code} {name}" for code, name in enumerate(anatomy.ROI_NAMES[file], start=1))]
        (labels / f"{file}.mgz.ctab").write_text("\n".join(lines) + "\n")
    template = np.rint(np.where(cortex.brain, 1200 * cortex.template / cortex.template.max(), 0)).astype(np.int16)
    _save_volume(volumes / "brainmask.nii.gz", cortex.brain.astype(np.uint8))
    _save_volume(volumes / "mean.nii.gz", template)
    _save_volume(volumes / "T1_to_func1pt8mm.nii.gz", template)
    for side, mesh in zip(("lh", "rh"), cortex.meshes, strict=True):
        for layer in (1, 2, 3):
            _save_surface(transforms / f"{side}.func1pt8-to-layerB{layer}.mgz", anatomy.layer_coordinates(mesh, layer)[:, :, None])
        index = np.arange(1, len(mesh.middle) + 1, dtype=np.int32)
        _save_surface(transforms / f"{side}.white-to-fsaverage.mgz", index[:, None, None])


def _write_marker(root: Path, wall_seconds: float, cpu_seconds: float) -> None:
    about = {
        "synthetic": True,
        "name": "demo",
        "world": WORLD_VERSION,
        "subjects": [who.name for who in brain.INDIVIDUALS],
        "captions": "nsddata_stimuli/captions.json",
        "built": {"wall_seconds": round(wall_seconds, 1), "cpu_seconds": round(cpu_seconds, 1)},
    }
    (root / MARKER).write_text(json.dumps(about, indent=1) + "\n")


def _fill(flat_index: npt.NDArray[np.int64], values: npt.NDArray[np.generic], empty: float) -> npt.NDArray[np.generic]:
    volume = np.full(int(np.prod(anatomy.SHAPE)), empty, values.dtype)
    volume[flat_index] = values
    return volume.reshape(anatomy.SHAPE)


def _save_volume(path: Path, values: npt.NDArray[np.generic]) -> None:
    nib.save(nib.Nifti1Image(values, anatomy.AFFINE), path)


def _save_surface(path: Path, values: npt.NDArray[np.generic]) -> None:
    nib.save(nib.MGHImage(values, np.eye(4)), path)
