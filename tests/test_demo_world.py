"""The teaching world: NSD's layout on disk, planted truth that the data really hold, and a build that is all or nothing."""

import errno
import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from havir_explorer.data import demo_folder, open_dataset
from havir_explorer.data.demo import anatomy, brain, design, features, scenes, write
from havir_explorer.errors import Cancelled, OutputError

SUBJECTS = ("subj01", "subj02")
BETAS = "nsddata_betas/ppdata/{}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
SESSION = design.TRIALS_PER_SESSION


@pytest.fixture(scope="module")
def world():
    return open_dataset("demo").root


@pytest.fixture(scope="module")
def truth(world):
    return {subject: np.load(world / "truth" / f"{subject}.npz") for subject in SUBJECTS}


@pytest.fixture(scope="module")
def plan():
    return design.design()


@pytest.fixture(scope="module")
def responses(world):
    return {subject: open_dataset("demo").responses(subject, np.arange(SESSION)) for subject in SUBJECTS}


def volume(world, subject, name):
    return np.asarray(nib.load(world / "nsddata/ppdata" / subject / "func1pt8mm" / f"{name}.nii.gz").dataobj)


def betas(world, subject, session, flat_index):
    x, y, z = np.unravel_index(flat_index, anatomy.SHAPE)
    with h5py.File(world / BETAS.format(subject) / f"betas_session{session:02d}.hdf5") as file:
        return np.stack([file["betas"][:, k, j, i] for i, j, k in zip(x, y, z, strict=True)], axis=1)


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


@pytest.mark.parametrize("subject", SUBJECTS)
def test_receptive_fields_are_contralateral_and_retinotopic(world, truth, subject):
    known = truth[subject]
    spatial, right, x, y, size = (known[k] for k in ("spatial", "right", "rf_x", "rf_y", "rf_sigma"))
    assert (np.sign(x[spatial]) == np.where(right, -1, 1)[spatial]).all()
    codes = volume(world, subject, "roi/prf-visualrois").ravel()[known["flat_index"]]
    assert all((y[codes == code] > 0).all() for code in (1, 3, 5))
    assert all((y[codes == code] < 0).all() for code in (2, 4, 6))
    assert (y[codes == 7] > 0).any()
    assert (y[codes == 7] < 0).any()
    means = [size[np.isin(codes, pair)].mean() for pair in ((1, 2), (3, 4), (5, 6), (7,))]
    assert means == sorted(means)
    eccentricity = np.hypot(x, y)
    assert np.corrcoef(eccentricity[np.isin(codes, (1, 2))], size[np.isin(codes, (1, 2))])[0, 1] > 0.6
    labels = volume(world, subject, "roi/prf-eccrois").ravel()[known["flat_index"]]
    assert np.array_equal(labels[spatial], 1 + np.digitize(eccentricity, (0.5, 1, 2, 4))[spatial])


@pytest.mark.parametrize("subject", SUBJECTS)
def test_measured_responses_follow_the_opposite_half_of_the_picture(truth, responses, plan, subject):
    """Independent of the wiring's own numbers: which half of the picture does a voxel's response correlate with?"""
    ids = plan.trials(SUBJECTS.index(subject))[:SESSION]
    pictures = np.stack([scenes.draw(scenes.scene(int(i)), 64) for i in ids]).astype(np.float32)
    pictures = pictures.reshape(SESSION, 8, 8, 8, 8, 3).mean((2, 4))
    pictures = (pictures - pictures.mean(0)) / pictures.std(0)
    known = truth[subject]
    use = known["spatial"] & (known["ncsnr"] > 0.4) & (np.abs(known["rf_x"]) > 2) & (np.hypot(known["rf_x"], known["rf_y"]) < 5)
    correlation = responses[subject][:, use].T @ pictures.reshape(SESSION, -1) / SESSION
    power = np.square(correlation.reshape(-1, 8, 8, 3)).sum((1, 3))
    leftward = power[:, :4].sum(1) > power[:, 4:].sum(1)
    assert use.sum() > 100
    assert (leftward == known["right"][use]).mean() > 0.8  # not all: backgrounds tie the two halves together


@pytest.mark.parametrize("subject", SUBJECTS)
def test_floc_regions_prefer_their_category(world, truth, responses, plan, subject):
    ids = plan.trials(SUBJECTS.index(subject))[:SESSION]
    present = np.array([[any(t.kind == kind for t in scenes.scene(int(i)).things) for kind in scenes.KINDS] for i in ids])
    for file, kind in (("floc-faces", "face"), ("floc-bodies", "person"), ("floc-places", "house"), ("floc-words", "sign")):
        mine = volume(world, subject, f"roi/{file}").ravel()[truth[subject]["flat_index"]] > 0
        mean = responses[subject][:, mine].mean(1)
        contrast = [mean[has].mean() - mean[~has].mean() for has in present.T]
        assert scenes.KINDS[int(np.argmax(contrast))] == kind
        assert max(contrast) > 0.2


@pytest.mark.parametrize("subject", SUBJECTS)
def test_noise_ceilings_look_like_nsds(world, truth, subject):
    path = world / BETAS.format(subject) / "ncsnr.nii.gz"
    measured = np.asarray(nib.load(path).dataobj).ravel()
    assert measured.dtype == np.float32
    flat = truth[subject]["flat_index"]
    assert (measured[np.setdiff1d(np.arange(len(measured)), flat)] == 0).all()
    n = measured[flat]
    ceiling = 100 * n**2 / (n**2 + 1 / 3)
    assert 20 < np.median(ceiling) < 35
    assert 0.005 < (ceiling > 60).mean() < 0.08
    assert 65 < ceiling.max() < 85
    assert np.corrcoef(n, truth[subject]["ncsnr"])[0, 1] > 0.95
    assert abs(np.median(n - truth[subject]["ncsnr"])) < 0.03


def test_ncsnr_estimate_is_the_formula_on_known_numbers():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(4000, 1, 1)) * np.array([0.5, 1.0])
    trials = signal + rng.normal(size=(4000, 3, 2))
    trials = (trials - trials.mean((0, 1))) / trials.std((0, 1))
    variance = trials.var(1, ddof=1).mean(0)
    estimate = np.sqrt((1 - variance) / variance)
    assert write.measured_ncsnr(trials.sum(1).astype(np.float32)) == pytest.approx(estimate, rel=1e-4)
    assert estimate == pytest.approx([0.5, 1.0], abs=0.05)


def test_the_same_subject_is_wired_and_responds_the_same_again(world, truth, plan):
    who = brain.INDIVIDUALS[0]
    wiring = brain.wire(anatomy.anatomy(anatomy.load_cortex(), who.seed, who.scale), who)
    for name in ("flat_index", "right", "channels", "semantic", "kinds", "ncsnr", "rf_x"):
        np.testing.assert_array_equal(getattr(wiring, name), truth["subj01"][name])
    seen = [scenes.scene(int(i)) for i in plan.ids[0]]
    maps = features.channel_maps(np.stack([scenes.draw(one, features.SIDE) for one in seen]))
    signal = brain.signals(wiring, maps, features.semantic_features(seen), seen)
    again = brain.session(wiring, signal[plan.ordering[:SESSION] - 1], (who.seed, 2, 0))
    some = np.arange(0, len(wiring.flat_index), 37)
    written = betas(world, "subj01", 1, wiring.flat_index[some])
    assert np.abs(again[:, some].astype(int) - written).max() <= 1  # a last bit of the matrix product may round otherwise
    assert signal.std(0) == pytest.approx(np.ones(signal.shape[1]), abs=1e-3)


def test_channels_see_what_they_are_named_after():
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[0, :, ::4] = stripes[0, :, 1::4] = 255  # vertical stripes, period 4: energy along x
    stripes[1, ::4] = stripes[1, 1::4] = 255
    maps = features.channel_maps(stripes)[:, :, [120]].squeeze(-1)  # a cell in the middle
    names = list(features.CHANNELS)
    across, down = names.index("energy 0 deg period 4 px"), names.index("energy 90 deg period 4 px")
    assert maps[0, across] > 5 * maps[0, down]
    assert maps[1, down] > 5 * maps[1, across]
    red = np.zeros((1, 64, 64, 3), np.uint8)
    red[..., 0] = 255
    assert features.channel_maps(red)[0, names.index("red-green")] == pytest.approx(np.ones(256))


@pytest.mark.parametrize("after", [1, 4])
def test_a_cancelled_build_leaves_nothing(tmp_path, after):
    calls = []

    def progress(share, _words):
        calls.append(share)
        if len(calls) == after:
            raise Cancelled

    with pytest.raises(Cancelled):
        write.write_world(tmp_path / "cache" / "world", progress)
    assert list((tmp_path / "cache").iterdir()) == []
    assert calls == sorted(calls)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "savemat", full)
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        write.write_world(tmp_path / "world", lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_hdf5_says_a_full_disk_in_its_own_words(tmp_path, monkeypatch):
    def full(*_args, **_options):
        msg = "Can't decrement id ref count (file write failed: errno = 28, error message = 'No space left on device')"
        raise RuntimeError(msg)

    monkeypatch.setattr(write, "_write_design", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write.write_world(tmp_path / "world", lambda *_: None)


def test_a_fault_of_ours_is_not_called_a_full_disk(tmp_path, monkeypatch):
    def wrong(*_args, **_options):
        raise RuntimeError("something else")  # noqa: EM101, TRY003

    monkeypatch.setattr(write, "_write_design", wrong)
    with pytest.raises(RuntimeError, match="something else"):
        write.write_world(tmp_path / "world", lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written to") as problem:
        write.write_world(blocker / "world", lambda *_: None)
    assert "HAVIR_CACHE" in str(problem.value)


def test_the_world_of_a_faster_process_is_kept(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    (theirs / "synthetic.json").write_text("{}")
    write._put_in_place(ours, theirs)
    assert (theirs / "synthetic.json").is_file()
    (theirs / "synthetic.json").rename(theirs / "something else")
    with pytest.raises(OSError, match=r"."):
        write._put_in_place(ours, theirs)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    from havir_explorer.paths import cache_folder

    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("HAVIR_CACHE", "")
    assert isinstance(cache_folder(), Path)
    assert cache_folder().name == "havir_explorer"
