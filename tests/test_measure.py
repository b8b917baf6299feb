"""Scores against scikit-image, SciPy and cases that can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from scipy import stats
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from havir_explorer import measure
from havir_explorer.errors import RequestError, WeightsInvalid, WeightsMissing
from havir_explorer.measure.pixels import crossed
from havir_explorer.records import FloatArray, UInt8Array


@pytest.fixture
def pictures() -> UInt8Array:
    return np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), dtype=np.uint8)


@pytest.fixture
def stimuli() -> UInt8Array:
    return np.random.default_rng(1).integers(0, 256, (6, 24, 32, 3), dtype=np.uint8)


def mean_colour(pictures: UInt8Array) -> FloatArray:
    return pictures.mean((1, 2)).astype(np.float32)


def test_pixcorr_is_pearsons_r(pictures: UInt8Array, stimuli: UInt8Array) -> None:
    expected = [stats.pearsonr(a.ravel().astype(float), b.ravel().astype(float)).statistic for a, b in zip(pictures, stimuli, strict=True)]
    assert np.allclose(measure.pixcorr(pictures, stimuli), expected, atol=1e-6)


def test_pixcorr_of_a_negative_is_minus_one_and_of_a_flat_picture_zero(pictures: UInt8Array) -> None:
    assert np.allclose(measure.pixcorr(pictures, 255 - pictures), -1, atol=1e-6)
    assert np.array_equal(measure.pixcorr(np.full_like(pictures, 77), pictures), np.zeros(6))


def test_ssim_is_scikit_images(pictures: UInt8Array, stimuli: UInt8Array) -> None:
    mixed = (0.7 * stimuli + 0.3 * pictures).astype(np.uint8)
    expected = [
        structural_similarity(rgb2gray(a), rgb2gray(b), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
        for a, b in zip(mixed, stimuli, strict=True)
    ]
    assert np.allclose(measure.ssim(mixed, stimuli), expected, atol=1e-5)
    assert np.allclose(measure.ssim(stimuli, stimuli), 1)


def test_large_pictures_are_compared_at_425_pixels() -> None:
    rng = np.random.default_rng(2)
    left, right = rng.integers(0, 256, (2, 1, 150, 150, 3), dtype=np.uint8)

    def large(picture: UInt8Array) -> FloatArray:
        pixels = torch.from_numpy(picture).permute(0, 3, 1, 2) / 255
        for side in (256, 425):
            pixels = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear")
        return pixels.numpy().ravel()

    at_425 = stats.pearsonr(large(left), large(right)).statistic
    assert measure.pixcorr(left, right)[0] == pytest.approx(at_425, abs=1e-5)
    assert abs(stats.pearsonr(left.ravel(), right.ravel()).statistic - at_425) > 1e-4


def test_pictures_of_two_sizes_are_refused(pictures: UInt8Array) -> None:
    with pytest.raises(RequestError, match="of one shape"):
        measure.ssim(pictures, pictures[:, :12])


def test_cosine_by_hand() -> None:
    left = np.array([[1, 0], [1, 1], [0, 0]], np.float32)
    right = np.array([[3, 0], [-1, 0], [1, 1]], np.float32)
    assert measure.cosine(left, right) == pytest.approx([1, -(0.5**0.5), 0])


def test_two_way_of_identical_features_is_one_and_of_unrelated_ones_chance() -> None:
    features = np.random.default_rng(3).normal(size=(300, 20)).astype(np.float32)
    assert np.array_equal(measure.two_way(features, features), np.ones(300))
    assert measure.two_way(features, np.roll(features, 1, axis=0)).mean() == pytest.approx(0.5, abs=0.05)


def test_two_way_is_columnwise_by_the_definition() -> None:
    rng = np.random.default_rng(4)
    pictures, stimuli = rng.normal(size=(2, 7, 5)).astype(np.float32)
    for j, found in enumerate(measure.two_way(pictures, stimuli)):
        own = stats.pearsonr(stimuli[j], pictures[j]).statistic
        beaten = [stats.pearsonr(stimuli[i], pictures[j]).statistic < own for i in range(7) if i != j]
        assert found == pytest.approx(np.mean(beaten))
        assert measure.two_way_one(pictures[j], stimuli[j], np.delete(stimuli, j, 0)) == pytest.approx(found)


def test_two_way_counts_ties_as_misses() -> None:
    one = np.array([1.0, 2.0, 4.0], np.float32)
    assert np.array_equal(measure.two_way(np.stack((one, one)), np.stack((one, one))), [0, 0])
    assert measure.two_way_one(one, one, one[None]) == 0


def test_two_way_needs_two_pictures() -> None:
    with pytest.raises(RequestError, match="at least 2 pictures"):
        measure.two_way(np.ones((1, 3), np.float32), np.ones((1, 3), np.float32))


def test_score_of_a_perfect_picture(stimuli: UInt8Array) -> None:
    scores = {s.name: s for s in measure.score(stimuli[:1], stimuli[0], mean_colour, stimuli[1:])[0]}
    assert list(scores) == list(measure.METRICS) == ["PixCorr", "SSIM", "CLIP", "CLIP-cos"]
    assert [scores[n].value for n in scores] == pytest.approx([1, 1, 1, 1])
    assert scores["CLIP"].chance == 0.5
    assert scores["PixCorr"].chance == pytest.approx(measure.pixcorr(np.repeat(stimuli[:1], 5, 0), stimuli[1:]).mean())
    assert scores["SSIM"].chance == pytest.approx(measure.ssim(np.repeat(stimuli[:1], 5, 0), stimuli[1:]).mean(), abs=1e-6)
    assert "5 other stimuli" in scores["SSIM"].protocol


def test_kept_features_of_the_others_change_nothing(pictures: UInt8Array, stimuli: UInt8Array) -> None:
    fresh = measure.score(pictures[:2], stimuli[0], mean_colour, stimuli[1:])
    assert measure.score(pictures[:2], stimuli[0], mean_colour, stimuli[1:], other_features=mean_colour(stimuli[1:])) == fresh


def test_pictures_scored_together_have_the_scores_they_have_alone(pictures: UInt8Array, stimuli: UInt8Array) -> None:
    together = measure.score(pictures, stimuli[0], mean_colour, stimuli[1:])
    alone = [measure.score(picture[None], stimuli[0], mean_colour, stimuli[1:])[0] for picture in pictures]
    assert len({scores[0].value for scores in together}) == len(pictures)
    for one, other in zip(together, alone, strict=True):
        assert [(s.name, s.protocol) for s in one] == [(s.name, s.protocol) for s in other]
        np.testing.assert_allclose([(s.value, s.chance) for s in one], [(s.value, s.chance) for s in other], atol=1e-6)


def test_score_needs_other_stimuli(stimuli: UInt8Array) -> None:
    with pytest.raises(RequestError, match="at least one other test stimulus"):
        measure.score(stimuli[:1], stimuli[0], mean_colour, stimuli[:0])


# OpenCLIP


def test_open_clip_features_are_the_towers_embeddings(tiny_tower: Path, pictures: UInt8Array) -> None:
    square = pictures[:, :, :24].repeat(2, axis=1).repeat(2, axis=2)[:, :32, :32]
    found = measure.open_clip_tower("tiny-tower", tiny_tower).features(square)
    tower = open_clip.create_model("tiny-tower", pretrained=str(tiny_tower)).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        expected = tower.encode_image((torch.from_numpy(square.copy()).permute(0, 3, 1, 2) / 255 - mean) / std)
    assert found.shape == (6, 8)
    assert np.allclose(found, expected.numpy(), atol=1e-5)


def test_open_clip_features_resize_to_the_towers_side(tiny_tower: Path, pictures: UInt8Array) -> None:
    features = measure.open_clip_tower("tiny-tower", tiny_tower).features
    flat = np.full((1, 32, 32, 3), 90, np.uint8)
    assert np.allclose(features(np.full((1, 64, 64, 3), 90, np.uint8)), features(flat), atol=1e-5)


def test_open_clip_says_what_is_wrong(tiny_tower: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="knows no model 'no-such-tower'"):
        measure.open_clip_tower("no-such-tower", tiny_tower)
    with pytest.raises(WeightsMissing, match="neither a checkpoint file nor a pretrained tag"):
        measure.open_clip_tower("tiny-tower", tmp_path / "absent.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsInvalid, match="does not fit tiny-tower"):
        measure.open_clip_tower("tiny-tower", tmp_path / "other.pt")


def test_an_open_clip_tower_is_named_with_its_checkpoint(tiny_tower: Path) -> None:
    assert measure.open_clip_tower("tiny-tower", tiny_tower).name == f"OpenCLIP tiny-tower ({tiny_tower.name})"


def test_every_picture_is_compared_with_every_stimulus(pictures: UInt8Array, stimuli: UInt8Array) -> None:
    for table, compare in zip(crossed(pictures[:3], stimuli), (measure.pixcorr, measure.ssim), strict=True):
        assert table.shape == (3, len(stimuli))
        for row, picture in zip(table, pictures, strict=False):
            np.testing.assert_allclose(row, compare(np.repeat(picture[None], len(stimuli), 0), stimuli), atol=1e-6)


def test_large_pictures_take_their_chance_from_ten_stimuli() -> None:
    rng = np.random.default_rng(0)
    others = rng.integers(0, 256, (40, 512, 16, 3), dtype=np.uint8).repeat(32, axis=2)
    picture, stimulus = others[0], others[1]

    def coarse(shown: UInt8Array) -> FloatArray:
        return shown[:, ::64, ::64].reshape(len(shown), -1).astype(np.float32)

    scores = {score.name: score for score in measure.score(picture[None], stimulus, coarse, others)[0]}
    assert "chance is the mean over 10 other stimuli" in scores["SSIM"].protocol
    assert "chance is the mean over 40 other stimuli" in scores["CLIP-cos"].protocol
    tenth = others[np.linspace(0, 39, 10).round().astype(int)]
    assert scores["SSIM"].chance == pytest.approx(measure.ssim(np.repeat(picture[None], 10, 0), tenth).mean(), abs=1e-6)
