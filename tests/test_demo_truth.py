"""The teaching world's data really hold the truth planted in them."""

import nibabel as nib
import numpy as np
import pytest
from demo_files import BETAS, SUBJECTS, betas, volume

from havir_explorer.data.demo import anatomy, brain, design, features, scenes, write

SESSION = design.TRIALS_PER_SESSION


@pytest.fixture(scope="module")
def responses(demo):
    return {subject: demo.responses(subject, np.arange(SESSION)) for subject in SUBJECTS}


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


@pytest.mark.slow
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
