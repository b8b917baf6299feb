"""MindEye's release and the Algonauts challenge: their numbers, what they cannot do, and their damage."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from small_nsd import N_TRIALS, Tree
from small_releases import GENERAL, PICTURES, VERTICES, general_columns, write_algonauts, write_mindeye, zscored

from havir_explorer.cli import command
from havir_explorer.data import open_dataset
from havir_explorer.data.algonauts import Algonauts
from havir_explorer.data.mindeye import MindEye
from havir_explorer.data.nsd import NSD
from havir_explorer.errors import DataInvalid, DataMissing, HavirError, MaskError, RequestError


@pytest.fixture
def mindeye(pristine: Tree, tmp_path: Path) -> Path:
    return write_mindeye(pristine, tmp_path / "mindeye")


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    return write_algonauts(tmp_path / "challenge")


def test_each_folder_is_known_by_its_files(mindeye: Path, challenge: Path, pristine: Tree) -> None:
    assert [type(open_dataset(folder)) for folder in (mindeye, challenge, pristine.root)] == [MindEye, Algonauts, NSD]
    with pytest.raises(RequestError, match=r"come normalised \(mindeye2 release.*leave '#b3' out"):
        open_dataset(f"{mindeye}#b3")


def test_a_folder_of_neither_kind_is_missing_a_design(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataMissing, match="experiment design not found"):
        open_dataset(tmp_path / "empty")


@pytest.mark.parametrize("folder", ["mindeye", "challenge"])
def test_prepare_says_that_there_is_nothing_to_prepare(folder: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["prepare", "--dataset", str(request.getfixturevalue(folder))]) == 2
    assert "is prepared already: its responses come normalised" in capsys.readouterr().err


def test_mindeye_columns_are_those_of_nsdgeneral(mindeye: Path, pristine: Tree) -> None:
    reader, columns = MindEye(mindeye), general_columns(pristine)
    np.testing.assert_array_equal(reader.geometry("subj01").flat_index, columns)
    some = np.array([1499, 0, 751])
    np.testing.assert_array_equal(reader.responses("subj01", some), zscored(pristine.raw.reshape(N_TRIALS, -1)[:, columns])[some])
    assert reader.trials("subj01")["nsd_id"].tolist() == pristine.nsd_ids.tolist()
    atlas = reader.atlas("subj01")
    assert "FFA-1" not in atlas.names
    with pytest.raises(MaskError, match="none of this subject's 6 voxels lies in ROI 'FFA-1'"):
        atlas.voxels("FFA-1")
    assert atlas.voxels("V1").sum() == 4


def test_mindeye_reads_its_responses_in_every_hdf5_layout(mindeye: Path) -> None:
    whole = MindEye(mindeye).responses("subj01", np.arange(N_TRIALS))
    values = whole.copy()
    values[3, 2] = np.nan
    with h5py.File(mindeye / "betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        file.create_dataset("betas", data=values, chunks=(100, 2), compression="gzip")
    again = MindEye(mindeye).responses("subj01", np.arange(N_TRIALS))
    assert again[3, 2] == 0
    whole[3, 2] = 0
    np.testing.assert_array_equal(again, whole)


def test_mindeye_pictures_are_shares_of_255(mindeye: Path) -> None:
    pictures = MindEye(mindeye).stimuli(np.array([200, 3]))
    assert pictures[:, 7, 9].tolist() == [[200, 128, 255], [3, 128, 255]]


def test_mindeye_without_anatomy_says_what_is_missing(pristine: Tree, tmp_path: Path) -> None:
    reader = MindEye(write_mindeye(pristine, tmp_path / "bare", anatomy=False))
    atlas = reader.atlas("subj01")
    assert {"V1", "hV4", "early_vis", "higher_vis", "nsdgeneral", "prf-visualrois"} <= set(atlas.names)
    assert atlas.voxels("nsdgeneral").sum() == GENERAL
    with pytest.raises(MaskError, match=r"'rh\.V1' asks for one hemisphere, but these ROI masks do not tell hemispheres apart"):
        atlas.voxels("rh.V1")
    for ask in (reader.geometry, reader.surface):
        with pytest.raises(DataMissing, match=r"holds no voxel coordinates: for subj01 .* put NSD's nsddata/ppdata/subj01/func1pt8mm/roi"):
            ask("subj01")
    with pytest.raises(DataMissing, match="holds no ncsnr"):
        reader.ncsnr("subj01")
    with pytest.raises(RequestError, match="'special515' needs the design of all eight subjects"):
        reader.split("subj01", "special515")


def damage_hdf5(name: str, dataset: str, shape: tuple[int, ...], dtype: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        with h5py.File(root / name, "w") as file:
            file.create_dataset(dataset, shape, dtype)

    return damage


MINDEYE_FILES = ("betas_all_subj01_fp32_renorm.hdf5", "COCO_73k_subj_indices.hdf5", "coco_images_224_float16.hdf5", "brain_region_masks.hdf5", "shared1000.npy")


def ask_everything(reader: MindEye | Algonauts) -> None:
    trials = reader.trials("subj01")
    reader.responses("subj01", np.array([0]))
    reader.stimuli(trials["nsd_id"].to_numpy()[:1])
    reader.atlas("subj01")
    reader.geometry("subj01")


@pytest.mark.parametrize("name", MINDEYE_FILES)
@pytest.mark.parametrize("harm", ["gone", "cut", "garbage"])
def test_damaged_mindeye_files_are_named(pristine: Tree, tmp_path: Path, name: str, harm: str) -> None:
    root = write_mindeye(pristine, tmp_path / "m", anatomy=name != "brain_region_masks.hdf5")
    file = root / name
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:90] if harm == "cut" else b"nothing of the kind")
    expected = "no subject 'subj01' in .*betas_all_subj" if (name, harm) == (MINDEYE_FILES[0], "gone") else re.escape(name)
    with pytest.raises(HavirError, match=expected) as caught:
        ask_everything(MindEye(root))
    assert "download" in str(caught.value) or harm == "gone"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_hdf5(MINDEYE_FILES[0], "betas", (1500, 6), "f8"), r"expected float32 \(trials, voxels\)"),
        (damage_hdf5(MINDEYE_FILES[0], "betas", (1500,), "f4"), r"expected float32 \(trials, voxels\)"),
        (damage_hdf5(MINDEYE_FILES[0], "betas", (1500, 7), "f4"), "have 7 voxels but its nsdgeneral.nii.gz labels 6; one of them is of another subject"),
        (damage_hdf5(MINDEYE_FILES[1], "subj01", (1499,), "i8"), "expected one nsd_id for each of 1500 trials"),
        (damage_hdf5(MINDEYE_FILES[1], "subj02", (1500,), "i8"), "holds no data set 'subj01', found subj02"),
        (damage_hdf5(MINDEYE_FILES[2], "images", (9, 224, 224, 3), "f2"), r"expected float16 \(pictures, 3, 224, 224\)"),
        (lambda root: np.save(root / "shared1000.npy", np.zeros(1000, np.bool_)), r"expected bool \(73000,\)"),
    ],
)
def test_mindeye_files_of_another_shape(mindeye: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(mindeye)
    with pytest.raises(DataInvalid, match=sentence):
        ask_everything(MindEye(mindeye))


def test_mindeye_masks_of_another_subject(pristine: Tree, tmp_path: Path) -> None:
    root = write_mindeye(pristine, tmp_path / "m", anatomy=False)
    with h5py.File(root / "brain_region_masks.hdf5", "w") as file:
        file.create_group("subj01").create_dataset("V1", data=np.ones(9, np.bool_))
    with pytest.raises(DataInvalid, match=r"do not fit its 6 voxels \(V1 has shape \(9,\)\).*another subject"):
        MindEye(root).atlas("subj01")


def test_challenge_vertices_lie_on_fsaverage(challenge: Path) -> None:
    reader = Algonauts(challenge)
    geometry, mapped = reader.geometry("subj01"), reader.surface("subj01")
    left = np.load(challenge / "subj01/roi_masks/lh.all-vertices_fsaverage_space.npy")
    np.testing.assert_array_equal(geometry.flat_index[: VERTICES[0]], np.flatnonzero(left))
    values = np.arange(sum(VERTICES), dtype=np.float32) + 1
    drawn = mapped.weights @ values
    assert np.count_nonzero(drawn) == sum(VERTICES) - 10, "five vertices a hemisphere lie beyond fsaverage5"
    assert drawn[geometry.flat_index[3]] == 4
    assert drawn[10_242 + geometry.flat_index[VERTICES[0] + 2] - 163_842] == VERTICES[0] + 3
    assert (reader.surface("subj01", "fsaverage").coverage > 0).sum() == sum(VERTICES)
    with pytest.raises(RequestError, match="mesh 'fsaverage3' is not available; there are fsaverage5"):
        reader.surface("subj01", "fsaverage3")


def test_challenge_trials_are_its_training_pictures(challenge: Path) -> None:
    reader = Algonauts(challenge)
    trials = reader.trials("subj01")
    assert trials["nsd_id"].tolist() == [number * 7 + 13 for number in range(PICTURES)]
    right = np.load(challenge / "subj01/training_split/training_fmri/rh_training_fmri.npy")
    np.testing.assert_array_equal(reader.responses("subj01", np.array([4, 1]))[:, VERTICES[0] :], right[[4, 1]])
    assert reader.stimuli(trials["nsd_id"].to_numpy()[[5, 2]])[:, 0, 0].tolist() == [[5, 5, 9], [2, 2, 9]]
    assert reader.stimuli(np.array([1]))[0, 0, 0].tolist() == [200, 200, 9], "test pictures can be seen"
    atlas = reader.atlas("subj01")
    assert atlas.absent == ("aTL-faces",)
    assert atlas.voxels("rh.V1v").sum() == (np.arange(VERTICES[1]) % 8 == 1).sum()


def test_what_the_challenge_cannot_do_is_said(challenge: Path) -> None:
    reader = Algonauts(challenge)
    with pytest.raises(DataMissing, match="has no responses to shared test pictures, so the split 'shared982' of subj01 is empty; use an NSD tree"):
        reader.split("subj01", "shared982")
    with pytest.raises(DataMissing, match="holds no ncsnr of its training responses"):
        reader.ncsnr("subj01")


def test_the_challenges_pickled_tables_are_never_opened(challenge: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "opened"),))

    for file in ("mapping_floc-faces.npy", "lh.floc-faces_challenge_space.npy"):
        np.save(challenge / "subj01/roi_masks" / file, np.array([Harm()], dtype=object), allow_pickle=True)
    with pytest.raises(DataInvalid, match=r"ROI mask cannot be read: .*lh\.floc-faces_challenge_space\.npy"):
        Algonauts(challenge).atlas("subj01")
    assert not (tmp_path / "opened").exists()


CHALLENGE_FILES = (
    "training_split/training_fmri/lh_training_fmri.npy",
    "training_split/training_fmri/rh_training_fmri.npy",
    "training_split/training_images/train-0001_nsd-00013.png",
    "roi_masks/rh.streams_challenge_space.npy",
    "roi_masks/lh.all-vertices_fsaverage_space.npy",
)


@pytest.mark.parametrize("name", CHALLENGE_FILES)
@pytest.mark.parametrize("harm", ["gone", "cut", "other shape"])
def test_damaged_challenge_files_are_named(challenge: Path, name: str, harm: str) -> None:
    file = challenge / "subj01" / name
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:60])
    elif file.suffix == ".png":
        Image.new("RGB", (300, 425)).save(file)
    else:
        np.save(file, np.zeros((3, 4), np.float32))
    expected = file.parent.name if file.suffix == ".png" or "fmri" in name else file.name
    with pytest.raises((DataMissing, DataInvalid), match=re.escape(expected)) as caught:
        ask_everything(Algonauts(challenge))
    assert "download" in str(caught.value) or "another subject" in str(caught.value)


def test_a_code_without_a_name_is_refused(challenge: Path) -> None:
    np.save(challenge / "subj01/roi_masks/rh.floc-places_challenge_space.npy", np.full(VERTICES[1], 4))
    with pytest.raises(DataInvalid, match="ROI mask floc-places of subj01 holds code 4, but the challenge names 3"):
        Algonauts(challenge).atlas("subj01")


def test_several_subjects_share_their_pictures(challenge: Path) -> None:
    shutil.copytree(challenge / "subj01", challenge / "subj05")
    reader = Algonauts(challenge)
    assert reader.subjects() == ("subj01", "subj05")
    assert reader.stimuli(np.array([13])).shape == (1, 425, 425, 3)
