"""Every file beside the betas missing, cut short, of another subject, shape or kind: one clear sentence each."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from scipy.io import loadmat, savemat
from small_nsd import (
    BETAS,
    BRICK,
    DESIGN,
    FUNC,
    GRID,
    LABEL,
    MGH,
    N_STIMULI,
    TRANSFORMS,
    Tree,
    save_nifti,
    save_roi,
    write_behaviour,
)

from havir_explorer.data.nsd import NSD
from havir_explorer.errors import DataInvalid, DataMissing, RequestError


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


def test_an_atlas_beside_the_visual_ones_is_left_out_without_its_ctab(damaged: Tree, tmp_path: Path) -> None:
    voxels = damaged.nsd(tmp_path).geometry("subj01").flat_index
    save_roi(damaged.root, "MTL", {(6, 8, 4): 1}, None)
    with pytest.warns(UserWarning, match=r"name table of ROI file MTL \(subj01\) not found: .* meanwhile its regions are left out"):
        nsd, atlas = damaged.nsd(tmp_path), damaged.nsd(tmp_path).atlas("subj01")
    assert "MTL" not in atlas.names
    with pytest.warns(UserWarning, match="left out"):
        np.testing.assert_array_equal(nsd.geometry("subj01").flat_index, voxels)


def test_what_macos_leaves_beside_files_is_no_atlas(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / FUNC / "roi" / "._floc-faces.nii.gz").write_bytes(b"resource fork")
    assert "FFA-1" in damaged.nsd(tmp_path).atlas("subj01").names


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
    with pytest.raises(RequestError, match="mesh 'fsaverage6' is not available; this subject's transforms reach fsaverage5, or take 'native'"):
        nsd.surface("subj01", "fsaverage6")


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


@pytest.mark.parametrize("harm", ["gone", "cut", "other columns", "no number", "other subject", "other pictures"])
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
    elif harm == "no number":
        file.write_text("\n".join(lines).replace("500.0", "5oo"))
    elif harm == "other pictures":
        file.write_text("\n".join([lines[0], *lines[2:], lines[1]]))
    sentences = {
        "gone": "behaviour of subj01 not found",
        "cut": "has no row for trial 899",
        "other columns": "it needs the columns",
        "no number": "could not convert string to float: '5oo'",
        "other subject": "trial 0 differs .* another subject",
        "other pictures": "trial 0 differs",
    }
    with pytest.raises((DataMissing, DataInvalid), match=sentences[harm]):
        damaged.nsd(tmp_path).behaviour("subj01")


def test_truncated_transform_and_stimulus_file(damaged: Tree, tmp_path: Path) -> None:
    file = damaged.root / TRANSFORMS / "rh.func1pt8-to-layerB1.mgz"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataInvalid, match=r"volume-to-surface transform cannot be read: .*rh\.func1pt8-to-layerB1\.mgz"):
        damaged.nsd(tmp_path).surface("subj01")
    for start, value in ((4, 0), (20, 99)):  # its first dimension, and its number format
        content = bytearray(gzip.decompress((damaged.root / TRANSFORMS / "rh.func1pt8-to-layerB2.mgz").read_bytes()))
        content[start : start + 4] = value.to_bytes(4, "big")
        file.write_bytes(gzip.compress(content))
        with pytest.raises(DataInvalid, match=r"is truncated or of another kind"):
            damaged.nsd(tmp_path).surface("subj01")
    brick = damaged.root / BRICK
    brick.write_bytes(brick.read_bytes()[:3000])
    with pytest.raises(DataInvalid, match=r"nsd_stimuli\.hdf5 \([\d,]+ bytes\) is truncated or of another kind"):
        damaged.nsd(tmp_path).stimuli(np.array([0]))


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6])
def test_truncated_design(damaged: Tree, tmp_path: Path, kept: float) -> None:
    file = damaged.root / DESIGN / "nsd_expdesign.mat"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataInvalid, match=r"experiment design cannot be read: .*nsd_expdesign\.mat .* is truncated or of another kind .*; download it again"):
        damaged.nsd(tmp_path)


@pytest.mark.parametrize("harm", ["an error page", "flipped"])
def test_design_that_is_something_else(damaged: Tree, tmp_path: Path, harm: str) -> None:
    file = damaged.root / DESIGN / "nsd_expdesign.mat"
    held = {name: value for name, value in loadmat(file).items() if not name.startswith("_")}
    savemat(file, held, do_compression=True)  # as NSD's is
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(b"<html>403 Forbidden</html>\n" * 3 if harm == "an error page" else content[:middle] + bytes(8) + content[middle + 8 :])
    with pytest.raises(DataInvalid, match=r"experiment design cannot be read: .*nsd_expdesign\.mat .* is truncated or of another kind .*; download it again"):
        damaged.nsd(tmp_path)


@pytest.mark.parametrize("part", ["nsddata/experiments/nsd/nsd_expdesign.mat", "nsddata/ppdata/subj01/func1pt8mm/roi/floc-faces.nii.gz"])
def test_a_file_of_somebody_elses_is_not_taken_for_damaged(damaged: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    file = damaged.root / part
    file.write_bytes(b"")  # what a library makes of one it may not open
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != file)
    with pytest.raises(DataInvalid, match=rf"cannot be opened: {re.escape(str(file))} may not be read by this user; change its permissions"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_stimulus_information_that_is_no_text(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / DESIGN / "nsd_stim_info_merged.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(DataInvalid, match=r"stimulus information cannot be read: .*nsd_stim_info_merged\.csv"):
        damaged.nsd(tmp_path).trials("subj01")


def test_ctab_that_is_no_text(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / LABEL / "floc-faces.mgz.ctab").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataInvalid, match=r"name table cannot be read: .*floc-faces\.mgz\.ctab"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_missing_roi_file_of_a_hemisphere(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / FUNC / "roi" / "lh.floc-faces.nii.gz").unlink()
    with pytest.raises(DataMissing, match=r"ROI file not found: .*lh\.floc-faces\.nii\.gz; download"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_roi_volume_of_fractions(damaged: Tree, tmp_path: Path) -> None:
    save_nifti(damaged.root / FUNC / "roi" / "floc-faces.nii.gz", np.full(GRID, 0.5, np.float32))
    with pytest.raises(DataInvalid, match=r"ROI file holds numbers that are no whole codes, such as 0\.5: .*floc-faces\.nii\.gz"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_transform_layers_of_different_subjects(damaged: Tree, tmp_path: Path) -> None:
    points = np.ones((9, 1, 1, 3), np.float32)
    nibabel.save(MGH(points, np.eye(4)), damaged.root / TRANSFORMS / "lh.func1pt8-to-layerB2.mgz")
    with pytest.raises(DataInvalid, match=r"lh\.func1pt8-to-layerB2\.mgz has 9 vertices, but layerB1 has 5; the transforms belong to different subjects"):
        damaged.nsd(tmp_path).surface("subj01")


def test_transform_of_another_shape(damaged: Tree, tmp_path: Path) -> None:
    nibabel.save(MGH(np.ones((5, 1, 1, 2), np.float32), np.eye(4)), damaged.root / TRANSFORMS / "lh.func1pt8-to-layerB1.mgz")
    with pytest.raises(DataInvalid, match=r"expected \(vertices, 3\): .*lh\.func1pt8-to-layerB1\.mgz"):
        damaged.nsd(tmp_path).surface("subj01")


def test_truncated_captions(damaged: Tree, tmp_path: Path) -> None:
    file = damaged.root / "nsddata_stimuli" / "captions.json"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataInvalid, match=r"captions cannot be read: .*captions\.json"):
        damaged.nsd(tmp_path).captions(0)


def test_marker_that_is_no_json(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / "synthetic.json").write_bytes(b"\xff{")
    with pytest.raises(DataInvalid, match=r"marker of a generated tree cannot be read: .*synthetic\.json"):
        _ = damaged.nsd(tmp_path).synthetic
