"""A subject's own surfaces: the voxel-to-vertex matrix on them, and the files they come in."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from nibabel import freesurfer
from nilearn.datasets import load_fsaverage, load_fsaverage_data
from PIL import Image
from small_nsd import Tree

from havir_explorer.cli import command
from havir_explorer.data.freesurfer import read_surfaces
from havir_explorer.data.nsd import NSD
from havir_explorer.draw import native
from havir_explorer.errors import DataInvalid, RequestError

SURF = Path("nsddata", "freesurfer", "subj01", "surf")
POINTS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)
FACES = np.array([[0, 2, 1], [0, 1, 3], [1, 4, 3], [0, 3, 2]], np.int32)


def write_surfaces(root: Path) -> Path:
    """Write two hemispheres of five vertices, as many as the small tree's transforms have."""
    folder = root / SURF
    folder.mkdir(parents=True)
    for shift, hemi in ((-2, "lh"), (2, "rh")):
        freesurfer.write_geometry(folder / f"{hemi}.inflated", POINTS + np.array([shift, 0, 0], np.float32), FACES)
        freesurfer.write_morph_data(folder / f"{hemi}.sulc", np.linspace(-1, 1, 5))
        patch = struct.pack(">ii", -1, 3) + b"".join(struct.pack(">ifff", number, x, y, 0) for number, x, y in ((1, 0, 0), (-3, 5, 1), (5, 2, 7)))
        (folder / f"{hemi}.full.flat.patch.3d").write_bytes(patch)
    return folder


def test_the_native_matrix_has_a_row_for_every_native_vertex(nsd: NSD) -> None:
    native, average = nsd.surface("subj01", "native"), nsd.surface("subj01")
    assert (native.mesh, native.weights.shape) == ("native", (10, average.weights.shape[1]))
    first = [0, 1, 2, 3, 10242, 10243, 10244, 10245]  # fsaverage's first four vertices are native 1 to 4 in the small tree
    np.testing.assert_array_equal(native.weights[[0, 1, 2, 3, 5, 6, 7, 8]].toarray(), average.weights[first].toarray())
    np.testing.assert_array_equal(native.coverage[[0, 1, 2, 3, 5, 6, 7, 8]], average.coverage[first])
    assert nsd.surface("subj01", "native") is native


def test_an_unknown_mesh_offers_the_native_one(nsd: NSD) -> None:
    with pytest.raises(RequestError, match="transforms reach fsaverage5, or take 'native'"):
        nsd.surface("subj01", "white")


def test_surfaces_are_read_as_freesurfer_wrote_them(damaged: Tree) -> None:
    assert read_surfaces(damaged.root, "subj01") is None
    write_surfaces(damaged.root)
    read = read_surfaces(damaged.root, "subj01")
    assert read is not None
    for half, shift in zip(read, (-2, 2), strict=True):
        np.testing.assert_allclose(half.inflated, POINTS + np.array([shift, 0, 0], np.float32))
        np.testing.assert_array_equal(half.faces, FACES)
        np.testing.assert_allclose(half.sulcus, np.linspace(-1, 1, 5))
        np.testing.assert_array_equal(half.flat, [[0, 0], [np.nan, np.nan], [5, 1], [np.nan, np.nan], [2, 7]])


def test_sulci_and_flat_maps_are_optional(damaged: Tree) -> None:
    folder = write_surfaces(damaged.root)
    for file in (*folder.glob("*.sulc"), *folder.glob("*.3d")):
        file.unlink()
    read = read_surfaces(damaged.root, "subj01")
    assert read is not None
    assert read[0].flat is None
    assert not read[1].sulcus.any()


@pytest.mark.parametrize("name", ["lh.inflated", "rh.sulc", "lh.full.flat.patch.3d"])
def test_truncated_surfaces_are_named(damaged: Tree, name: str) -> None:
    file = write_surfaces(damaged.root) / name
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])
    with pytest.raises(DataInvalid, match=rf"{name}.*(truncated|cut short).*download the subject's freesurfer/surf folder"):
        read_surfaces(damaged.root, "subj01")


def test_surfaces_of_another_subject_are_refused(damaged: Tree) -> None:
    folder = write_surfaces(damaged.root)
    freesurfer.write_morph_data(folder / "lh.sulc", np.zeros(6))
    with pytest.raises(DataInvalid, match=r"sulcal depth has shape \(6,\), expected \(5,\).*another subject"):
        read_surfaces(damaged.root, "subj01")
    freesurfer.write_morph_data(folder / "lh.sulc", np.zeros(5))
    (folder / "rh.full.flat.patch.3d").write_bytes(struct.pack(">iiifff", -1, 1, 9, 0, 0, 0))
    with pytest.raises(DataInvalid, match=r"flat patch names vertices outside the 5 .*rh\.full\.flat\.patch\.3d"):
        read_surfaces(damaged.root, "subj01")


@pytest.fixture(scope="module")
def colourful(demo, subject, tmp_path_factory) -> native.Own:
    """The teaching world's own surfaces: its native mesh is fsaverage5's."""
    folder = tmp_path_factory.mktemp("own") / SURF
    write_average(folder)
    halves = read_surfaces(folder.parents[3], subject)
    assert halves is not None
    return native.Own(*halves, demo.surface(subject, "native"))


def write_average(folder: Path) -> None:
    folder.mkdir(parents=True)
    inflated, sulci = load_fsaverage("fsaverage5")["inflated"].parts, load_fsaverage_data("fsaverage5", mesh_type="inflated", data_type="sulcal").data.parts
    for side, hemi in (("left", "lh"), ("right", "rh")):
        freesurfer.write_geometry(folder / f"{hemi}.inflated", inflated[side].coordinates, inflated[side].faces)
        freesurfer.write_morph_data(folder / f"{hemi}.sulc", sulci[side])


def yellow(picture: np.ndarray) -> np.ndarray:
    """Share of each quarter of the picture, left and right of its middle, that has the colour map's top colour."""
    top = (picture[..., 0] > 230) & (picture[..., 1] > 210) & (picture[..., 2] < 80)
    half = picture.shape[1] // 2
    return np.array([top[:, :half].mean(), top[:, half:].mean()])


def test_values_are_drawn_on_their_hemisphere(demo, subject, colourful) -> None:
    atlas = demo.atlas(subject)
    for side, expected in ((~atlas.right, [True, False]), (atlas.right, [False, True])):
        values = np.where(side, 1, np.nan).astype(np.float32)
        fig = native.figure(values, colourful, atlas, title="t", unit="u", synthetic=True)
        fig.canvas.draw()
        picture = np.asarray(fig.canvas.buffer_rgba())[: -fig.canvas.get_width_height()[1] // 6, :, :3]  # without the colour bar
        assert ((yellow(picture) > 5e-4) == expected).all(), yellow(picture)


@pytest.mark.slow
def test_map_draws_on_the_subjects_own_surface_where_there_is_one(tree, tmp_path) -> None:
    write_average(tree / SURF)
    assert command(["map", "--dataset", str(tree), "--out", str(tmp_path / "own.png")]) == 0
    assert Image.open(tmp_path / "own.png").size == (1280, 1248), "three rows of two views: there is no flat map"
    assert command(["map", "--dataset", str(tree), "--mesh", "fsaverage5", "--out", str(tmp_path / "average.png")]) == 0
    assert Image.open(tmp_path / "average.png").size != (1280, 1248)


def test_a_mesh_that_is_not_here_is_named(capsys, tmp_path) -> None:
    assert command(["map", "--mesh", "native", "--out", str(tmp_path / "own.png")]) == 2
    assert "holds no inflated surfaces of subj01; get them with havir fetch nsd --extras surfaces, or take --mesh fsaverage5" in capsys.readouterr().err
    assert command(["map", "--mesh", "sphere", "--out", str(tmp_path / "own.png")]) == 2
    assert "--mesh takes native or fsaverage5; got 'sphere'" in capsys.readouterr().err


def test_surfaces_and_transforms_of_different_subjects_are_refused(damaged: Tree, tmp_path: Path) -> None:
    write_average(damaged.root / SURF)
    with pytest.raises(DataInvalid, match="inflated surfaces of subj01 have 20484 vertices, but its transforms 10; download both again"):
        native.own_cortex(damaged.nsd(tmp_path), "subj01")
