"""The forms an NSD tree comes in: NIfTI or HDF5, three preparations, few sessions, missing ROIs; and the numbers that depend on them."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from small_nsd import BETAS, GRID, N_TRIALS, VISUAL, Tree, nifti_tree, save_nifti, save_roi, write_behaviour, write_nifti_betas

from havir_explorer import attribute
from havir_explorer.data import betas, open_dataset, scores
from havir_explorer.data.ceiling import noise_ceiling
from havir_explorer.data.conventions import CONVENTIONS, PREPARATIONS
from havir_explorer.data.nsd import NSD
from havir_explorer.errors import DataMissing, MaskError, RequestError

ALL = np.arange(N_TRIALS)


def preparation(tree: Tree, name: str, add: int, sessions: tuple[int, ...] = (1, 2)) -> Path:
    """Write another preparation beside b3: the same signal with every other voxel's sign turned, shifted by ``add``."""
    folder = tree.root / BETAS.parent / PREPARATIONS[name]
    folder.mkdir(parents=True)
    signs = np.where(np.indices(GRID).sum(axis=0) % 2, -1, 1).astype(np.int16)
    for session in sessions:
        values = (tree.raw[(session - 1) * 750 : session * 750] * signs + add).astype(np.int16)
        with h5py.File(folder / f"betas_session{session:02d}.hdf5", "w") as file:
            file.create_dataset("betas", data=values.transpose(0, 3, 2, 1))
    return folder


def test_axis_orders_of_both_formats_agree(nsd: NSD, pristine: Tree, tmp_path: Path) -> None:
    tree = nifti_tree(pristine, tmp_path / "tree")
    np.testing.assert_array_equal(tree.nsd(tmp_path / "other").responses("subj01", ALL), nsd.responses("subj01", ALL))
    flat = nsd.geometry("subj01").flat_index
    for session, name in ((1, "betas_session01.nii.gz"), (2, "betas_session02.nii.gz")):
        columns = betas.read_columns(tree.root / BETAS / name, flat, GRID)
        np.testing.assert_array_equal(columns, betas.read_columns(betas.path(pristine.root, "subj01", session), flat, GRID))
        np.testing.assert_array_equal(columns, pristine.raw.reshape(2, 750, -1)[session - 1][:, flat])


def test_big_endian_nifti_reads_the_same(damaged: Tree, tmp_path: Path) -> None:
    path = damaged.root / BETAS / "betas_session02.nii.gz"
    save_nifti(path, damaged.raw[750:].transpose(1, 2, 3, 0).astype(">i2"))
    flat = damaged.nsd(tmp_path).geometry("subj01").flat_index
    np.testing.assert_array_equal(betas.read_columns(path, flat, GRID), damaged.raw[750:].reshape(750, -1)[:, flat])


def test_hdf5_is_read_where_both_formats_are_there(damaged: Tree, tmp_path: Path) -> None:
    write_nifti_betas(damaged.root, damaged.raw, 1).write_bytes(b"not even gzip")
    assert damaged.nsd(tmp_path).responses("subj01", np.array([0])).any()
    assert betas.sessions(damaged.root, "subj01") == (1, 2)


def test_a_tree_may_mix_formats_over_sessions(damaged: Tree, nsd: NSD, tmp_path: Path) -> None:
    write_nifti_betas(damaged.root, damaged.raw, 2)
    (damaged.root / BETAS / "betas_session02.hdf5").unlink()
    np.testing.assert_array_equal(damaged.nsd(tmp_path / "c").responses("subj01", ALL), nsd.responses("subj01", ALL))


def test_each_preparation_is_read_by_its_name(damaged: Tree, tmp_path: Path) -> None:
    preparation(damaged, "b2", 5)
    preparation(damaged, "b1", 7, sessions=(2,))
    third, second, first = (damaged.nsd(tmp_path, name) for name in ("b3", "b2", "b1"))
    assert [nsd.convention for nsd in (third, second, first)] == [CONVENTIONS[n].words for n in ("b3", "b2", "b1")]
    flat = third.geometry("subj01").flat_index
    signs = np.where(sum(np.unravel_index(flat, GRID)) % 2, -1, 1)
    some = np.array([751, 1400])
    expected = third.responses("subj01", some) * signs
    np.testing.assert_allclose(second.responses("subj01", some), expected, atol=3e-6)
    np.testing.assert_allclose(first.responses("subj01", some), expected, atol=3e-6)
    assert first.sessions("subj01") == (2,)
    np.testing.assert_array_equal(third.responses("subj01", some), damaged.nsd(tmp_path).responses("subj01", some))  # the cache keeps them apart


def test_preparations_are_never_mixed(damaged: Tree, tmp_path: Path) -> None:
    preparation(damaged, "b2", 5)
    (damaged.root / BETAS / "betas_session01.hdf5").unlink()
    with pytest.raises(DataMissing, match=r"session 1 of subj01 is here as b2 only, and b3 is read: .*never mixed.*#b2"):
        damaged.nsd(tmp_path).responses("subj01", np.array([3]))
    shutil.rmtree(damaged.root / BETAS)
    with pytest.raises(RequestError, match=r"subj01 has b2 betas only and .* is read as b3: preparations are never mixed; open .*#b2"):
        damaged.nsd(tmp_path).trials("subj01")


def test_a_convention_follows_the_folder_in_a_data_sets_name(damaged: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "cache"))
    preparation(damaged, "b2", 5)
    assert open_dataset(f"{damaged.root}#b2").convention == CONVENTIONS["b2"].words
    assert open_dataset(damaged.root).convention == CONVENTIONS["b3"].words
    with pytest.raises(RequestError, match="no convention is called 'b4'; nearest: b"):
        open_dataset(f"{damaged.root}#b4")
    odd = damaged.root.rename(tmp_path / "a#b")
    assert open_dataset(odd).root == odd.resolve()
    assert open_dataset(f"{odd}#mindeye1").convention.startswith("mindeye1")


def test_brain_diffuser_scores_by_the_training_pictures_means(damaged: Tree, tmp_path: Path) -> None:
    nsd = damaged.nsd(tmp_path, "brain-diffuser")
    flat = nsd.geometry("subj01").flat_index
    raw, ids = damaged.raw.reshape(N_TRIALS, -1)[:, flat].astype(float), damaged.nsd_ids
    training = [i for i in np.unique(ids) if i not in set(nsd.split("subj01", "shared1000"))]
    means = np.stack([raw[ids == i].mean(axis=0) for i in training])
    std = means.std(axis=0, ddof=1)
    expected = (raw - means.mean(axis=0)) / np.where(std == 0, np.inf, std)
    np.testing.assert_allclose(nsd.responses("subj01", ALL), expected, atol=2e-5)
    assert np.abs(nsd.responses("subj01", ALL)[:750].mean(axis=0)).max() > 1e-3, "not scored within a session"


def test_statistics_over_sessions_take_the_memory_of_one_block() -> None:
    rng = np.random.default_rng(0)
    ids, values = rng.permutation(20 * 750).reshape(20, 750), [rng.integers(-9, 9, (750, 64), np.int16) for _ in range(20)]
    tracemalloc.start()
    scores.image_moments(values, ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 20 * 750 * 64 * 8, "not one array of all pictures for every session"


def test_mindeye2_scores_a_session_by_its_training_trials(damaged: Tree, tmp_path: Path) -> None:
    preparation(damaged, "b2", 5)
    nsd = damaged.nsd(tmp_path, "mindeye2")
    training = ~nsd.trials("subj01")["shared"].to_numpy()
    responses = nsd.responses("subj01", ALL)
    for session in (slice(0, 750), slice(750, 1500)):
        fitted = responses[session][training[session]]
        np.testing.assert_allclose(fitted.mean(axis=0), 0, atol=1e-5)
        std = fitted.std(axis=0)
        assert np.all((np.abs(std - 1) < 1e-5) | (std == 0))
        assert (std > 0).sum() >= len(std) - 2
    assert np.abs(responses[:750].mean(axis=0)).max() > 1e-4


def test_sessions_after_the_37th_are_left_out_by_older_conventions(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / BETAS / "betas_session02.hdf5").rename(damaged.root / BETAS / "betas_session38.hdf5")
    assert damaged.nsd(tmp_path).sessions("subj01") == (1, 38)
    assert damaged.nsd(tmp_path, "mindeye1").sessions("subj01") == (1,)


def test_subjects_with_fewer_sessions_list_their_own(damaged: Tree, tmp_path: Path) -> None:
    shutil.copytree(damaged.root / BETAS.parents[1], damaged.root / BETAS.parents[1].with_name("subj04"))
    other = damaged.root / BETAS.parents[1].with_name("subj04") / BETAS.parent.name / BETAS.name
    (other / "betas_session01.hdf5").unlink()
    nsd = damaged.nsd(tmp_path)
    assert nsd.subjects() == ("subj01", "subj04")
    assert nsd.trials("subj04")["session"].unique().tolist() == [2]
    (other / "betas_session02.hdf5").rename(other / "betas_session31.hdf5")
    with pytest.raises(ValueError, match="subj04 completed 30 sessions, but there is a session 31"):
        damaged.nsd(tmp_path).trials("subj04")


def test_an_roi_that_the_subject_lacks_is_said_to_be_lacking(nsd: NSD) -> None:
    atlas = nsd.atlas("subj01")
    assert atlas.absent == ("never",)
    assert "never" not in atlas.names
    with pytest.raises(MaskError, match=r"none of this subject's \d+ voxels lies in ROI 'rh.never', which its name table lists"):
        atlas.voxels("rh.never")


def test_rois_of_overlapping_files_share_voxels(damaged: Tree, tmp_path: Path) -> None:
    shared = dict.fromkeys([next(iter(VISUAL)), (4, 7, 2)], 1)
    save_roi(damaged.root, "floc-words", shared, "0 Unknown\n1 OWFA\n")
    nsd = damaged.nsd(tmp_path)
    atlas, flat = nsd.atlas("subj01"), nsd.geometry("subj01").flat_index
    both = atlas.voxels("OWFA") & atlas.voxels("V1")
    assert flat[both].tolist() == [np.ravel_multi_index((1, 2, 3), GRID)]
    assert np.ravel_multi_index((4, 7, 2), GRID) in flat[atlas.voxels("OWFA")]
    assert (atlas.voxels("OWFA") & ~atlas.voxels("nsdgeneral")).sum() == 1


def test_behaviour_follows_the_trials(damaged: Tree, tmp_path: Path) -> None:
    written = write_behaviour(damaged.root, damaged.nsd_ids)
    answers = damaged.nsd(tmp_path).behaviour("subj01")
    assert answers.index.equals(damaged.nsd(tmp_path).trials("subj01").index)
    assert answers["is_old"].tolist() == (damaged.nsd(tmp_path).trials("subj01")["repeat"] > 0).tolist()
    np.testing.assert_array_equal(answers["reaction_time"], written["RT"])
    assert answers["is_correct"].isna().sum() == N_TRIALS // 10
    (damaged.root / BETAS / "betas_session01.hdf5").unlink()
    assert damaged.nsd(tmp_path).behaviour("subj01").index[0] == 750


@pytest.mark.parametrize(("repeats", "term"), [([3, 3], 1 / 3), ([1], 1.0), ([3, 3, 2, 1], (2 / 3 + 1 / 2 + 1) / 4)])
def test_noise_ceilings_follow_nsds_formula(repeats: list[int], term: float) -> None:
    ratio = np.array([0, 0.5, 2], np.float32)
    found = noise_ceiling(ratio, np.array(repeats))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 100 * ratio**2 / (ratio**2 + term), rtol=1e-6)


@pytest.mark.parametrize("repeats", [[], [3, 0]])
def test_a_noise_ceiling_needs_trials(repeats: list[int]) -> None:
    with pytest.raises(RequestError, match="averaged over 1 trial or more"):
        noise_ceiling(np.ones(2, np.float32), np.array(repeats, np.int64))


def test_repeats_averaged_are_those_of_the_shared_pictures_at_hand() -> None:
    trials = pd.DataFrame({"nsd_id": [7, 8, 7, 9, 9, 9], "shared": [True, True, True, False, False, False], "n_repeats": [2, 1, 2, 3, 3, 3]})
    assert attribute.tested_repeats(trials).tolist() == [2, 1]
    assert attribute.tested_repeats(trials[3:]).tolist() == [3]


def test_results_are_remembered_for_the_preparation_they_were_read_from(damaged, tmp_path):
    b2, b3 = (damaged.nsd(tmp_path, name).sources("subj01") for name in ("b2", "b3"))
    assert b2[0].name == "betas_fithrf"
    assert b3[0].name == "betas_fithrf_GLMdenoise_RR"
    assert b2[1] != b3[1]
