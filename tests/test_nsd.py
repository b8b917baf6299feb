"""The NSD reader against a tree small enough to know by heart; every bad input damages a copy of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from havir_explorer.data import WORLD, betas, open_dataset, regions, surface
from havir_explorer.data.dataset import Geometry
from havir_explorer.data.demo import write
from havir_explorer.data.nsd import CONVENTION, NSD
from havir_explorer.errors import DataInvalid, DataMissing, MaskError, OutputError, RequestError

NIFTI: Any = nibabel.Nifti1Image  # nibabel's constructors carry no types
MGH: Any = nibabel.MGHImage

GRID = (7, 9, 5)  # no two sides alike, so that a swapped axis cannot pass
N_TRIALS = 1500
N_IMAGES = 500
N_STIMULI = 640
BETAS = Path("nsddata_betas", "ppdata", "subj01", "func1pt8mm", "betas_fithrf_GLMdenoise_RR")
FUNC = Path("nsddata", "ppdata", "subj01", "func1pt8mm")
LABEL = Path("nsddata", "freesurfer", "subj01", "label")
DESIGN = Path("nsddata", "experiments", "nsd")
TRANSFORMS = Path("nsddata", "ppdata", "subj01", "transforms")
BRICK = Path("nsddata_stimuli", "stimuli", "nsd", "nsd_stimuli.hdf5")

VISUAL = {(1, 2, 3): 1, (5, 2, 3): 1, (1, 3, 3): 2, (5, 3, 3): 2, (2, 8, 0): 7}
FACES = {(0, 4, 1): 1, (6, 4, 1): 2, (6, 5, 1): 2}
KASTNER = {(1, 2, 3): 1}
EDGE = (3, 0, 4)  # in nsdgeneral only, constant in every session
MISSING_CHUNK = (2, 8, 0)  # in session 1 its chunk was never written


@dataclass(frozen=True)
class Tree:
    """A hand-written NSD tree and the numbers put into it."""

    root: Path
    raw: np.ndarray  # int16 (N_TRIALS, X, Y, Z)
    nsd_ids: np.ndarray  # (N_TRIALS,)

    def nsd(self, cache: Path) -> NSD:
        return NSD(self.root, cache=cache)


def _save_nifti(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(NIFTI(values, np.diag([1.8, 1.8, 1.8, 1])), path)


def _save_roi(root: Path, name: str, labels: dict[tuple[int, int, int], int], ctab: str | None) -> None:
    volumes = {side: np.full(GRID, -1, np.int16) for side in ("", "lh.", "rh.")}
    for voxel, code in labels.items():
        volumes[""][voxel] = volumes["lh." if voxel[0] <= 3 else "rh."][voxel] = code
    for side, values in volumes.items():
        _save_nifti(root / FUNC / "roi" / f"{side}{name}.nii.gz", values)
    if ctab is not None:
        (root / LABEL).mkdir(parents=True, exist_ok=True)
        (root / LABEL / f"{name}.mgz.ctab").write_text(ctab)


def _write_design(root: Path, rng: np.random.Generator) -> np.ndarray:
    (root / DESIGN).mkdir(parents=True)
    ordering = rng.permutation(np.repeat(np.arange(1, N_IMAGES + 1), 3))
    images = np.stack([rng.permutation(np.arange(1, N_STIMULI + 1))[:N_IMAGES] for _ in range(8)])
    arrays = {"masterordering": ordering[None], "subjectim": images, "sharedix": np.sort(images[0, 40:50])[None]}
    savemat(root / DESIGN / "nsd_expdesign.mat", arrays | {"basiccnt": np.zeros((3, 40)), "stimpattern": np.zeros((1, 1))})
    table = pd.DataFrame({"cocoId": np.arange(N_STIMULI) * 3 + 1000, "cocoSplit": "train2017", "nsdId": np.arange(N_STIMULI)})
    table.to_csv(root / DESIGN / "nsd_stim_info_merged.csv")
    seen: np.ndarray = images[0, ordering - 1] - 1
    return seen


def _write_betas(root: Path, raw: np.ndarray) -> None:
    (root / BETAS).mkdir(parents=True)
    for session in (1, 2):
        values = raw[(session - 1) * 750 : session * 750].transpose(0, 3, 2, 1)
        with h5py.File(root / BETAS / f"betas_session{session:02d}.hdf5", "w") as file:
            if session == 2:  # one session in another layout, as a repacked file would have
                file.create_dataset("betas", data=values, chunks=(50, 5, 3, 2), compression="gzip")
                continue
            chunked = file.create_dataset("betas", values.shape, np.int16, chunks=(750, 1, 1, 1))
            for x, y, z in np.ndindex(GRID):
                if (x, y, z) != MISSING_CHUNK:
                    chunked[:, z, y, x] = values[:, z, y, x]


def _write_transforms(root: Path) -> None:
    (root / TRANSFORMS).mkdir(parents=True)
    voxels = {"lh": ((1, 2, 3), (1, 3, 3)), "rh": ((5, 2, 3), (6, 4, 1))}
    for hemi, (first, second) in voxels.items():
        points = np.array([first, second, (np.array(first) + second) / 2, (0, 0, 0), (0, 0, 0)], float) + 1
        for layer in surface.LAYERS:
            moved = points.copy()
            moved[3] = 9999
            if layer == "layerB3":
                moved[1] = 9999
            image = MGH(moved.astype(np.float32)[:, None, None, :], np.eye(4))
            nibabel.save(image, root / TRANSFORMS / f"{hemi}.func1pt8-to-{layer}.mgz")
        nearest = np.full(10242, 5)
        nearest[:4] = 1, 2, 3, 4
        nibabel.save(MGH(nearest.astype(np.float32)[:, None, None], np.eye(4)), root / TRANSFORMS / f"{hemi}.white-to-fsaverage.mgz")


def _write_stimuli(root: Path) -> None:
    (root / BRICK).parent.mkdir(parents=True)
    with h5py.File(root / BRICK, "w") as file:
        brick = file.create_dataset("imgBrick", (N_STIMULI, 425, 425, 3), np.uint8, chunks=(1, 425, 425, 3), compression="gzip", fillvalue=127)
        for nsd_id in (0, 3, 200, N_STIMULI - 1):
            brick[nsd_id] = np.full((425, 425, 3), nsd_id % 251, np.uint8)
    captions = {"annotations": [{"image_id": 1009, "caption": "a red car "}, {"image_id": 1000, "caption": "a house"}, {"image_id": 1009, "caption": "a car"}]}
    (root / "nsddata_stimuli" / "captions.json").write_text(json.dumps(captions))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("nsd")
    rng = np.random.default_rng(1)
    nsd_ids = _write_design(root, rng)
    raw = rng.integers(-3000, 3000, (N_TRIALS, *GRID)).astype(np.int16)
    raw[(slice(None), *EDGE)] = 41
    raw[(slice(0, 750), *MISSING_CHUNK)] = 0
    _write_betas(root, raw)
    _save_roi(root, "prf-visualrois", VISUAL, "0 Unknown\n1 V1v\n2 V1d\n7 hV4\n8 never\n")
    _save_roi(root, "floc-faces", FACES, "0\tUnknown\n1\tOFA\n2\tFFA-1\n")
    _save_roi(root, "Kastner2015", KASTNER, "0 Unknown\n1 V1v\n")
    _save_roi(root, "HCP_MMP1", dict.fromkeys([*VISUAL, (4, 4, 4)], 1), "0 Unknown\n1 V1\n")
    _save_roi(root, "nsdgeneral", dict.fromkeys([*VISUAL, EDGE], 1), None)
    _save_nifti(root / BETAS / "ncsnr.nii.gz", np.where(np.indices(GRID)[0] == 6, np.nan, np.arange(np.prod(GRID)).reshape(GRID) / 100).astype(np.float32))
    _write_transforms(root)
    _write_stimuli(root)
    return Tree(root, raw, nsd_ids)


@pytest.fixture
def damaged(pristine: Tree, tmp_path: Path) -> Tree:
    """A copy to break."""
    shutil.copytree(pristine.root, tmp_path / "tree")
    return Tree(tmp_path / "tree", pristine.raw, pristine.nsd_ids)


@pytest.fixture
def nsd(pristine: Tree, tmp_path: Path) -> NSD:
    return pristine.nsd(tmp_path / "cache")


def _expected(tree: Tree, geometry: Geometry) -> np.ndarray:
    """Z-score by the plain formula, in float64."""
    sessions = tree.raw.reshape(N_TRIALS, -1)[:, geometry.flat_index].astype(float).reshape(2, 750, -1)
    std = sessions.std(axis=1, keepdims=True)
    scores: np.ndarray = ((sessions - sessions.mean(axis=1, keepdims=True)) / np.where(std == 0, np.inf, std)).reshape(N_TRIALS, -1)
    return scores


def test_subjects_are_those_with_betas(nsd: NSD) -> None:
    assert nsd.subjects() == ("subj01",)
    assert (nsd.name, nsd.synthetic, nsd.convention) == ("NSD", False, CONVENTION)


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


def test_open_dataset_opens_a_path_once(pristine: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "elsewhere"))
    first = open_dataset(pristine.root)
    assert open_dataset(str(pristine.root)) is first
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


def test_a_folder_that_is_no_nsd_tree(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"experiment design not found: .*nsd_expdesign\.mat; download"):
        NSD(tmp_path)
    with pytest.raises(DataMissing, match="data folder not found"):
        NSD(tmp_path / "none")


@pytest.mark.parametrize("call", ["trials", "atlas", "geometry", "ncsnr", "surface", "prepare"])
def test_unknown_subject(nsd: NSD, call: str) -> None:
    with pytest.raises(RequestError, match=r"no subject 'subj9' in .*; it holds subj01"):
        getattr(nsd, call)("subj9")


@pytest.mark.parametrize("trial", [-1, N_TRIALS, 30000])
def test_trial_out_of_range(nsd: NSD, trial: int) -> None:
    with pytest.raises(RequestError, match=f"trial {trial} of subj01 is out of range: the 2 sessions in .* end with trial 1499"):
        nsd.responses("subj01", np.array([0, trial]))


def test_trials_that_are_no_whole_numbers(nsd: NSD) -> None:
    with pytest.raises(RequestError, match="whole numbers"):
        nsd.responses("subj01", np.array([0.5]))


def test_no_betas_at_all(damaged: Tree, tmp_path: Path) -> None:
    shutil.rmtree(damaged.root / "nsddata_betas")
    with pytest.raises(DataMissing, match=r"no betas in .*betas_session01\.hdf5; download at least one session"):
        damaged.nsd(tmp_path).trials("subj01")


def test_beta_file_gone_after_opening(damaged: Tree, tmp_path: Path) -> None:
    nsd = damaged.nsd(tmp_path)
    nsd.trials("subj01")
    (damaged.root / BETAS / "betas_session02.hdf5").unlink()
    with pytest.raises(DataMissing, match=r"session 2 not found: .*betas_session02\.hdf5"):
        nsd.responses("subj01", np.array([750]))


@pytest.mark.parametrize("kept", [0, 100, 200_000])
def test_truncated_beta_file(damaged: Tree, tmp_path: Path, kept: int) -> None:
    file = damaged.root / BETAS / "betas_session01.hdf5"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataInvalid, match=r"betas_session01\.hdf5 \([\d,]+ bytes\) is truncated or not HDF5; download"):
        damaged.nsd(tmp_path).responses("subj01", np.array([0]))
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(("shape", "dtype"), [((750, *GRID), "i2"), ((749, *GRID[::-1]), "i2"), ((750, *GRID[::-1]), "f4")])
def test_beta_file_of_another_grid(damaged: Tree, tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    with h5py.File(damaged.root / BETAS / "betas_session01.hdf5", "w") as file:
        file.create_dataset("betas", shape, dtype)
    with pytest.raises(DataInvalid, match=re.escape("expected int16 (750, 5, 9, 7)")):
        damaged.nsd(tmp_path).responses("subj01", np.array([0]))


def test_beta_file_without_permission(pristine: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", forbidden)
    with pytest.raises(DataInvalid, match=r"betas_session01\.hdf5 may not be read by this user; change its permissions"):
        pristine.nsd(tmp_path).responses("subj01", np.array([0]))


def test_two_threads_may_fill_the_same_cache(pristine: Tree, tmp_path: Path) -> None:
    readers = [pristine.nsd(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda nsd: nsd.responses("subj01", np.array([7, 900])), readers)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_beta_file_without_betas(damaged: Tree, tmp_path: Path) -> None:
    with h5py.File(damaged.root / BETAS / "betas_session01.hdf5", "w") as file:
        file["other"] = [1]
    with pytest.raises(DataInvalid, match="no data set 'betas', found other"):
        damaged.nsd(tmp_path).responses("subj01", np.array([0]))


@pytest.mark.parametrize(("shape", "dtype"), [((8, 224, 224, 3), "u1"), ((8, 425, 425, 3), "f4"), ((3, 425, 425, 8), "u1")])
def test_stimulus_file_of_another_shape(damaged: Tree, tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    with h5py.File(damaged.root / BRICK, "w") as file:
        file.create_dataset("imgBrick", shape, dtype)
    with pytest.raises(DataInvalid, match=r"expected uint8 \(pictures, 425, 425, 3\): .*nsd_stimuli\.hdf5"):
        damaged.nsd(tmp_path).stimuli(np.array([0]))


def test_stimulus_out_of_range_and_missing_brick(damaged: Tree, tmp_path: Path) -> None:
    nsd = damaged.nsd(tmp_path)
    with pytest.raises(RequestError, match=f"no stimulus has nsd_id 9000: .* holds 0 to {N_STIMULI - 1}"):
        nsd.stimuli(np.array([0, 9000]))
    (damaged.root / BRICK).unlink()
    with pytest.raises(DataMissing, match=r"stimulus file not found: .*nsd_stimuli\.hdf5; download"):
        nsd.stimuli(np.array([0]))


def test_roi_file_without_its_ctab(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / LABEL / "floc-faces.mgz.ctab").unlink()
    with pytest.raises(DataMissing, match=r"name table of ROI file floc-faces \(subj01\) not found: .*floc-faces\.mgz\.ctab; download it"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_a_ctab_in_the_templates_folder_is_found(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / "nsddata" / "templates").mkdir()
    (damaged.root / LABEL / "floc-faces.mgz.ctab").rename(damaged.root / "nsddata" / "templates" / "floc-faces.ctab")
    assert "FFA-1" in damaged.nsd(tmp_path).atlas("subj01").names


@pytest.mark.parametrize(("text", "message"), [("0 Unknown\n1 OFA\n", "holds code 2"), ("0 Unknown\nFFA-1\n", "not 'code name': 'FFA-1'")])
def test_ctab_that_does_not_fit(damaged: Tree, tmp_path: Path, text: str, message: str) -> None:
    (damaged.root / LABEL / "floc-faces.mgz.ctab").write_text(text)
    with pytest.raises(DataInvalid, match=message):
        damaged.nsd(tmp_path).atlas("subj01")


def test_truncated_roi_volume(damaged: Tree, tmp_path: Path) -> None:
    file = damaged.root / FUNC / "roi" / "lh.floc-faces.nii.gz"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataInvalid, match=r"ROI file cannot be read: .*lh\.floc-faces\.nii\.gz"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_roi_volume_of_another_grid(damaged: Tree, tmp_path: Path) -> None:
    _save_nifti(damaged.root / FUNC / "roi" / "floc-faces.nii.gz", np.ones(GRID[::-1], np.int16))
    with pytest.raises(DataInvalid, match=re.escape("shape (5, 9, 7), expected (7, 9, 5)")):
        damaged.nsd(tmp_path).atlas("subj01")


def test_missing_nsdgeneral(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / FUNC / "roi" / "nsdgeneral.nii.gz").unlink()
    with pytest.raises(DataMissing, match=r"ROI file nsdgeneral of subj01 not found: .*nsdgeneral\.nii\.gz"):
        damaged.nsd(tmp_path).geometry("subj01")


def test_no_labelled_voxel(damaged: Tree, tmp_path: Path) -> None:
    for file in (damaged.root / FUNC / "roi").glob("*.nii.gz"):
        _save_nifti(file, np.full(GRID, -1, np.int16))
    with pytest.raises(DataInvalid, match="no voxel of subj01 is labelled"):
        damaged.nsd(tmp_path).geometry("subj01")


def test_one_hemisphere_only(damaged: Tree, tmp_path: Path) -> None:
    for file in (damaged.root / FUNC / "roi").glob("rh.*.nii.gz"):
        _save_nifti(file, np.full(GRID, -1, np.int16))
    with pytest.raises(DataInvalid, match=r"the rh\. ROI files of subj01 label no voxel"):
        damaged.nsd(tmp_path).atlas("subj01")


def test_design_and_stimulus_information_damaged(damaged: Tree, tmp_path: Path) -> None:
    table = damaged.root / DESIGN / "nsd_stim_info_merged.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:20]))
    with pytest.raises(DataInvalid, match="stimulus information does not list nsd_id"):
        damaged.nsd(tmp_path).trials("subj01")
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataInvalid, match="needs integer columns nsdId and cocoId"):
        damaged.nsd(tmp_path).trials("subj01")
    design = damaged.root / DESIGN / "nsd_expdesign.mat"
    savemat(design, {"masterordering": [[1, 600]], "subjectim": np.ones((8, 500)), "sharedix": [[1]]})
    with pytest.raises(DataInvalid, match="experiment design is inconsistent"):
        damaged.nsd(tmp_path)
    design.write_bytes(b"nothing of the kind")
    with pytest.raises(DataInvalid, match="experiment design cannot be read"):
        damaged.nsd(tmp_path)


def test_captions_of_another_format(damaged: Tree, tmp_path: Path) -> None:
    (damaged.root / "nsddata_stimuli" / "captions.json").write_text("[1]")
    with pytest.raises(DataInvalid, match="expected COCO's captions format"):
        damaged.nsd(tmp_path).captions(0)


@pytest.mark.parametrize("part", ["lh.white-to-fsaverage.mgz", "rh.func1pt8-to-layerB2.mgz"])
def test_missing_transform(damaged: Tree, tmp_path: Path, part: str) -> None:
    (damaged.root / TRANSFORMS / part).unlink()
    with pytest.raises(DataMissing, match=f"transform not found: .*{re.escape(part)}; download"):
        damaged.nsd(tmp_path).surface("subj01")


def test_transforms_that_do_not_fit(damaged: Tree, tmp_path: Path) -> None:
    file = damaged.root / TRANSFORMS / "lh.white-to-fsaverage.mgz"
    nibabel.save(MGH(np.full((10242, 1, 1), 6, np.float32), np.eye(4)), file)
    with pytest.raises(DataInvalid, match=r"names native vertex 6, but .* has 5"):
        damaged.nsd(tmp_path).surface("subj01")
    nibabel.save(MGH(np.ones((7, 1, 1), np.float32), np.eye(4)), file)
    with pytest.raises(DataInvalid, match="has 7 rows"):
        damaged.nsd(tmp_path).surface("subj01")


def test_a_mesh_finer_than_the_transforms(nsd: NSD) -> None:
    with pytest.raises(RequestError, match="mesh 'fsaverage6' is not available; this subject's transforms reach fsaverage5"):
        nsd.surface("subj01", "fsaverage6")


def test_unwritable_cache(pristine: Tree, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"response cache cannot be written: .*HAVIR_CACHE"):
        pristine.nsd(tmp_path / "cache").responses("subj01", np.array([0]))


def test_full_disk(pristine: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", no_space)
    with pytest.raises(OutputError, match="No space left on device"):
        pristine.nsd(tmp_path / "cache").responses("subj01", np.array([0]))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_ctab_separators_and_negative_codes(tmp_path: Path) -> None:
    file = tmp_path / "x.mgz.ctab"
    file.write_text("-1 nothing\n0 Unknown\n\n1 a name \n2\tb\n")
    assert regions.read_ctab(file) == {1: "a name", 2: "b"}
