"""The teaching world lies on disk in NSD's layout."""

import json

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from demo_files import BETAS, SUBJECTS, betas, volume
from scipy.io import loadmat

from havir_explorer.data import demo_folder, open_dataset
from havir_explorer.data.demo import anatomy, scenes, write


def test_folder_is_the_one_the_package_opens(world):
    assert world == demo_folder().resolve()
    assert world.name == write.WORLD == "demo-v1"
    about = json.loads((world / "synthetic.json").read_text())
    assert about["synthetic"] is True
    assert about["subjects"] == list(SUBJECTS)


def test_size_and_work_stay_within_the_budget(world):
    size = sum(path.stat().st_blocks * 512 for path in world.rglob("*") if path.is_file())
    assert 150e6 < size < 300e6
    built = json.loads((world / "synthetic.json").read_text())["built"]
    assert 0 < built["cpu_seconds"] < 120  # a minute of two cores; wall time depends on what else runs


def test_design_file_is_one_based_and_complete(world):
    content = loadmat(world / "nsddata/experiments/nsd/nsd_expdesign.mat")
    assert {"basiccnt", "masterordering", "sharedix", "stimpattern", "subjectim"} <= set(content)
    ordering, images, shared = content["masterordering"], content["subjectim"], content["sharedix"]
    assert ordering.shape == (1, 8250)
    assert (np.bincount(ordering.ravel().astype(int))[1:] == 3).all()
    assert ordering.min() == ordering[0, 0] == 1
    assert images.shape == (8, 2750)
    assert images.min() >= 1
    assert images.max() <= 73_000
    assert all(len(set(row)) == 2750 for row in images)
    assert np.array_equal(np.sort(shared.ravel()), np.sort(images[0, :100]))
    assert (images[:, :100] == images[0, :100]).all()
    assert not set(images[0, 100:]) & set(images[1, 100:])
    assert (content["stimpattern"].sum((1, 2)) == 750).all()


def test_stimulus_table_agrees_with_the_design(world, plan):
    table = pd.read_csv(world / "nsddata/experiments/nsd/nsd_stim_info_merged.csv", index_col=0)
    assert len(table) == 73_000
    assert (table["nsdId"] == np.arange(73_000)).all()
    assert table["shared1000"].sum() == 100
    for subject in (0, 1, 7):
        repeats = table[[f"subject{subject + 1}_rep{k}" for k in range(3)]].to_numpy()
        ids = plan.trials(subject)
        for trial in (0, 1, 749, 8249):
            assert trial + 1 in repeats[ids[trial]]
        assert (repeats > 0).sum() == 8250
        assert table[f"subject{subject + 1}"].sum() == 2750


def test_behaviour_has_a_row_a_trial(world, plan):
    table = pd.read_csv(world / "nsddata/ppdata/subj02/behav/responses.tsv", sep="\t")
    assert len(table) == 8250
    assert (table["73KID"] == plan.trials(1) + 1).all()
    assert table.groupby(["SESSION", "RUN", "TRIAL"]).size().max() == 1
    assert table["TRIAL"].min() == 1
    assert table["TRIAL"].max() == 63
    assert table["RUN"].max() == 12
    assert (table["ISOLD"] == (table.groupby("10KID").cumcount() > 0)).all()
    assert 0.6 < table["ISCORRECT"].mean() < 0.95


def test_pictures_and_captions_are_the_scenes(world, plan):
    with h5py.File(world / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        brick = file["imgBrick"]
        assert brick.shape == (73_000, 425, 425, 3)
        assert brick.dtype == np.uint8
        never = int(np.setdiff1d(np.arange(73_000), plan.shown)[0])
        assert (brick[never] == 127).all()
        for nsd_id in plan.shown[[0, 2000, -1]].tolist():
            assert np.array_equal(brick[nsd_id], scenes.draw(scenes.scene(nsd_id), 425))
        assert all((brick[nsd_id] != 127).any() for nsd_id in plan.shown[::500].tolist())
    dataset = open_dataset("demo")
    assert dataset.captions(int(plan.shown[7])) == scenes.captions(scenes.scene(int(plan.shown[7])))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_betas_have_nsds_layout(world, truth, subject):
    flat = truth[subject]["flat_index"]
    paths = sorted((world / BETAS.format(subject)).glob("betas_session*.hdf5"))
    assert [p.name for p in paths] == [f"betas_session{n:02d}.hdf5" for n in range(1, 12)]
    with h5py.File(paths[0]) as file:
        assert file["betas"].shape == (750, 83, 104, 81)
        assert file["betas"].dtype == np.int16
        assert file["betas"].chunks == (750, 1, 1, 1)
        assert file["betas"].id.get_num_chunks() == len(flat)
    some = betas(world, subject, 11, flat[::400])
    assert (some.std(0) > 0).all()
    assert 0.5 < some.std() / 300 < 4  # percent signal change, as measured betas have
    outside = np.setdiff1d(np.arange(0, np.prod(anatomy.SHAPE), 60_007), flat)
    assert (betas(world, subject, 1, outside) == 0).all()


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("file", anatomy.ROI_NAMES)
def test_roi_volumes_split_by_hemisphere_and_carry_names(world, subject, file):
    both, left, right = (volume(world, subject, f"roi/{prefix}{file}") for prefix in ("", "lh.", "rh."))
    assert both.shape == anatomy.SHAPE
    assert np.issubdtype(both.dtype, np.integer)
    names = (world / f"nsddata/freesurfer/{subject}/label/{file}.mgz.ctab").read_text().splitlines()
    assert names[0] == "0 Unknown"
    assert names[1:] == [f"{code} {name}" for code, name in enumerate(anatomy.ROI_NAMES[file], 1)]
    assert set(np.unique(both)) <= {-1, 0, *range(1, len(names))}
    assert not ((left >= 0) & (right >= 0)).any()
    assert np.array_equal(np.maximum(left, right), both)
    assert np.nonzero(left > 0)[0].mean() < np.nonzero(right > 0)[0].mean()
    least = 40 if file == "streams" else 12
    for code in range(1, len(names)):
        assert (left == code).sum() >= least, names[code]
        assert (right == code).sum() >= least, names[code]
        assert (both == code).sum() >= 36


def test_every_region_lies_among_the_written_voxels_and_the_subjects_differ(world, truth):
    counts = {}
    for subject in SUBJECTS:
        union = np.logical_or.reduce([volume(world, subject, f"roi/{file}") > 0 for file in anatomy.ROI_NAMES])
        assert np.array_equal(np.flatnonzero(union), truth[subject]["flat_index"])
        assert 5000 < union.sum() < 7000
        visual = volume(world, subject, "roi/prf-visualrois")
        assert np.array_equal(visual.ravel()[truth[subject]["flat_index"]] > 0, truth[subject]["spatial"])
        assert np.array_equal(visual > 0, volume(world, subject, "roi/prf-eccrois") > 0)
        counts[subject] = np.bincount(visual[visual > 0])
        general, places = volume(world, subject, "roi/nsdgeneral"), volume(world, subject, "roi/floc-places")
        assert ((places == 3) & (general > 0)).sum() < 0.1 * (places == 3).sum()  # RSC lies outside nsdgeneral
    assert not np.array_equal(*counts.values())


def test_volumes_and_transforms_meet(world):
    general = volume(world, "subj01", "roi/nsdgeneral")
    assert volume(world, "subj01", "brainmask")[general > 0].mean() > 0.97
    assert volume(world, "subj01", "T1_to_func1pt8mm").shape == volume(world, "subj01", "mean").shape == anatomy.SHAPE
    folder = world / "nsddata/ppdata/subj01/transforms"
    for side, mine in (("lh", slice(0, 41)), ("rh", slice(40, 81))):
        index = np.asarray(nib.load(folder / f"{side}.white-to-fsaverage.mgz").dataobj).squeeze()
        assert np.array_equal(index, np.arange(1, 10_243))
        for layer in (1, 2, 3):
            points = np.asarray(nib.load(folder / f"{side}.func1pt8-to-layerB{layer}.mgz").dataobj).squeeze()
            assert points.shape == (10_242, 3)
            valid = points[:, 0] != 9999
            assert 0 < (~valid).sum() < 20
            assert (points[~valid] == 9999).all()
            assert points[valid].min() >= 1
            assert (points[valid] <= anatomy.SHAPE).all()
            hit = np.rint(points[valid]).astype(int) - 1
            cortex = general[tuple(hit.T)] >= 0
            assert cortex.mean() > 0.97
            assert (hit[general[tuple(hit.T)] > 0][:, 0] >= mine.start).all()
            assert (hit[general[tuple(hit.T)] > 0][:, 0] < mine.stop).all()
