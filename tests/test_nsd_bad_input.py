"""Every bad input damages a copy of a small NSD tree, and must be answered by one clear sentence of the right class."""

from __future__ import annotations

import fcntl
import gzip
import re
import shutil
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_nsd import (
    BETAS,
    GRID,
    N_TRIALS,
    Tree,
    nifti_tree,
    save_nifti,
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
    with pytest.raises(DataInvalid, match=r"betas_session01\.hdf5 \([\d,]+ bytes\) is truncated or of another kind .*; download"):
        damaged.nsd(tmp_path).responses("subj01", np.array([0]))
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(("shape", "dtype"), [((750, *GRID), "i2"), ((749, *GRID[::-1]), "i2"), ((750, *GRID[::-1]), "f4")])
def test_beta_file_of_another_grid(damaged: Tree, tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    with h5py.File(damaged.root / BETAS / "betas_session01.hdf5", "w") as file:
        file.create_dataset("betas", shape, dtype)
    with pytest.raises(DataInvalid, match=re.escape("expected int16 (750, 5, 9, 7)")):
        damaged.nsd(tmp_path).responses("subj01", np.array([0]))


def test_beta_file_without_permission(pristine: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", forbidden)
    with pytest.raises(DataInvalid, match=r"betas_session01\.hdf5 may not be read by this user; change its permissions"):
        pristine.nsd(tmp_path).responses("subj01", np.array([0]))


def test_a_lock_on_a_beta_file_keeps_nobody_from_reading(damaged: Tree, tmp_path: Path) -> None:
    with (damaged.root / BETAS / "betas_session01.hdf5").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # to HDF5 this is what a disk without locks is
        assert damaged.nsd(tmp_path).responses("subj01", np.array([0])).any()


def test_a_machine_at_fault_is_not_taken_for_a_damaged_file(pristine: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: object, **__: object) -> None:
        raise OSError(24, "unable to open file: errno = 24")

    monkeypatch.setattr(h5py, "File", no_more)
    with pytest.raises(DataInvalid, match=r"betas_session01\.hdf5 \(Too many open files\); this machine, its disk or its network is at fault, not the file"):
        pristine.nsd(tmp_path).responses("subj01", np.array([0]))


def test_beta_file_without_betas(damaged: Tree, tmp_path: Path) -> None:
    with h5py.File(damaged.root / BETAS / "betas_session01.hdf5", "w") as file:
        file["other"] = [1]
    with pytest.raises(DataInvalid, match="no data set 'betas', found other"):
        damaged.nsd(tmp_path).responses("subj01", np.array([0]))


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
    message = dict.fromkeys(("cut", "flipped"), "is truncated or of another kind") | {
        "short": "it ends in trial 749",
        "scaled": "scaled by 2.0 and shifted by 1.0",
    }
    with pytest.raises(DataInvalid, match=message.get(harm, re.escape("expected int16 (7, 9, 5, 750)"))):
        tree.nsd(tmp_path).responses("subj01", np.array([0]))
    assert not list(tmp_path.glob("*/subj01/*.npy"))


def test_a_session_the_subject_never_had(damaged: Tree, tmp_path: Path) -> None:
    shutil.copy(damaged.root / BETAS / "betas_session01.hdf5", damaged.root / BETAS / "betas_session41.hdf5")
    with pytest.raises(DataInvalid, match=r"subj01 completed 40 sessions, but there is a session 41: .*betas_session41\.hdf5"):
        damaged.nsd(tmp_path).trials("subj01")
