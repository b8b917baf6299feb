"""What every reader promises, whatever its files look like: one contract, each reader held to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_nsd
import small_releases

from havir_explorer.data.algonauts import Algonauts
from havir_explorer.data.dataset import Dataset
from havir_explorer.data.mindeye import MindEye
from havir_explorer.errors import DataMissing, MaskError, RequestError

COLUMNS = ("session", "trial_in_session", "nsd_id", "repeat", "n_repeats", "shared", "coco_id")


@dataclass(frozen=True)
class Reader:
    """How to open a reader's tree, and what it says it cannot do."""

    open: Callable[[pytest.FixtureRequest, Path], Dataset]
    side: int = 425
    averaged: bool = False  # responses are means over repeats: their deviation is below 1
    lacks: tuple[str, ...] = ()


READERS = {
    "demo": Reader(lambda request, _: request.getfixturevalue("demo")),
    "nsd-hdf5": Reader(lambda request, cache: request.getfixturevalue("pristine").nsd(cache)),
    "nsd-nifti": Reader(lambda request, cache: small_nsd.nifti_tree(request.getfixturevalue("pristine"), cache / "tree").nsd(cache)),
    "nsd-prepared": Reader(lambda request, cache: small_nsd.prepared_tree(request.getfixturevalue("pristine"), cache / "tree").nsd(cache)),
    "mindeye": Reader(lambda request, cache: MindEye(small_releases.write_mindeye(request.getfixturevalue("pristine"), cache / "tree")), side=224),
    "algonauts": Reader(lambda _, cache: Algonauts(small_releases.write_algonauts(cache / "tree")), averaged=True, lacks=("split", "ncsnr")),
}


@pytest.fixture(scope="module", params=READERS)
def reader(request) -> Reader:
    return READERS[request.param]


@pytest.fixture(scope="module")
def dataset(reader, request, tmp_path_factory) -> Dataset:
    return reader.open(request, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def who(dataset) -> str:
    return dataset.subjects()[0]


@pytest.fixture(scope="module")
def some(dataset, who) -> np.ndarray:
    """A few trials, out of order and with one twice."""
    index = dataset.trials(who).index.to_numpy()
    return index[[5, 0, len(index) - 1, 5, len(index) // 2]]


def test_its_responses_come_from_folders_that_are_there(dataset, who):
    assert any(folder.is_dir() and any(folder.iterdir()) for folder in dataset.sources(who))


def test_it_offers_the_whole_protocol(dataset):
    promised = {name for name in vars(Dataset) if not name.startswith("_")}
    assert promised <= set(dir(dataset))
    assert len(promised) >= 14
    assert isinstance(dataset.name, str)
    assert dataset.name
    assert isinstance(dataset.synthetic, bool)
    assert len(dataset.convention.split()) > 3, "a convention is said in words"
    assert dataset.root.is_dir()
    assert hash(dataset) == hash(dataset), "opened data sets are remembered"


def test_subjects_are_named_in_order(dataset):
    subjects = dataset.subjects()
    assert subjects == tuple(sorted(set(subjects)))
    assert all(name.startswith("subj") and name[4:].isdecimal() and len(name) == 6 for name in subjects)


def test_trials_have_one_row_each(dataset, who):
    trials = dataset.trials(who)
    assert tuple(trials.columns) == COLUMNS
    assert trials.index.name == "trial"
    assert trials.index.is_unique
    assert trials.index.is_monotonic_increasing
    kinds = {name: str(kind) for name, kind in trials.dtypes.items()}
    assert kinds == dict.fromkeys(COLUMNS, "int64") | {"shared": "bool"}
    assert trials["session"].min() >= 1
    assert trials["nsd_id"].between(0, 72999).all()
    assert (trials["repeat"] >= 0).all()
    assert not trials.duplicated(["nsd_id", "repeat"]).any()
    np.testing.assert_array_equal(trials["n_repeats"], trials.groupby("nsd_id")["nsd_id"].transform("size"))


def test_a_changed_table_is_the_callers_own(dataset, who):
    table = dataset.trials(who)
    table["nsd_id"] = 0
    assert dataset.trials(who)["nsd_id"].any()


def test_shared_flags_are_those_of_the_split(dataset, reader, who):
    trials = dataset.trials(who)
    if "split" in reader.lacks:
        assert not trials["shared"].any()
        with pytest.raises(DataMissing, match="shared"):
            dataset.split(who, "shared1000")
        return
    shared = dataset.split(who, "shared1000")
    assert shared.dtype == np.int64
    np.testing.assert_array_equal(shared, np.unique(shared))
    np.testing.assert_array_equal(trials["shared"], trials["nsd_id"].isin(shared))
    assert 0 < trials["shared"].mean() < 0.5
    with pytest.raises(RequestError, match=r"no split is called 'shared900'; .*shared982"):
        dataset.split(who, "shared900")


def test_responses_have_a_row_a_trial_and_a_column_a_voxel(dataset, who, some):
    responses = dataset.responses(who, some)
    assert responses.dtype == np.float32
    assert responses.shape == (len(some), len(dataset.atlas(who).right))
    assert np.isfinite(responses).all()
    np.testing.assert_array_equal(responses[0], responses[3])
    assert np.abs(responses[0] - responses[1]).max() > 0
    assert dataset.responses(who, np.array([], np.int64)).shape == (0, responses.shape[1])
    responses[:] = 0  # the caller's own


def test_the_same_question_has_the_same_answer(dataset, reader, who, some, request, tmp_path):
    first = dataset.responses(who, some)
    np.testing.assert_array_equal(dataset.responses(who, some), first)
    np.testing.assert_array_equal(dataset.responses(who, some[::-1])[::-1], first)
    again = reader.open(request, tmp_path)
    np.testing.assert_array_equal(again.responses(who, some), first)
    pd.testing.assert_frame_equal(again.trials(who), dataset.trials(who))


def test_responses_are_zscored_within_a_session(dataset, reader, who):
    trials = dataset.trials(who)
    one = trials.index[trials["session"] == trials["session"].iloc[0]].to_numpy()
    responses = dataset.responses(who, one).astype(np.float64)
    np.testing.assert_allclose(responses.mean(axis=0), 0, atol=2e-3)
    deviation = responses.std(axis=0)
    if reader.averaged:
        assert deviation.max() <= 1.01
        assert deviation.max() > 0.3
    else:
        assert np.all((np.abs(deviation - 1) < 2e-3) | (deviation == 0))
        assert (deviation > 0).mean() > 0.5


def test_stimuli_keep_the_order_asked_for(dataset, reader, who):
    ids = dataset.trials(who)["nsd_id"].to_numpy()[[3, 0, 3]]
    pictures = dataset.stimuli(ids)
    assert pictures.dtype == np.uint8
    assert pictures.shape == (3, reader.side, reader.side, 3)
    np.testing.assert_array_equal(pictures[0], pictures[2])
    np.testing.assert_array_equal(dataset.stimuli(ids[:1])[0], pictures[0])
    with pytest.raises(RequestError, match="no stimulus has nsd_id 73000"):
        dataset.stimuli(np.array([73000]))


def test_captions_are_sentences_or_none(dataset, who):
    for nsd_id in dataset.trials(who)["nsd_id"].head(20).tolist():
        captions = dataset.captions(nsd_id)
        assert isinstance(captions, tuple)
        assert all(isinstance(text, str) and text == text.strip() for text in captions)
    with pytest.raises(RequestError, match="no stimulus has nsd_id 73000"):
        dataset.captions(73000)


def test_every_listed_roi_has_voxels_on_known_sides(dataset, who):
    atlas = dataset.atlas(who)
    assert atlas.right.dtype == np.bool_
    assert atlas.names
    for name in atlas.names:
        inside = atlas.voxels(name)
        assert (inside.dtype, inside.shape) == (np.bool_, atlas.right.shape)
        assert inside.any()
        left, right = atlas.voxels(f"lh.{name}"), atlas.voxels(f"rh.{name}")
        np.testing.assert_array_equal(left | right, inside)
        assert not (left & right).any()
    assert 0 < atlas.right.mean() < 1
    with pytest.raises(MaskError, match="no ROI is called 'cerebellum'; nearest"):
        atlas.voxels("cerebellum")


def test_every_voxel_has_its_place(dataset, who):
    geometry = dataset.geometry(who)
    assert geometry.flat_index.dtype == np.int64
    assert geometry.flat_index.shape == dataset.atlas(who).right.shape
    assert (np.diff(geometry.flat_index) > 0).all()
    assert len(geometry.shape) == 3
    assert 0 <= geometry.flat_index[0] <= geometry.flat_index[-1] < np.prod(geometry.shape)
    assert geometry.affine.shape == (4, 4)


def test_the_noise_ratio_is_a_number_a_voxel(dataset, reader, who):
    if "ncsnr" in reader.lacks:
        with pytest.raises(DataMissing, match="ncsnr"):
            dataset.ncsnr(who)
        return
    ratio = dataset.ncsnr(who)
    assert ratio.dtype == np.float32
    assert ratio.shape == dataset.atlas(who).right.shape
    assert np.isfinite(ratio).all()
    assert (ratio >= 0).all()
    assert ratio.max() > 0


def test_surface_weights_are_averages_of_voxels(dataset, who):
    mapped = dataset.surface(who)
    assert mapped.mesh in {"fsaverage5", "fsaverage6", "fsaverage"}
    assert mapped.weights.shape == (len(mapped.coverage), len(dataset.atlas(who).right))
    assert len(mapped.coverage) in {20484, 81924, 327684}
    assert mapped.coverage.dtype == np.float32
    sums = np.asarray(mapped.weights.sum(axis=1)).ravel()
    np.testing.assert_allclose(sums[mapped.coverage > 0], 1, atol=1e-5)
    assert not sums[mapped.coverage == 0].any()
    assert (mapped.coverage > 0).sum() > 0
    assert mapped.coverage.max() <= 1 + 1e-6


@pytest.mark.parametrize("ask", ["trials", "atlas", "geometry", "ncsnr", "surface"])
def test_an_unknown_subject_is_named_beside_the_known(dataset, who, ask):
    with pytest.raises(RequestError, match=f"no subject 'subj99' in .*{who}"):
        getattr(dataset, ask)("subj99")


@pytest.mark.parametrize("trial", [-1, 10**6])
def test_a_trial_out_of_range_is_refused(dataset, who, trial):
    with pytest.raises(RequestError, match=f"trial {trial} of {who} is out of range"):
        dataset.responses(who, np.array([0, trial]))


def test_trials_that_are_no_whole_numbers_are_refused(dataset, who):
    with pytest.raises(RequestError, match="whole numbers"):
        dataset.responses(who, np.array([0.5]))
