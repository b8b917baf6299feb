"""Which voxels each branch reads: named splits and chosen ROIs on a subject whose voxels can be counted."""

from __future__ import annotations

import numpy as np
import pytest
from small_world import OTHER, SEMANTIC, SPATIAL, VOXELS, SmallWorld

from havir_explorer.data.dataset import Atlas, Roi
from havir_explorer.decode.split import Choice, choose, default_split, parse
from havir_explorer.errors import MaskError, RequestError, WeightsInvalid


def region(name: str, file: str, *voxels: int) -> Roi:
    return Roi(name, file, np.isin(np.arange(10), voxels))


@pytest.fixture
def atlas() -> Atlas:
    """V1 is 0 to 3 (3 outside nsdgeneral), FFA-1 4 and 9 (9 outside, as PPA, which is V1's too), streams cover 0 to 7."""
    rois = (
        region("V1v", "prf-visualrois", 0, 1),
        region("V1d", "prf-visualrois", 2, 3),
        region("FFA-1", "floc-faces", 4, 9),
        region("PPA", "floc-places", 3),
        region("ventral", "Kastner2015", 8),
        region("early", "streams", 0, 1, 2),
        region("midventral", "streams", 3),
        region("ventral", "streams", 4, 5),
        region("parietal", "streams", 6, 7),
        region("nsdgeneral", "nsdgeneral", 0, 1, 2, 4, 5, 6),
    )
    return Atlas(rois, np.zeros(10, np.bool_), absent=("RSC",))


@pytest.mark.parametrize(
    ("choice", "spatial", "semantic"),
    [
        (Choice(), [0, 1, 2], [4, 5, 6, 9]),
        (Choice(name="takagi"), [0, 1, 2], [4, 5]),
        (Choice(name="streams"), [0, 1, 2], [3, 4, 5, 6, 7]),
        (Choice(name="all"), [0, 1, 2, 4, 5, 6, 9], [0, 1, 2, 4, 5, 6, 9]),
        (Choice(rois=("V1v", "FFA-1")), [0, 1], [4, 9]),
        (Choice(name="all", rois=("V1d",)), [2], [2]),
        (Choice(name="takagi", rois=("V1", "floc-faces")), [0, 1, 2], [4]),
    ],
)
def test_a_choice_is_made_on_the_atlas(atlas: Atlas, choice: Choice, spatial: list[int], semantic: list[int]) -> None:
    split = choose(atlas, choice)
    assert np.flatnonzero(split.spatial).tolist() == spatial
    assert np.flatnonzero(split.semantic).tolist() == semantic
    assert split.choice == choice
    assert all(roi in split.words for roi in choice.rois)


def test_the_control_model_reads_the_default_splits_voxels_with_both_branches() -> None:
    atlas = SmallWorld().atlas("subj01")
    split = choose(atlas, Choice(name="all"))
    assert np.array_equal(split.spatial, np.logical_or(*default_split(atlas)))
    assert np.array_equal(split.spatial, split.semantic)
    assert int(split.spatial.sum()) == VOXELS - OTHER == SPATIAL + SEMANTIC


def test_words_differ_between_the_choices(atlas: Atlas) -> None:
    choices = [Choice(name=name) for name in ("default", "takagi", "streams", "all")] + [Choice(rois=("V1", "FFA-1"))]
    assert len({choose(atlas, choice).words for choice in choices}) == 5


def test_rois_that_leave_a_branch_without_voxels_are_refused(atlas: Atlas) -> None:
    with pytest.raises(RequestError, match=r"the ROIs V1 leave the Semantic Extractor without voxels .* split 'all'"):
        choose(atlas, Choice(rois=("V1",)))
    with pytest.raises(RequestError, match="the ROIs FFA-1 leave the Structural Generator without voxels"):
        choose(atlas, Choice(rois=("FFA-1",)))


def test_an_roi_that_no_branch_reads_is_refused(atlas: Atlas) -> None:
    with pytest.raises(RequestError, match="neither branch of the split 'default' reads a voxel of PPA"):
        choose(atlas, Choice(rois=("V1", "FFA-1", "PPA")))


def test_rois_the_subject_lacks_or_nobody_has_are_refused(atlas: Atlas) -> None:
    with pytest.raises(MaskError, match="lies in ROI 'RSC'"):
        choose(atlas, Choice(rois=("V1", "RSC")))
    with pytest.raises(MaskError, match="no ROI is called 'V9'"):
        choose(atlas, Choice(rois=("V9",)))


@pytest.mark.parametrize("name", ["takagi", "streams"])
def test_a_split_by_streams_needs_them(name: str) -> None:
    with pytest.raises(WeightsInvalid, match=r"needs spatial voxels \(spatial: early of streams.* its files are prf-visualrois"):
        choose(SmallWorld().atlas("subj01"), Choice(name=name))


def test_the_command_lines_spelling() -> None:
    assert parse(None, None) == Choice()
    assert parse("all", None) == Choice(name="all")
    assert parse(None, " V1, V2,FFA-1 ,V1") == Choice(rois=("V1", "V2", "FFA-1"))
    with pytest.raises(RequestError, match="no split is called 'stream'; nearest: streams"):
        parse("stream", None)
    with pytest.raises(RequestError, match=r"--rois takes ROI names .* got ' , '"):
        parse(None, " , ")
