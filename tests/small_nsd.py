"""A hand-written NSD tree: two sessions on a grid of 315 voxels, small enough to know by heart."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pandas as pd
from scipy.io import savemat

from havir_explorer.data import preparing, surface
from havir_explorer.data.nsd import NSD

NIFTI: Any = nibabel.Nifti1Image  # nibabel's constructors carry no types
MGH: Any = nibabel.MGHImage

GRID = (7, 9, 5)  # no two sides alike, so that a swapped axis cannot pass
N_TRIALS = 1500
N_IMAGES = 500
N_STIMULI = 640
BETAS = Path("nsddata_betas", "ppdata", "subj01", "func1pt8mm", "betas_fithrf_GLMdenoise_RR")
FUNC = Path("nsddata", "ppdata", "subj01", "func1pt8mm")
LABEL = Path("nsddata", "freesurfer", "subj01", "label")
DESIGN = Path("nsddata", "experiments", "nsd")
TRANSFORMS = Path("nsddata", "ppdata", "subj01", "transforms")
BRICK = Path("nsddata_stimuli", "stimuli", "nsd", "nsd_stimuli.hdf5")

VISUAL = {(1, 2, 3): 1, (5, 2, 3): 1, (1, 3, 3): 2, (5, 3, 3): 2, (2, 8, 0): 7}
FACES = {(0, 4, 1): 1, (6, 4, 1): 2, (6, 5, 1): 2}
KASTNER = {(1, 2, 3): 1}
EDGE = (3, 0, 4)  # in nsdgeneral only, constant in every session
MISSING_CHUNK = (2, 8, 0)  # in session 1 its chunk was never written


@dataclass(frozen=True)
class Tree:
    """A hand-written NSD tree and the numbers put into it."""

    root: Path
    raw: np.ndarray  # int16 (N_TRIALS, X, Y, Z)
    nsd_ids: np.ndarray  # (N_TRIALS,)

    def nsd(self, cache: Path, convention: str | None = None) -> NSD:
        return NSD(self.root, convention=convention, cache=cache)


def save_nifti(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(NIFTI(values, np.diag([1.8, 1.8, 1.8, 1])), path)


def save_roi(root: Path, name: str, labels: dict[tuple[int, int, int], int], ctab: str | None) -> None:
    volumes = {side: np.full(GRID, -1, np.int16) for side in ("", "lh.", "rh.")}
    for voxel, code in labels.items():
        volumes[""][voxel] = volumes["lh." if voxel[0] <= 3 else "rh."][voxel] = code
    for side, values in volumes.items():
        save_nifti(root / FUNC / "roi" / f"{side}{name}.nii.gz", values)
    if ctab is not None:
        (root / LABEL).mkdir(parents=True, exist_ok=True)
        (root / LABEL / f"{name}.mgz.ctab").write_text(ctab)


def _write_design(root: Path, rng: np.random.Generator) -> np.ndarray:
    (root / DESIGN).mkdir(parents=True)
    ordering = rng.permutation(np.repeat(np.arange(1, N_IMAGES + 1), 3))
    images = np.stack([rng.permutation(np.arange(1, N_STIMULI + 1))[:N_IMAGES] for _ in range(8)])
    arrays = {"masterordering": ordering[None], "subjectim": images, "sharedix": np.sort(images[0, 40:50])[None]}
    savemat(root / DESIGN / "nsd_expdesign.mat", arrays | {"basiccnt": np.zeros((3, 40)), "stimpattern": np.zeros((1, 1))})
    table = pd.DataFrame({"cocoId": np.arange(N_STIMULI) * 3 + 1000, "cocoSplit": "train2017", "nsdId": np.arange(N_STIMULI)})
    table.to_csv(root / DESIGN / "nsd_stim_info_merged.csv")
    seen: np.ndarray = images[0, ordering - 1] - 1
    return seen


def _write_betas(root: Path, raw: np.ndarray) -> None:
    (root / BETAS).mkdir(parents=True)
    for session in (1, 2):
        values = raw[(session - 1) * 750 : session * 750].transpose(0, 3, 2, 1)
        with h5py.File(root / BETAS / f"betas_session{session:02d}.hdf5", "w") as file:
            if session == 2:  # one session in another layout, as a repacked file would have
                file.create_dataset("betas", data=values, chunks=(50, 5, 3, 2), compression="gzip")
                continue
            chunked = file.create_dataset("betas", values.shape, np.int16, chunks=(750, 1, 1, 1))
            for x, y, z in np.ndindex(GRID):
                if (x, y, z) != MISSING_CHUNK:
                    chunked[:, z, y, x] = values[:, z, y, x]


def write_nifti_betas(root: Path, raw: np.ndarray, session: int, folder: Path = BETAS) -> Path:
    """Write one session as NSD's NIfTI files have it: (X, Y, Z, trial), int16, gzip."""
    path = root / folder / f"betas_session{session:02d}.nii.gz"
    save_nifti(path, np.ascontiguousarray(raw[(session - 1) * 750 : session * 750].transpose(1, 2, 3, 0)))
    return path


def nifti_tree(pristine: Tree, root: Path) -> Tree:
    """Copy the small tree with its sessions as NIfTI files instead of HDF5."""
    shutil.copytree(pristine.root, root)
    for session in (1, 2):
        write_nifti_betas(root, pristine.raw, session)
        (root / BETAS / f"betas_session{session:02d}.hdf5").unlink()
    return Tree(root, pristine.raw, pristine.nsd_ids)


def prepared_tree(pristine: Tree, root: Path) -> Tree:
    """Copy the small tree with a prepared store in the place of its beta files."""
    shutil.copytree(pristine.root, root)
    tree = Tree(root, pristine.raw, pristine.nsd_ids)
    plan = preparing.plan(tree.nsd(root / "cache").measured("subj01"), "int16")
    preparing.delete_originals(plan, preparing.prepare(plan))
    return tree


def write_behaviour(root: Path, nsd_ids: np.ndarray, subject: int = 1) -> pd.DataFrame:
    """Write ``responses.tsv`` for every trial: the picture was seen before or not, and every tenth answer is missing."""
    trial = np.arange(len(nsd_ids))
    seen = pd.Series(nsd_ids).groupby(nsd_ids).cumcount().to_numpy() > 0
    answered = trial % 10 != 9
    table = pd.DataFrame({"SUBJECT": subject, "SESSION": trial // 750 + 1, "RUN": trial % 750 // 63 + 1, "TRIAL": trial % 750 % 63 + 1, "73KID": nsd_ids + 1})
    table = table.assign(ISOLD=seen.astype(int), ISCORRECT=np.where(answered, trial % 2, np.nan), RT=np.where(answered, 500.0 + trial, np.nan))
    path = root / FUNC.parent / "behav" / "responses.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.assign(BUTTON=np.nan, MISSINGDATA=0).to_csv(path, sep="\t", index=False)
    return table


def _write_transforms(root: Path) -> None:
    (root / TRANSFORMS).mkdir(parents=True)
    voxels = {"lh": ((1, 2, 3), (1, 3, 3)), "rh": ((5, 2, 3), (6, 4, 1))}
    for hemi, (first, second) in voxels.items():
        points = np.array([first, second, (np.array(first) + second) / 2, (0, 0, 0), (0, 0, 0)], float) + 1
        for layer in surface.LAYERS:
            moved = points.copy()
            moved[3] = 9999
            if layer == "layerB3":
                moved[1] = 9999
            image = MGH(moved.astype(np.float32)[:, None, None, :], np.eye(4))
            nibabel.save(image, root / TRANSFORMS / f"{hemi}.func1pt8-to-{layer}.mgz")
        nearest = np.full(10242, 5)
        nearest[:4] = 1, 2, 3, 4
        nibabel.save(MGH(nearest.astype(np.float32)[:, None, None], np.eye(4)), root / TRANSFORMS / f"{hemi}.white-to-fsaverage.mgz")


def _write_stimuli(root: Path) -> None:
    (root / BRICK).parent.mkdir(parents=True)
    with h5py.File(root / BRICK, "w") as file:
        brick = file.create_dataset("imgBrick", (N_STIMULI, 425, 425, 3), np.uint8, chunks=(1, 425, 425, 3), compression="gzip", fillvalue=127)
        for nsd_id in (0, 3, 200, N_STIMULI - 1):
            brick[nsd_id] = np.full((425, 425, 3), nsd_id % 251, np.uint8)
    captions = {"annotations": [{"image_id": 1009, "caption": "a red car "}, {"image_id": 1000, "caption": "a house"}, {"image_id": 1009, "caption": "a car"}]}
    (root / "nsddata_stimuli" / "captions.json").write_text(json.dumps(captions))


def write_tree(root: Path) -> Tree:
    """Write the whole tree into an existing folder."""
    rng = np.random.default_rng(1)
    nsd_ids = _write_design(root, rng)
    raw = rng.integers(-3000, 3000, (N_TRIALS, *GRID)).astype(np.int16)
    raw[(slice(None), *EDGE)] = 41
    raw[(slice(0, 750), *MISSING_CHUNK)] = 0
    _write_betas(root, raw)
    save_roi(root, "prf-visualrois", VISUAL, "0 Unknown\n1 V1v\n2 V1d\n7 hV4\n8 never\n")
    save_roi(root, "floc-faces", FACES, "0\tUnknown\n1\tOFA\n2\tFFA-1\n")
    save_roi(root, "Kastner2015", KASTNER, "0 Unknown\n1 V1v\n")
    save_roi(root, "HCP_MMP1", dict.fromkeys([*VISUAL, (4, 4, 4)], 1), "0 Unknown\n1 V1\n")
    save_roi(root, "nsdgeneral", dict.fromkeys([*VISUAL, EDGE], 1), None)
    save_nifti(root / BETAS / "ncsnr.nii.gz", np.where(np.indices(GRID)[0] == 6, np.nan, np.arange(np.prod(GRID)).reshape(GRID) / 100).astype(np.float32))
    _write_transforms(root)
    _write_stimuli(root)
    return Tree(root, raw, nsd_ids)
