"""Exported numbers against the tree's own files, read here with nibabel and h5py alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import loadmat
from small_nsd import BETAS, BRICK, DESIGN, FUNC, Tree
from small_releases import write_mindeye

from havir_explorer import export
from havir_explorer.cli import command
from havir_explorer.data.nsd import NSD
from havir_explorer.errors import OutputError


@pytest.fixture(scope="module")
def small(pristine, tmp_path_factory) -> Tree:
    """The small tree under a path of this file's own, since a tree is opened once a process."""
    root = tmp_path_factory.mktemp("small") / "tree"
    shutil.copytree(pristine.root, root)
    return replace(pristine, root=root)


@pytest.fixture(scope="module")
def responses_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def told(capsys, small, responses_cache, monkeypatch):
    """Run ``havir export`` on the small tree: exit code, JSON, stderr."""

    def run(what: str, *arguments: object, dataset: Path | str = small.root):
        if dataset != "demo":
            monkeypatch.setenv("HAVIR_CACHE", str(responses_cache))
        capsys.readouterr()
        code = command(["export", what, "--dataset", str(dataset), "--json", *(str(a) for a in arguments)])
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if printed.out else {}, printed.err

    return run


def independent_betas(root: Path, trials: list[int], codes: dict[str, tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """C-order indices of the voxels with any of these codes, and their percent signal change."""
    volumes = {file: np.asarray(nibabel.load(root / FUNC / "roi" / f"{file}.nii.gz").dataobj) for file in codes}
    flat = np.flatnonzero(np.any([np.isin(volumes[file], wanted) for file, wanted in codes.items()], axis=0).ravel(order="C"))
    x, y, z = np.unravel_index(flat, next(iter(volumes.values())).shape)
    values = np.empty((len(trials), len(flat)))
    for row, trial in enumerate(trials):
        with h5py.File(root / BETAS / f"betas_session{trial // 750 + 1:02d}.hdf5") as file:
            values[row] = [file["betas"][trial % 750, k, j, i] / 300 for i, j, k in zip(x, y, z, strict=True)]
    return flat, values


def test_betas_are_the_files_numbers(told, small, tmp_path):
    code, said, err = told("betas", "--trials", "748-751,3", "--rois", "V1,FFA-1", "--out", tmp_path / "x.npz")
    assert code == 0, err
    trials = [748, 749, 750, 751, 3]
    flat, values = independent_betas(small.root, trials, {"prf-visualrois": (1, 2), "floc-faces": (2,)})
    with np.load(tmp_path / "x.npz") as found:
        assert set(found) == {"trial_index", "voxel_flat_index", "percent_signal_change"}
        assert found["trial_index"].tolist() == trials
        assert np.array_equal(found["voxel_flat_index"], flat)
        assert found["percent_signal_change"].dtype == np.float32
        np.testing.assert_allclose(found["percent_signal_change"], values, rtol=1e-6)
    assert said == {"file": str(tmp_path / "x.npz"), "trials": 5, "voxels": len(flat)}


def test_all_voxels_and_trials_by_default(told, small, tmp_path):
    assert told("betas", "--out", tmp_path / "all.npz")[0] == 0
    with np.load(tmp_path / "all.npz") as found:
        x, y, z = np.unravel_index(found["voxel_flat_index"], small.raw.shape[1:])
        assert found["trial_index"].tolist() == list(range(1500))
        np.testing.assert_allclose(found["percent_signal_change"], small.raw[:, x, y, z] / 300, rtol=1e-6)


def test_one_hemisphere(told, small, tmp_path):
    assert told("betas", "--trials", "0", "--rois", "rh.V1", "--out", tmp_path / "x.npz")[0] == 0
    with np.load(tmp_path / "x.npz") as found:
        assert np.unravel_index(found["voxel_flat_index"], small.raw.shape[1:])[0].tolist() == [5, 5]


def test_rois_are_the_volumes(told, small, tmp_path):
    assert told("rois", "--out", tmp_path / "r.npz")[0] == 0
    with np.load(tmp_path / "r.npz", allow_pickle=False) as found:
        named = dict(zip(found["roi_name"].tolist(), zip(found["roi_file"].tolist(), found["roi_voxels"], strict=True), strict=True))
        general = nibabel.load(small.root / FUNC / "roi" / "nsdgeneral.nii.gz")
        assert found["grid"].tolist() == list(general.shape)
        assert np.array_equal(found["affine"], general.affine)
        for name, file, code in (("V1v", "prf-visualrois", 1), ("FFA-1", "floc-faces", 2), ("nsdgeneral", "nsdgeneral", 1)):
            volume = np.asarray(nibabel.load(small.root / FUNC / "roi" / f"{file}.nii.gz").dataobj).ravel()
            assert named[name][0] == file
            assert np.array_equal(found["voxel_flat_index"][named[name][1]], np.flatnonzero(volume == code))
        left = np.asarray(nibabel.load(small.root / FUNC / "roi" / "lh.nsdgeneral.nii.gz").dataobj).ravel()
        assert not found["right_hemisphere"][np.isin(found["voxel_flat_index"], np.flatnonzero(left > 0))].any()


def test_trials_are_the_designs(told, small, tmp_path):
    assert told("trials", "--out", tmp_path / "t.csv")[0] == 0
    table = pd.read_csv(tmp_path / "t.csv")
    design = loadmat(small.root / DESIGN / "nsd_expdesign.mat")
    shown = design["subjectim"][0, design["masterordering"].ravel() - 1] - 1
    assert table["trial"].tolist() == list(range(1500))
    assert np.array_equal(table["nsd_id"], shown)
    assert np.array_equal(table["shared"], np.isin(shown, design["sharedix"] - 1))
    assert np.array_equal(table["session"], table["trial"] // 750 + 1)
    assert told("trials", "--trials", "5,2", "--out", tmp_path / "two.csv")[0] == 0
    assert np.array_equal(pd.read_csv(tmp_path / "two.csv"), table.loc[[5, 2]])


def test_stimuli_are_the_bricks_pictures(told, small, tmp_path):
    out = tmp_path / "pictures"
    code, said, err = told("stimuli", "--trials", "0-40", "--out", out)
    assert code == 0, err
    ids = np.unique(small.nsd_ids[:41])
    assert sorted(path.name for path in out.iterdir()) == [f"nsd{nsd_id:05d}.png" for nsd_id in ids]
    assert said == {"folder": str(out), "pictures": len(ids)}
    with h5py.File(small.root / BRICK) as file:
        assert all(np.array_equal(Image.open(out / f"nsd{nsd_id:05d}.png"), file["imgBrick"][nsd_id]) for nsd_id in ids)


def test_the_teaching_world_is_exported_too(told, demo, tmp_path):
    assert told("betas", "--subject", "subj02", "--trials", "750-752", "--rois", "FFA-1,V1", "--out", tmp_path / "x.npz", dataset="demo")[0] == 0
    here = demo.root / "nsddata_betas/ppdata/subj02/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session02.hdf5"
    with np.load(tmp_path / "x.npz") as found, h5py.File(here) as file:
        x, y, z = np.unravel_index(found["voxel_flat_index"][:40], (81, 104, 83))
        expected = np.stack([file["betas"][:3, k, j, i] for i, j, k in zip(x, y, z, strict=True)], axis=1) / 300
        np.testing.assert_allclose(found["percent_signal_change"][:, :40], expected, rtol=1e-6)
        assert np.abs(expected).max() > 0


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_prepared_store_serves_when_the_originals_are_gone(told, damaged, tmp_path, dtype):
    flat, values = independent_betas(damaged.root, [0, 751], {"prf-visualrois": (1, 2)})
    arguments = ("--dataset", str(damaged.root), "--dtype", dtype, "--delete-originals")
    assert command(["prepare", *arguments]) == 0
    assert not list(damaged.root.rglob("betas_session*"))
    assert told("betas", "--trials", "0,751", "--rois", "V1", "--out", tmp_path / "x.npz", dataset=damaged.root)[0] == 0
    with np.load(tmp_path / "x.npz") as found:
        assert np.array_equal(found["voxel_flat_index"], flat)
        np.testing.assert_allclose(found["percent_signal_change"], values, rtol=1e-6)


def test_a_release_of_normalised_responses_has_no_percent_signal_change(told, small, tmp_path):
    root = write_mindeye(small, tmp_path / "release")
    code, _, err = told("betas", "--out", tmp_path / "x.npz", dataset=root)
    assert code == 2
    assert "holds z-scored responses only, so their percent signal change is not known" in err
    assert told("trials", "--out", tmp_path / "t.csv", dataset=root)[0] == 0
    assert np.array_equal(pd.read_csv(tmp_path / "t.csv")["nsd_id"], small.nsd_ids)


@pytest.mark.parametrize(
    ("what", "arguments", "sentence"),
    [
        ("betas", ("--trials", "1400-1600"), "no trial 1500 of subj01 in "),
        ("betas", ("--trials", "5-1"), "--trials takes numbers and ranges such as 0-99 or 1,4-6; got '5-1'"),
        ("betas", ("--rois", "V1,FFA-9"), "no ROI is called 'FFA-9'; nearest: FFA-1"),
        ("betas", ("--subject", "subj09"), "no subject 'subj09' in "),
        ("rois", ("--subject", "subj02"), "no subject 'subj02' in "),
        ("trials", ("--trials", "1500"), "it holds trials 0-1499"),
        ("stimuli", ("--trials", "x"), "--trials takes numbers"),
    ],
)
def test_what_cannot_be_exported(told, tmp_path, what, arguments, sentence):
    endings = {"betas": ".npz", "rois": ".npz", "trials": ".csv", "stimuli": ""}
    code, _, err = told(what, *arguments, "--out", tmp_path / f"x{endings[what]}")
    assert code == 2
    assert sentence in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "name"), [("betas", "none/x.npz"), ("rois", "none/x.npz"), ("trials", "none/x.csv"), ("stimuli", "none/x"), ("betas", "x.csv")]
)
def test_places_that_cannot_be_written(told, tmp_path, what, name):
    code, _, err = told(what, "--out", tmp_path / name)
    assert code == 2
    assert f"cannot write {'pictures to ' if what == 'stimuli' else ''}{tmp_path / name}" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(told, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = told("stimuli", "--trials", "0", "--out", tmp_path)
    assert code == 2
    assert "there is something already" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_pictures_come_all_or_none(nsd, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OutputError, match="No space left on device"):
        export.stimuli(nsd, "subj01", tmp_path / "pictures", [0, 1])
    assert list(tmp_path.iterdir()) == []


def test_sessions_with_a_gap(damaged, tmp_path):
    (damaged.root / BETAS / "betas_session01.hdf5").rename(damaged.root / BETAS / "betas_session03.hdf5")
    with pytest.raises(ValueError, match=r"no trial 3 of subj01 in .*: it holds trials 750-1499; trials count from 0 over the experiment, 750 a session"):
        export.responses(NSD(damaged.root, cache=tmp_path / "cache"), "subj01", [750, 3])


@pytest.mark.parametrize("name", [("export", what) for what in ("betas", "rois", "trials", "stimuli")] + [("fetch", "nsd")])
def test_every_subcommand_has_help_and_json(capsys, name):
    assert command([*name, "--help"]) == 0
    assert "--json" in capsys.readouterr().out
