"""The NSD reader against a tree small enough to know by heart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_nsd import (
    BETAS,
    EDGE,
    FACES,
    FUNC,
    GRID,
    MISSING_CHUNK,
    N_STIMULI,
    N_TRIALS,
    VISUAL,
    Tree,
)

from havir_explorer.data import WORLD, betas, open_dataset, regions, surface
from havir_explorer.data.dataset import Geometry
from havir_explorer.data.demo import write
from havir_explorer.data.nsd import NSD
from havir_explorer.errors import DataMissing, MaskError, RequestError


def _expected(tree: Tree, geometry: Geometry) -> np.ndarray:
    """Z-score by the plain formula, in float64."""
    sessions = tree.raw.reshape(N_TRIALS, -1)[:, geometry.flat_index].astype(float).reshape(2, 750, -1)
    std = sessions.std(axis=1, keepdims=True)
    scores: np.ndarray = ((sessions - sessions.mean(axis=1, keepdims=True)) / np.where(std == 0, np.inf, std)).reshape(N_TRIALS, -1)
    return scores


def test_subjects_are_those_with_betas(nsd: NSD) -> None:
    assert nsd.subjects() == ("subj01",)
    assert (nsd.name, nsd.synthetic, nsd.convention) == ("NSD", False, "b3, percent signal change, z-scored per voxel within session")


def test_trials_follow_the_one_based_design(nsd: NSD, pristine: Tree) -> None:
    trials = nsd.trials("subj01")
    assert trials.index.tolist() == list(range(N_TRIALS))
    np.testing.assert_array_equal(trials["nsd_id"], pristine.nsd_ids)
    assert trials.loc[749, ["session", "trial_in_session"]].tolist() == [1, 749]
    assert trials.loc[750, ["session", "trial_in_session"]].tolist() == [2, 0]
    np.testing.assert_array_equal(trials["coco_id"], pristine.nsd_ids * 3 + 1000)
    assert (trials["n_repeats"] == 3).all()
    for _, group in trials.groupby("nsd_id"):
        assert group["repeat"].tolist() == [0, 1, 2]


def test_shared_comes_from_sharedix_not_from_the_image_number(nsd: NSD, pristine: Tree) -> None:
    shared = nsd.trials("subj01").query("shared")["nsd_id"].unique()
    assert len(shared) == 10  # columns 41 to 50 of subjectim, all of them below NSD's usual bound of 1000
    assert set(shared) < set(pristine.nsd_ids)


def test_voxels_are_the_union_in_nifti_order(nsd: NSD) -> None:
    geometry = nsd.geometry("subj01")
    expected = sorted(np.ravel_multi_index(v, GRID) for v in {*VISUAL, *FACES, EDGE})  # not (4, 4, 4), which only the parcellation names
    assert geometry.flat_index.tolist() == expected
    assert geometry.shape == GRID
    assert geometry.affine[0, 0] == pytest.approx(1.8)


@pytest.mark.parametrize("trials", [[0], [1499, 3, 750, 3, 749], list(range(N_TRIALS)), []])
def test_responses_are_the_zscored_columns(nsd: NSD, pristine: Tree, trials: list[int]) -> None:
    got = nsd.responses("subj01", np.array(trials, np.int64))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, _expected(pristine, nsd.geometry("subj01"))[trials], atol=2e-6)


def test_constant_voxels_and_chunks_never_written_are_zero(nsd: NSD) -> None:
    flat = nsd.geometry("subj01").flat_index
    responses = nsd.responses("subj01", np.arange(N_TRIALS))
    assert not responses[:, flat == np.ravel_multi_index(EDGE, GRID)].any()
    missing = responses[:, flat == np.ravel_multi_index(MISSING_CHUNK, GRID)]
    assert not missing[:750].any()
    assert missing[750:].any()


def test_the_second_opening_reads_only_the_cache(damaged: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = damaged.nsd(tmp_path / "cache").responses("subj01", np.arange(N_TRIALS))
    monkeypatch.setattr(betas, "read_columns", lambda *_: pytest.fail("the beta files were read again"))
    np.testing.assert_array_equal(damaged.nsd(tmp_path / "cache").responses("subj01", np.arange(N_TRIALS)), first)


@pytest.mark.parametrize("harm", ["truncate", "garbage", "other shape", "no moments"])
def test_a_damaged_cache_is_rebuilt(pristine: Tree, tmp_path: Path, harm: str) -> None:
    cache = tmp_path / "cache"
    first = pristine.nsd(cache).responses("subj01", np.arange(N_TRIALS))
    values = next(p for p in cache.rglob("session01-*.npy") if "moments" not in p.name)
    if harm == "truncate":
        values.write_bytes(values.read_bytes()[:-1])
    elif harm == "garbage":
        values.write_bytes(b"not an array")
    elif harm == "other shape":
        np.save(values, np.zeros((750, 2), np.int16))
    else:
        next(cache.rglob("session01-*.moments.npy")).unlink()
    np.testing.assert_array_equal(pristine.nsd(cache).responses("subj01", np.arange(N_TRIALS)), first)
    assert not list(cache.rglob("*.part"))


def test_a_replaced_beta_file_makes_a_stale_cache(damaged: Tree, tmp_path: Path) -> None:
    before = damaged.nsd(tmp_path / "cache").responses("subj01", np.array([0]))
    with h5py.File(damaged.root / BETAS / "betas_session01.hdf5", "r+") as file:
        file["betas"][:, 3, 2, 1] = file["betas"][:, 3, 2, 1][::-1]
    after = damaged.nsd(tmp_path / "cache").responses("subj01", np.array([0]))
    changed = np.flatnonzero((before != after)[0])
    assert damaged.nsd(tmp_path / "cache").geometry("subj01").flat_index[changed].tolist() == [np.ravel_multi_index((1, 2, 3), GRID)]
    assert len(list((tmp_path / "cache").rglob("session01-*.npy"))) == 2  # values and moments; the old pair is gone


def test_moments_are_those_of_float64_in_blocks() -> None:
    raw = np.random.default_rng(0).integers(-32768, 32767, (750, 7)).astype(np.int16)
    np.testing.assert_allclose(betas.moments(raw, block=3), [raw.mean(axis=0) / 300, raw.std(axis=0) / 300], rtol=1e-6)


def test_prepare_reads_every_session_and_tells(nsd: NSD, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    nsd.prepare("subj01", progress=lambda share, phrase: told.append((share, phrase)))
    assert told == [(0.0, "subj01: reading session 1"), (0.5, "subj01: reading session 2")]
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 4  # two files for each of two sessions


def test_partial_sessions_count_their_own_repeats(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / BETAS / "betas_session01.hdf5").unlink()
    nsd = damaged.nsd(tmp_path / "cache")
    trials = nsd.trials("subj01")
    assert trials.index.tolist() == list(range(750, N_TRIALS))
    assert trials["n_repeats"].tolist() == trials.groupby("nsd_id")["nsd_id"].transform("size").tolist()
    assert trials["repeat"].max() == 2  # the third presentation is still called the third
    np.testing.assert_allclose(nsd.responses("subj01", np.array([800]))[0], _expected(damaged, nsd.geometry("subj01"))[800], atol=2e-6)
    with pytest.raises(DataMissing, match=r"session 1 not found: .*betas_session01\.hdf5; download"):
        nsd.responses("subj01", np.array([3]))


def test_atlas_names_come_from_the_ctab(nsd: NSD) -> None:
    atlas = nsd.atlas("subj01")
    assert [(r.file, r.name) for r in atlas.rois] == [
        ("prf-visualrois", "V1v"),
        ("prf-visualrois", "V1d"),
        ("prf-visualrois", "hV4"),
        ("floc-faces", "OFA"),
        ("floc-faces", "FFA-1"),
        ("Kastner2015", "Kastner2015.V1v"),
        ("HCP_MMP1", "HCP_MMP1.V1"),
        ("nsdgeneral", "nsdgeneral"),
    ]
    flat = nsd.geometry("subj01").flat_index

    def found(name: str) -> set[tuple[int, ...]]:
        return {tuple(int(i) for i in np.unravel_index(f, GRID)) for f in flat[atlas.voxels(name)]}

    assert found("V1") == {(1, 2, 3), (5, 2, 3), (1, 3, 3), (5, 3, 3)}
    assert found("rh.V1") == {(5, 2, 3), (5, 3, 3)}
    assert found("floc-faces") == set(FACES)
    assert found("lh.FFA-1") == set()
    assert found("lh.nsdgeneral") | found("rh.nsdgeneral") == {*VISUAL, EDGE}


def test_an_unknown_roi_lists_the_nearest(nsd: NSD) -> None:
    with pytest.raises(MaskError, match=r"no ROI is called 'FFA1'; nearest: .*FFA-1"):
        nsd.atlas("subj01").voxels("FFA1")


def test_hemispheres_the_wrong_way_round_warn(damaged: Tree, tmp_path: Path) -> None:
    for file in (damaged.root / FUNC / "roi").glob("lh.*.nii.gz"):
        other = file.with_name("rh" + file.name[2:])
        kept = file.read_bytes()
        file.write_bytes(other.read_bytes())
        other.write_bytes(kept)
    nsd = damaged.nsd(tmp_path / "cache")
    with pytest.warns(UserWarning, match="lie to the right of the rh. ones"):
        atlas = nsd.atlas("subj01")
    assert np.unravel_index(nsd.geometry("subj01").flat_index[atlas.right], GRID)[0].max() <= 3  # the files' word counts


def test_noise_ceilings_lie_on_their_voxels(nsd: NSD) -> None:
    geometry = nsd.geometry("subj01")
    x = np.unravel_index(geometry.flat_index, GRID)[0]
    np.testing.assert_allclose(nsd.ncsnr("subj01"), np.where(x == 6, 0, geometry.flat_index / 100), rtol=1e-6)  # NaN there


def test_surface_rows_average_layers_and_know_their_coverage(nsd: NSD) -> None:
    mapped = nsd.surface("subj01")
    flat = nsd.geometry("subj01").flat_index
    assert (mapped.mesh, mapped.weights.shape) == ("fsaverage5", (20484, len(flat)))

    def row(vertex: int) -> dict[int, float]:
        dense = mapped.weights[[vertex]].toarray()[0]
        return {int(flat[i]): round(float(dense[i]), 6) for i in np.flatnonzero(dense)}

    at = {v: int(np.ravel_multi_index(v, GRID)) for v in VISUAL}
    assert row(0) == {at[1, 2, 3]: 1.0}
    assert row(1) == {at[1, 3, 3]: 1.0}
    assert row(2) == {at[1, 2, 3]: 0.5, at[1, 3, 3]: 0.5}
    assert row(3) == row(4) == {}
    assert row(10242) == {at[5, 2, 3]: 1.0}
    np.testing.assert_allclose(mapped.coverage[:5], [1, 2 / 3, 1, 0, 0], atol=1e-6)  # vertex 1 lost one of its three layers
    assert nsd.surface("subj01") is mapped


def test_trilinear_weights_are_exact_and_stop_at_the_border() -> None:
    geometry = Geometry(np.arange(2 * 3 * 4), (2, 3, 4), np.eye(4))
    values = np.arange(24, dtype=float)
    points = np.array([[1, 1, 1], [1.25, 2.5, 3.75], [2, 3, 4], [2.5, 3, 4], [0.25, 1, 1], [9999, 9999, 9999]])
    weights = surface.trilinear(points, geometry)
    got, total = weights @ values, np.asarray(weights.sum(axis=1)).ravel()
    np.testing.assert_allclose(got[:3], [0, 0.25 * 12 + 1.5 * 4 + 2.75, 23])  # x, y, z have strides 12, 4, 1
    np.testing.assert_allclose(total, [1, 1, 1, 0.5, 0.25, 0])


def test_stimuli_keep_the_order_asked_for(nsd: NSD) -> None:
    pictures = nsd.stimuli(np.array([200, 3, 200, 1, N_STIMULI - 1]))
    assert pictures.shape == (5, 425, 425, 3)
    assert pictures[:, 9, 9, 1].tolist() == [200, 3, 200, 127, (N_STIMULI - 1) % 251]
    assert nsd.stimuli(np.array([], np.int64)).shape == (0, 425, 425, 3)


def test_captions_are_found_through_the_coco_id(nsd: NSD) -> None:
    assert nsd.captions(3) == ("a red car", "a car")
    assert nsd.captions(0) == ("a house",)
    assert nsd.captions(5) == ()
    with pytest.raises(RequestError, match=f"no stimulus has nsd_id {N_STIMULI}"):
        nsd.captions(N_STIMULI)


def test_coco_files_beside_the_tree_serve_as_captions(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / "nsddata_stimuli" / "captions.json").unlink()
    assert damaged.nsd(tmp_path).captions(0) == ()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps({"annotations": [{"image_id": 1000, "caption": "a barn"}]}))
    assert damaged.nsd(tmp_path).captions(0) == ("a barn",)


def test_a_marker_names_a_generated_tree(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / "synthetic.json").write_text('{"synthetic": true, "name": "toy"}')
    nsd = damaged.nsd(tmp_path)
    assert (nsd.synthetic, nsd.name) == (True, "toy")


def test_open_dataset_opens_a_path_once(damaged: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "elsewhere"))
    first = open_dataset(damaged.root)
    assert open_dataset(str(damaged.root)) is first
    first.responses("subj01", np.array([0]))
    assert list((tmp_path / "elsewhere" / "responses").rglob("*.npy"))
    with pytest.raises(DataMissing, match=r"no data set at 'nowhere'.*'demo'"):
        open_dataset("nowhere")


def test_the_teaching_world_is_built_once(pristine: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []

    def write_world(folder: Path, progress: Callable[[float, str], None]) -> None:
        built.append(folder)
        progress(1.0, "done")
        shutil.copytree(pristine.root, folder)
        (folder / "synthetic.json").write_text('{"synthetic": true, "name": "demo"}')

    told: list[str] = []
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path))
    monkeypatch.setattr(write, "write_world", write_world)
    first = open_dataset("demo", progress=lambda _, phrase: told.append(phrase))
    assert (first.name, first.synthetic, first.root) == ("demo", True, (tmp_path / WORLD).resolve())
    assert open_dataset() is first
    assert WORLD == write.WORLD
    assert (built, told) == ([tmp_path / WORLD], ["done"])


def test_two_threads_may_fill_the_same_cache(pristine: Tree, tmp_path: Path) -> None:
    readers = [pristine.nsd(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda nsd: nsd.responses("subj01", np.array([7, 900])), readers)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_ctab_separators_and_negative_codes(tmp_path: Path) -> None:
    file = tmp_path / "x.mgz.ctab"
    file.write_text("-1 nothing\n0 Unknown\n\n1 a name \n2\tb\n")
    assert regions.read_ctab(file) == {1: "a name", 2: "b"}
