"""Small trees in the layouts of MindEye's release and of the Algonauts 2023 challenge, made from the small NSD tree's numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from small_nsd import BETAS, N_TRIALS, TRANSFORMS, Tree

from havir_explorer.data.conventions import PREPARATIONS

N_STIMULI = 73_000
GENERAL = 6  # voxels of the small tree's nsdgeneral
PICTURES = 40  # of the small challenge
VERTICES = (30, 25)
AREAS = ("V1", "V2", "V3", "V4", "early_vis", "higher_vis")


def zscored(values: np.ndarray) -> np.ndarray:
    """Score columns session by session; constant ones are 0."""
    sessions = values.reshape(-1, 750, values.shape[1]).astype(float)
    std = sessions.std(axis=1, keepdims=True)
    scores = (sessions - sessions.mean(axis=1, keepdims=True)) / np.where(std == 0, np.inf, std)
    return scores.reshape(values.shape).astype(np.float32)


def general_columns(tree: Tree) -> np.ndarray:
    """Flat C-order indices of the small tree's nsdgeneral."""
    import nibabel

    volume = np.asarray(nibabel.load(tree.root / TRANSFORMS.parent / "func1pt8mm/roi/nsdgeneral.nii.gz").dataobj)
    return np.flatnonzero(volume.ravel() > 0)


def write_mindeye(tree: Tree, root: Path, *, anatomy: bool = True) -> Path:
    """Write the release's files for subj01; with ``anatomy``, NSD's own folders beside them."""
    root.mkdir()
    columns = general_columns(tree)
    with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        file.create_dataset("betas", data=zscored(tree.raw.reshape(N_TRIALS, -1)[:, columns]))
    with h5py.File(root / "COCO_73k_subj_indices.hdf5", "w") as file:
        file.create_dataset("subj01", data=np.concatenate([tree.nsd_ids, np.zeros(300, np.int64)]))  # the design goes on, the responses do not
    shared = np.zeros(N_STIMULI, np.bool_)
    shared[tree.nsd(root / "cache").split("subj01", "shared1000")] = True
    np.save(root / "shared1000.npy", shared)
    with h5py.File(root / "coco_images_224_float16.hdf5", "w") as file:
        images = file.create_dataset("images", (N_STIMULI, 3, 224, 224), np.float16, chunks=(1, 3, 224, 224))
        for nsd_id in (0, 3, 200):
            images[nsd_id] = np.stack([np.full((224, 224), share, np.float16) for share in (nsd_id / 255, 0.5, 1.5)])
    with h5py.File(root / "brain_region_masks.hdf5", "w") as file:
        group = file.create_group("subj01")
        for place, name in enumerate(AREAS):
            group.create_dataset(name, data=np.arange(GENERAL) == place)
        group.create_dataset("nsd_general", data=np.ones(GENERAL, np.bool_))
    if anatomy:
        for part in ("func1pt8mm/roi", "transforms"):
            shutil.copytree(tree.root / TRANSFORMS.parent / part, root / TRANSFORMS.parent / part)
        shutil.copytree(tree.root / "nsddata/freesurfer", root / "nsddata/freesurfer")
        (root / BETAS.parent / PREPARATIONS["b2"]).mkdir(parents=True)
        shutil.copy(tree.root / BETAS / "ncsnr.nii.gz", root / BETAS.parent / PREPARATIONS["b2"])
    return root


def write_algonauts(root: Path, subject: str = "subj01") -> Path:
    """Write one subject's training and test split, and its ROI masks."""
    rng = np.random.default_rng(5)
    home = root / subject
    for folder in ("training_split/training_fmri", "training_split/training_images", "test_split/test_images", "roi_masks"):
        (home / folder).mkdir(parents=True)
    for hemi, count in zip(("lh", "rh"), VERTICES, strict=True):
        trials = zscored(rng.normal(size=(750, count)))[: 3 * PICTURES].reshape(PICTURES, 3, count)
        averages = trials.mean(axis=1)
        np.save(home / f"training_split/training_fmri/{hemi}_training_fmri.npy", (averages - averages.mean(axis=0)).astype(np.float32))
        chosen = np.zeros(163_842, np.int64)
        chosen[np.concatenate([rng.choice(10_242, count - 5, replace=False), 20_000 + np.arange(5)])] = 1
        np.save(home / f"roi_masks/{hemi}.all-vertices_fsaverage_space.npy", chosen)
        for file, codes in {"prf-visualrois": 7, "floc-faces": 4, "floc-bodies": 4, "floc-places": 3, "floc-words": 5, "streams": 7}.items():
            np.save(home / f"roi_masks/{hemi}.{file}_challenge_space.npy", np.arange(count) % (codes + 1))
    for number in range(PICTURES):
        _picture(home / "training_split/training_images" / f"train-{number + 1:04d}_nsd-{number * 7 + 13:05d}.png", number)
    _picture(home / "test_split/test_images/test-0001_nsd-00001.png", 200)
    return root


def _picture(path: Path, grey: int) -> None:
    Image.new("RGB", (425, 425), (grey, grey, 9)).save(path)
