"""Every bad input damages a copy of a small NSD tree, and must be answered by one clear sentence of the right class."""

from __future__ import annotations

import gzip
import re
import shutil
import struct
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from scipy.io import savemat
from small_nsd import (
    BETAS,
    BRICK,
    DESIGN,
    FUNC,
    GRID,
    LABEL,
    MGH,
    N_STIMULI,
    N_TRIALS,
    TRANSFORMS,
    Tree,
    nifti_tree,
    save_nifti,
    write_behaviour,
)

from havir_explorer.data.nsd import NSD
from havir_explorer.errors import DataInvalid, DataMissing, RequestError


def test_a_folder_that_is_no_nsd_tree(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"experiment design not found: .*nsd_expdesign\.mat; download"):
        NSD(tmp_path)
    with pytest.raises(DataMissing, match="data folder not found"):
        NSD(tmp_path / "none")


@pytest.mark.parametrize("call", ["trials", "atlas", "geometry", "ncsnr", "surface", "prepare"])
def test_unknown_subject(nsd: NSD, call: str) -> None:
    with pytest.raises(RequestError, match=r"no subject 'subj9' in .*; it holds subj01"):
        getattr(nsd, call)("subj9")


@pytest.mark.parametrize("trial", [-1, N_TRIALS, 30000])
def test_trial_out_of_range(nsd: NSD, trial: int) -> None:
    with pytest.raises(RequestError, match=f"trial {trial} of subj01 is out of range: the 2 sessions in .* end with trial 1499"):
        nsd.responses("subj01", np.array([0, trial]))


def test_trials_that_are_no_whole_numbers(nsd: NSD) -> None:
    with pytest.raises(RequestError, match="whole numbers"):
        nsd.responses("subj01", np.array([0.5]))


def test_no_betas_at_all(damaged: Tree, tmp_path: Path) -> None:
    shutil.rmtree(damaged.root / "nsddata_betas")
    with pytest.raises(DataMissing, match=r"no betas in .*betas_session01\.hdf5; download at least one session"):
        damaged.nsd(tmp_path).trials("subj01")


def test_beta_file_gone_after_opening(damaged: Tree, tmp_path: Path) -> None:
    nsd = damaged.nsd(tmp_path)
    nsd.trials("subj01")
    (damaged.root / BETAS / "betas_session02.hdf5").unlink()
    with pytest.raises(DataMissing, match=r"session 2 not found: .*betas_session02\.hdf5"):
        nsd.responses("subj01", np.array([750]))


@pytest.mark.parametrize("kept", [0, 100, 200_000])
def test_truncated_beta_file(damaged: Tree, tmp_path: Path, kept: int) -> None:
    file = damaged.root / BETAS / "betas_session01.hdf5"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataInvalid, match=r"betas_session01\.hdf5 \([\d,]+ bytes\) is truncated or not HDF5; download"):
        damaged.nsd(tmp_path).responses("subj01", np.array([0]))
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(("shape", "dtype"), [((750, *GRID), "i2"), ((749, *GRID[::-1]), "i2"), ((750, *GRID[::-1]), "f4")])
def test_beta_file_of_another_grid(damaged: Tree, tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    with h5py.File(damaged.root / BETAS / "betas_session01.hdf5", "w") as file:
        file.create_dataset("betas", shape, dtype)
    with pytest.raises(DataInvalid, match=re.escape("expected int16 (750, 5, 9, 7)")):
        damaged.nsd(tmp_path).responses("subj01", np.array([0]))


def test_beta_file_without_permission(pristine: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", forbidden)
    with pytest.raises(DataInvalid, match=r"betas_session01\.hdf5 may not be read by this user; change its permissions"):
        pristine.nsd(tmp_path).responses("subj01", np.array([0]))


def test_beta_file_without_betas(damaged: Tree, tmp_path: Path) -> None:
    with h5py.File(damaged.root / BETAS / "betas_session01.hdf5", "w") as file:
        file["other"] = [1]
    with pytest.raises(DataInvalid, match="no data set 'betas', found other"):
        damaged.nsd(tmp_path).responses("subj01", np.array([0]))


@pytest.mark.parametrize(("shape", "dtype"), [((8, 224, 224, 3), "u1"), ((8, 425, 425, 3), "f4"), ((3, 425, 425, 8), "u1")])
def test_stimulus_file_of_another_shape(damaged: Tree, tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    with h5py.File(damaged.root / BRICK, "w") as file:
        file.create_dataset("imgBrick", shape, dtype)
    with pytest.raises(DataInvalid, match=r"expected uint8 \(pictures, 425, 425, 3\): .*nsd_stimuli\.hdf5"):
        damaged.nsd(tmp_path).stimuli(np.array([0]))


def test_stimulus_out_of_range_and_missing_brick(damaged: Tree, tmp_path: Path) -> None:
    nsd = damaged.nsd(tmp_path)
    with pytest.raises(RequestError, match=f"no stimulus has nsd_id 9000: .* holds 0 to {N_STIMULI - 1}"):
        nsd.stimuli(np.array([0, 9000]))
    (damaged.root / BRICK).unlink()
    with pytest.raises(DataMissing, match=r"stimulus file not found: .*nsd_stimuli\.hdf5; download"):
        nsd.stimuli(np.array([0]))


def test_roi_file_without_its_ctab(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / LABEL / "floc-faces.mgz.ctab").unlink()
    with pytest.raises(DataMissing, match=r"name table of ROI file floc-faces \(subj01\) not found: .*floc-faces\.mgz\.ctab; download it"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_a_ctab_in_the_templates_folder_is_found(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / "nsddata" / "templates").mkdir()
    (damaged.root / LABEL / "floc-faces.mgz.ctab").rename(damaged.root / "nsddata" / "templates" / "floc-faces.ctab")
    assert "FFA-1" in damaged.nsd(tmp_path).atlas("subj01").names


@pytest.mark.parametrize(("text", "message"), [("0 Unknown\n1 OFA\n", "holds code 2"), ("0 Unknown\nFFA-1\n", "not 'code name': 'FFA-1'")])
def test_ctab_that_does_not_fit(damaged: Tree, tmp_path: Path, text: str, message: str) -> None:
    (damaged.root / LABEL / "floc-faces.mgz.ctab").write_text(text)
    with pytest.raises(DataInvalid, match=message):
        damaged.nsd(tmp_path).atlas("subj01")


def test_truncated_roi_volume(damaged: Tree, tmp_path: Path) -> None:
    file = damaged.root / FUNC / "roi" / "lh.floc-faces.nii.gz"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataInvalid, match=r"ROI file cannot be read: .*lh\.floc-faces\.nii\.gz"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_roi_volume_of_another_grid(damaged: Tree, tmp_path: Path) -> None:
    save_nifti(damaged.root / FUNC / "roi" / "floc-faces.nii.gz", np.ones(GRID[::-1], np.int16))
    with pytest.raises(DataInvalid, match=re.escape("shape (5, 9, 7), expected (7, 9, 5)")):
        damaged.nsd(tmp_path).atlas("subj01")


def test_missing_nsdgeneral(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / FUNC / "roi" / "nsdgeneral.nii.gz").unlink()
    with pytest.raises(DataMissing, match=r"ROI file nsdgeneral of subj01 not found: .*nsdgeneral\.nii\.gz"):
        damaged.nsd(tmp_path).geometry("subj01")


def test_no_labelled_voxel(damaged: Tree, tmp_path: Path) -> None:
    for file in (damaged.root / FUNC / "roi").glob("*.nii.gz"):
        save_nifti(file, np.full(GRID, -1, np.int16))
    with pytest.raises(DataInvalid, match="no voxel of subj01 is labelled"):
        damaged.nsd(tmp_path).geometry("subj01")


def test_one_hemisphere_only(damaged: Tree, tmp_path: Path) -> None:
    for file in (damaged.root / FUNC / "roi").glob("rh.*.nii.gz"):
        save_nifti(file, np.full(GRID, -1, np.int16))
    with pytest.raises(DataInvalid, match=r"the rh\. ROI files of subj01 label no voxel"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_design_and_stimulus_information_damaged(damaged: Tree, tmp_path: Path) -> None:
    table = damaged.root / DESIGN / "nsd_stim_info_merged.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:20]))
    with pytest.raises(DataInvalid, match="stimulus information does not list nsd_id"):
        damaged.nsd(tmp_path).trials("subj01")
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataInvalid, match="needs integer columns nsdId and cocoId"):
        damaged.nsd(tmp_path).trials("subj01")
    design = damaged.root / DESIGN / "nsd_expdesign.mat"
    savemat(design, {"masterordering": [[1, 600]], "subjectim": np.ones((8, 500)), "sharedix": [[1]]})
    with pytest.raises(DataInvalid, match="experiment design is inconsistent"):
        damaged.nsd(tmp_path)
    design.write_bytes(b"nothing of the kind")
    with pytest.raises(DataInvalid, match="experiment design cannot be read"):
        damaged.nsd(tmp_path)


def test_captions_of_another_format(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / "nsddata_stimuli" / "captions.json").write_text("[1]")
    with pytest.raises(DataInvalid, match="expected COCO's captions format"):
        damaged.nsd(tmp_path).captions(0)


@pytest.mark.parametrize("part", ["lh.white-to-fsaverage.mgz", "rh.func1pt8-to-layerB2.mgz"])
def test_missing_transform(damaged: Tree, tmp_path: Path, part: str) -> None:
    (damaged.root / TRANSFORMS / part).unlink()
    with pytest.raises(DataMissing, match=f"transform not found: .*{re.escape(part)}; download"):
        damaged.nsd(tmp_path).surface("subj01")


def test_transforms_that_do_not_fit(damaged: Tree, tmp_path: Path) -> None:
    file = damaged.root / TRANSFORMS / "lh.white-to-fsaverage.mgz"
    nibabel.save(MGH(np.full((10242, 1, 1), 6, np.float32), np.eye(4)), file)
    with pytest.raises(DataInvalid, match=r"names native vertex 6, but .* has 5"):
        damaged.nsd(tmp_path).surface("subj01")
    nibabel.save(MGH(np.ones((7, 1, 1), np.float32), np.eye(4)), file)
    with pytest.raises(DataInvalid, match="has 7 rows"):
        damaged.nsd(tmp_path).surface("subj01")


def test_a_mesh_finer_than_the_transforms(nsd: NSD) -> None:
    with pytest.raises(RequestError, match="mesh 'fsaverage6' is not available; this subject's transforms reach fsaverage5"):
        nsd.surface("subj01", "fsaverage6")


def test_an_unwritable_cache_costs_only_time(pristine: Tree, tmp_path: Path, nsd: NSD) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")
    reader = pristine.nsd(tmp_path / "blocked")
    with pytest.warns(UserWarning, match=r"response cache .*blocked.* cannot be written .*stay in memory.*HAVIR_CACHE"):
        got = reader.responses("subj01", np.array([0, 749]))
    np.testing.assert_array_equal(got, nsd.responses("subj01", np.array([0, 749])))


def test_a_full_disk_costs_only_time(pristine: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", no_space)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert pristine.nsd(tmp_path / "cache").responses("subj01", np.array([0])).any()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("harm", ["cut", "short", "other grid", "other dtype", "scaled", "flipped"])
def test_damaged_nifti_betas(pristine: Tree, tmp_path: Path, harm: str) -> None:
    tree = nifti_tree(pristine, tmp_path / "tree")
    file = tree.root / BETAS / "betas_session01.nii.gz"
    content = file.read_bytes()
    if harm == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        file.write_bytes(content[:-6] + bytes([content[-6] ^ 255]) + content[-5:])  # gzip's checksum no longer fits
    elif harm == "short":
        file.write_bytes(gzip.compress(gzip.decompress(content)[:-100], 1))
    elif harm == "scaled":
        header = bytearray(gzip.decompress(content))
        header[112:120] = struct.pack("<ff", 2, 1)  # scl_slope, scl_inter
        file.write_bytes(gzip.compress(bytes(header), 1))
    else:
        save_nifti(file, np.zeros((*GRID[::-1], 750) if harm == "other grid" else (*GRID, 750), np.int16 if harm == "other grid" else np.float32))
    message = {"short": "it ends in trial 749", "cut": "cannot be read to its end", "flipped": "cannot be read to its end", "scaled": "scaled by 2.0 and shifted by 1.0"}
    with pytest.raises(DataInvalid, match=message.get(harm, re.escape("expected int16 (7, 9, 5, 750)"))):
        tree.nsd(tmp_path).responses("subj01", np.array([0]))
    assert not list(tmp_path.glob("*/subj01/*.npy"))


@pytest.mark.parametrize("harm", ["gone", "cut", "other grid"])
def test_damaged_noise_ceiling(damaged: Tree, tmp_path: Path, harm: str) -> None:
    file = damaged.root / BETAS / "ncsnr.nii.gz"
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:50])
    else:
        save_nifti(file, np.zeros(GRID[::-1], np.float32))
    message = {"gone": "not found", "cut": "cannot be read", "other grid": "belongs to another subject"}[harm]
    with pytest.raises(DataMissing if harm == "gone" else DataInvalid, match=f"noise ceiling file .*{message}"):
        damaged.nsd(tmp_path).ncsnr("subj01")


@pytest.mark.parametrize("part", ["nsd_expdesign.mat", "nsd_stim_info_merged.csv"])
def test_missing_design_files(damaged: Tree, tmp_path: Path, part: str) -> None:
    (damaged.root / DESIGN / part).unlink()
    with pytest.raises(DataMissing, match=f"not found: .*{re.escape(part)}; download"):
        damaged.nsd(tmp_path).trials("subj01")


@pytest.mark.parametrize("harm", ["gone", "cut", "other columns", "other subject", "other pictures"])
def test_damaged_behaviour(damaged: Tree, tmp_path: Path, harm: str) -> None:
    write_behaviour(damaged.root, damaged.nsd_ids, subject=2 if harm == "other subject" else 1)
    file = damaged.root / FUNC.parent / "behav" / "responses.tsv"
    lines = file.read_text().splitlines()
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_text("\n".join(lines[:900]))
    elif harm == "other columns":
        file.write_text("a\tb\n1\t2\n")
    elif harm == "other pictures":
        file.write_text("\n".join([lines[0], *lines[2:], lines[1]]))
    sentences = {
        "gone": "behaviour of subj01 not found",
        "cut": "has no row for trial 899",
        "other columns": "it needs the columns",
        "other subject": "trial 0 differs .* another subject",
        "other pictures": "trial 0 differs",
    }
    with pytest.raises((DataMissing, DataInvalid), match=sentences[harm]):
        damaged.nsd(tmp_path).behaviour("subj01")


def test_a_session_the_subject_never_had(damaged: Tree, tmp_path: Path) -> None:
    shutil.copy(damaged.root / BETAS / "betas_session01.hdf5", damaged.root / BETAS / "betas_session41.hdf5")
    with pytest.raises(DataInvalid, match=r"subj01 completed 40 sessions, but there is a session 41: .*betas_session41\.hdf5"):
        damaged.nsd(tmp_path).trials("subj01")


def test_truncated_transform_and_stimulus_file(damaged: Tree, tmp_path: Path) -> None:
    file = damaged.root / TRANSFORMS / "rh.func1pt8-to-layerB1.mgz"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataInvalid, match=r"volume-to-surface transform cannot be read: .*rh\.func1pt8-to-layerB1\.mgz"):
        damaged.nsd(tmp_path).surface("subj01")
    brick = damaged.root / BRICK
    brick.write_bytes(brick.read_bytes()[:3000])
    with pytest.raises(DataInvalid, match=r"nsd_stimuli\.hdf5 \([\d,]+ bytes\) is truncated or not HDF5"):
        damaged.nsd(tmp_path).stimuli(np.array([0]))
