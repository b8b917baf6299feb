"""Masks on eight voxels: every answer can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from havir_explorer import masks
from havir_explorer.data.dataset import Atlas, Roi
from havir_explorer.errors import MaskError, RequestError
from havir_explorer.records import Mask

#            V1v  V1v  V1d  V1d  FFA  FFA  FFA  none
V1V = np.array([1, 1, 0, 0, 0, 0, 0, 0], bool)
V1D = np.array([0, 0, 1, 1, 0, 0, 0, 0], bool)
FFA = np.array([0, 0, 0, 0, 1, 1, 1, 0], bool)
RIGHT = np.array([0, 1, 0, 1, 0, 1, 1, 1], bool)
SPATIAL = V1V | V1D
SEMANTIC = ~SPATIAL


@pytest.fixture
def atlas() -> Atlas:
    return Atlas((Roi("V1v", "prf-visualrois", V1V), Roi("V1d", "prf-visualrois", V1D), Roi("FFA-1", "floc-faces", FFA)), RIGHT)


@pytest.fixture
def responses() -> np.ndarray:
    return np.arange(1, 17, dtype=np.float32).reshape(2, 8)


@pytest.mark.parametrize(
    ("mask", "gain", "replaced"),
    [
        (Mask(), [1, 1, 1, 1, 1, 1, 1, 1], []),
        (Mask(mute=("V1",)), [1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 2, 3]),
        (Mask(mute=("rh.V1", "lh.FFA-1")), [1, 1, 1, 1, 1, 1, 1, 1], [1, 3, 4]),
        (Mask(keep=("V1v", "floc-faces")), [1, 1, 1, 1, 1, 1, 1, 1], [2, 3, 7]),
        (Mask(keep=("V1",), mute=("V1d",)), [1, 1, 1, 1, 1, 1, 1, 1], [2, 3, 4, 5, 6, 7]),
        (Mask(gains=(("V1", 2), ("rh.V1", 1.5), ("FFA-1", 0))), [2, 3, 2, 3, 0, 0, 0, 1], []),
        (Mask(mute=("FFA-1",), gains=(("FFA-1", 4),)), [1, 1, 1, 1, 4, 4, 4, 1], [4, 5, 6]),
    ],
)
def test_gains_count_voxels(atlas: Atlas, mask: Mask, gain: list[float], replaced: list[int]) -> None:
    got_gain, got_replaced = masks.gains(mask, atlas)
    assert got_gain.dtype == np.float32
    assert got_gain.tolist() == gain
    assert np.flatnonzero(got_replaced).tolist() == replaced


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Mask(mute=("V1",), keep=("V1",)), r"\(keep V1; mute V1\) leaves none of the 8 voxels"),
        (Mask(keep=("lh.V1v",), gains=(("V1v", 0),)), r"\(keep lh\.V1v; gain V1v=0\) leaves none"),
    ],
)
def test_a_mask_that_leaves_no_voxel(atlas: Atlas, responses: np.ndarray, mask: Mask, message: str) -> None:
    for call in (lambda: masks.gains(mask, atlas), lambda: masks.apply(responses, mask, atlas), lambda: masks.reach(mask, atlas, SPATIAL, SEMANTIC)):
        with pytest.raises(MaskError, match=message):
            call()


@pytest.mark.parametrize("mask", [Mask(mute=("FFA1",)), Mask(keep=("FFA1",)), Mask(gains=(("FFA1", 2),))])
def test_an_unknown_roi_lists_the_nearest(atlas: Atlas, mask: Mask) -> None:
    with pytest.raises(RequestError, match="no ROI is called 'FFA1'; nearest: FFA-1"):
        masks.gains(mask, atlas)


def test_an_empty_mask_changes_nothing_but_the_memory(atlas: Atlas, responses: np.ndarray) -> None:
    got = masks.apply(responses, Mask(), atlas)
    np.testing.assert_array_equal(got, responses)
    assert not np.shares_memory(got, responses)


def test_the_mean_is_zero_and_the_input_is_left_alone(atlas: Atlas, responses: np.ndarray) -> None:
    before = responses.copy()
    got = masks.apply(responses, Mask(mute=("V1",), gains=(("FFA-1", 2), ("V1v", 3))), atlas)
    assert got.tolist() == [[0, 0, 0, 0, 10, 12, 14, 8], [0, 0, 0, 0, 26, 28, 30, 16]]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(responses, before)


@pytest.mark.parametrize("other", [-np.arange(8.0, dtype=np.float32), -np.tile(np.arange(8.0, dtype=np.float32), (2, 1))])
def test_another_trial_takes_the_place(atlas: Atlas, responses: np.ndarray, other: np.ndarray) -> None:
    got = masks.apply(responses, Mask(mute=("FFA-1",), fill="trial", gains=(("FFA-1", 2),)), atlas, other=other)
    assert got.tolist() == [[1, 2, 3, 4, -4, -5, -6, 8], [9, 10, 11, 12, -4, -5, -6, 16]]


@pytest.mark.parametrize(
    ("other", "found"), [(None, "none were given"), (np.zeros(7, np.float32), r"got shape \(7,\)"), (np.zeros((3, 8), np.float32), r"\(3, 8\)")]
)
def test_another_trial_must_be_given_whole(atlas: Atlas, responses: np.ndarray, other: np.ndarray | None, found: str) -> None:
    with pytest.raises(MaskError, match=f"needs the other trial's responses for the same 8 voxels; .*{found}"):
        masks.apply(responses, Mask(mute=("V1",), fill="trial"), atlas, other=other)


def test_gains_alone_need_no_other_trial(atlas: Atlas, responses: np.ndarray) -> None:
    assert masks.apply(responses, Mask(gains=(("V1v", 2),), fill="trial"), atlas)[0, :3].tolist() == [2, 4, 3]


def test_noise_depends_on_its_seed_alone(atlas: Atlas, responses: np.ndarray) -> None:
    first = masks.apply(responses, Mask(mute=("V1",), fill="noise", fill_seed=5), atlas)
    alone = masks.apply(responses[1:], Mask(mute=("V1d", "FFA-1"), fill="noise", fill_seed=5), atlas)
    other = masks.apply(responses, Mask(mute=("V1",), fill="noise", fill_seed=6), atlas)
    np.testing.assert_array_equal(first[:, 4:], responses[:, 4:])
    np.testing.assert_array_equal(first[1, V1D], alone[0, V1D])  # another batch, another mask: the same noise
    assert (first[:, SPATIAL] != other[:, SPATIAL]).all()


def test_noise_is_unit_normal() -> None:
    drawn = masks.replace(np.full((1, 20_000), 9, np.float32), np.ones(20_000, bool), "noise", seed=1)
    assert abs(drawn.mean()) < 0.03  # four standard errors
    assert abs(drawn.std() - 1) < 0.02


def test_responses_of_another_subject(atlas: Atlas) -> None:
    with pytest.raises(MaskError, match=r"responses have shape \(2, 7\), but the atlas names 8 voxels"):
        masks.apply(np.zeros((2, 7), np.float32), Mask(), atlas)


def test_a_control_matches_the_size_outside_the_roi(atlas: Atlas) -> None:
    drawn = [masks.control("V1v", atlas, SPATIAL, seed) for seed in range(20)]
    assert {tuple(np.flatnonzero(d).tolist()) for d in drawn} == {(2, 3)}
    drawn = [masks.control("lh.V1v", atlas, SPATIAL, seed) for seed in range(40)]
    assert {tuple(np.flatnonzero(d).tolist()) for d in drawn} == {(1,), (2,), (3,)}
    np.testing.assert_array_equal(masks.control("lh.V1v", atlas, SPATIAL, 3), drawn[3])


def test_a_control_reaches_into_the_roi_only_for_want_of_voxels(atlas: Atlas) -> None:
    drawn = [masks.control(FFA, atlas, SEMANTIC, seed) for seed in range(40)]
    assert all(d.sum() == 3 and d[7] and not d[SPATIAL].any() for d in drawn)  # the size of FFA-1
    assert len({tuple(np.flatnonzero(d).tolist()) for d in drawn}) == 3  # any two of its three voxels fill up


def test_a_control_needs_a_size(atlas: Atlas) -> None:
    with pytest.raises(MaskError, match="'FFA-1' has no voxel in the branch"):
        masks.control("FFA-1", atlas, SPATIAL, 0)


@pytest.mark.parametrize(
    ("mask", "branches"),
    [
        (Mask(), ()),
        (Mask(mute=("V1v",)), ("structural",)),
        (Mask(mute=("FFA-1",)), ("semantic",)),
        (Mask(keep=("FFA-1",)), ("structural", "semantic")),
        (Mask(gains=(("V1", 1.0),)), ()),
        (Mask(gains=(("V1", 1.1), ("FFA-1", 0))), ("structural", "semantic")),
    ],
)
def test_reach_names_the_branches_that_can_change(atlas: Atlas, mask: Mask, branches: tuple[str, ...]) -> None:
    assert masks.reach(mask, atlas, SPATIAL, SEMANTIC) == branches
