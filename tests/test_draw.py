"""Voxels to vertices, vertices to colours, regions to outlines, all of it to a figure."""

import time

import numpy as np
import pytest
from scipy import sparse

from havir_explorer.data.dataset import Atlas, Roi, SurfaceMap
from havir_explorer.draw import labels, mesh, palette
from havir_explorer.draw.cortex import Region, bordered, cortical_map, merged, regions, roi_labels
from havir_explorer.draw.figure import figure
from havir_explorer.errors import DataInvalid

V = mesh.N_VERTICES


def small_surface():
    """Four vertices over three voxels: an even mix of 0 and 1, voxel 1, voxel 2 at half coverage, nothing."""
    weights = np.array([[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], np.float32)
    return SurfaceMap("fsaverage5", sparse.csr_array(weights), np.array([1, 1, 0.5, 0], np.float32))


def ball(vertex, millimetres, shape="pial"):
    """Vertices around one vertex, in its hemisphere."""
    half = vertex // mesh.N_HEMISPHERE
    xyz = mesh.scene("posterior", shape).xyz
    near = np.linalg.norm(xyz - xyz[vertex], axis=1) < millimetres
    near[(1 - half) * mesh.N_HEMISPHERE :][: mesh.N_HEMISPHERE] = False
    return near


@pytest.fixture(scope="module")
def world():
    """Fsaverage5's vertices as voxels, with three ROIs of two files."""
    rois = (
        Roi("V1v", "prf-visualrois", ball(200, 12, "inflated")),
        Roi("V1d", "prf-visualrois", ball(10500, 12, "inflated")),
        Roi("FFA-1", "floc-faces", ball(3000, 10, "inflated")),
    )
    atlas = Atlas(rois, np.arange(V) >= mesh.N_HEMISPHERE)
    surface = SurfaceMap("fsaverage5", sparse.csr_array(sparse.identity(V, dtype=np.float32, format="csr")), np.ones(V, np.float32))
    return atlas, surface


def test_map_averages_voxels_by_weight():
    got = cortical_map(np.array([1, 3, 5], np.float32), small_surface())
    np.testing.assert_array_equal(got, np.array([2, 3, 5, np.nan], np.float32))


def test_map_leaves_nan_voxels_out_and_rescales_the_rest():
    got = cortical_map(np.array([1, np.nan, np.nan], np.float32), small_surface())
    np.testing.assert_array_equal(got, np.array([1, np.nan, np.nan, np.nan], np.float32))


def test_map_needs_half_of_the_samples_with_values():
    surface = small_surface()
    thin = SurfaceMap("fsaverage5", surface.weights, np.array([0.9, 0.49, 0.5, 0], np.float32))
    got = cortical_map(np.array([1, np.nan, 5], np.float32), thin)
    np.testing.assert_array_equal(got, np.array([np.nan, np.nan, 5, np.nan], np.float32))


def test_map_of_another_number_of_voxels_is_refused():
    with pytest.raises(DataInvalid, match="each of the 3 voxels"):
        cortical_map(np.zeros(4, np.float32), small_surface())


def test_labels_follow_the_largest_share():
    voxels = np.eye(3, dtype=bool)
    atlas = Atlas((Roi("OFA", "floc-faces", voxels[0]), Roi("FFA-1", "floc-faces", voxels[1])), np.zeros(3, bool))
    weights = np.array([[0.6, 0.4, 0], [0.2, 0.8, 0], [0.3, 0.2, 0.5], [0.9, 0.1, 0]], np.float32)
    surface = SurfaceMap("fsaverage5", sparse.csr_array(weights), np.array([1, 1, 1, 0.4], np.float32))
    np.testing.assert_array_equal(roi_labels(atlas, surface, "floc-faces"), [1, 2, 0, 0])
    assert not roi_labels(atlas, surface, "floc-words").any()


def test_dorsal_and_ventral_parts_are_one_region(world):
    atlas, surface = world
    assert [name for name, _ in merged(atlas, "prf-visualrois")] == ["V1"]
    found = {r.name: r for r in regions(atlas, surface)}
    assert list(found) == ["V1", "FFA-1"]
    np.testing.assert_array_equal(found["V1"].inside, atlas.voxels("V1"))


def test_paint_gives_the_ends_of_the_colour_map_and_grey_where_there_is_nothing():
    values = np.array([0, 1, -5, 9, np.nan, np.nan, 0.1], np.float32)
    sulc = np.array([0, 0, 0, 0, -1.5, 1.5, 1.5], np.float32)
    got = palette.paint(values, sulc, 0, 1, "viridis")
    assert got.dtype == np.dtype("<U4")
    assert list(got[:4]) == ["#405", "#fe2", "#405", "#fe2"]
    gyrus, sulcus = got[4], got[5]
    assert gyrus == "#ccc"
    assert sulcus == "#888"
    assert palette.paint(values, sulc, 0, 1, "viridis", threshold=0.2)[6] == sulcus
    assert got[6] != sulcus


def test_paint_of_a_signed_map_is_pale_in_the_middle():
    got = palette.paint(np.array([-2, 0, 2], np.float32), np.zeros(3, np.float32), -2, 2, palette.SIGNED)
    blue, middle, red = (tuple(int(c, 16) for c in color[1:]) for color in got)
    assert blue[2] > blue[0]
    assert min(middle) >= 14
    assert red[0] > red[2]


def test_paint_is_quick():
    values = np.random.default_rng(0).random(V, dtype=np.float32)
    times = []
    for _ in range(5):
        start = time.thread_time()
        palette.paint(values, mesh.sulci(), 0, 1)
        times.append(time.thread_time() - start)
    print(f"paint: median {1e3 * float(np.median(times)):.1f} ms")
    assert min(times) < 0.05


def test_file_colours_differ():
    files = ["prf-visualrois", "floc-faces", "floc-bodies", "floc-places", "floc-words", "streams", "Kastner2015"]
    assert len(set(palette.file_colors(files).values())) == len(files)


@pytest.mark.parametrize("view", mesh.VIEWS)
def test_a_scene_keeps_both_hemispheres_whole_and_unmirrored(view):
    where = mesh.scene(view)
    assert where.xyz.shape == (V, 3)
    assert where.xyz.dtype == np.float32
    assert where.faces.dtype == np.uint16
    corners = mesh.scene("posterior").xyz if view != "flat" else where.xyz  # posterior: RAS axes
    for half in (slice(0, mesh.N_HEMISPHERE), slice(mesh.N_HEMISPHERE, None)):
        a, b = corners[half][::900].astype(float), where.xyz[half][::900].astype(float)
        a, b = a - a.mean(0), b - b.mean(0)
        u, _, vt = np.linalg.svd(a.T @ b)
        turn = u @ vt
        np.testing.assert_allclose(a @ turn, b, atol=1e-2)
        assert view == "flat" or np.linalg.det(turn) > 0.99


def test_views_show_what_they_are_called():
    """The viewer looks along +y: lateral views have the temples in front, medial ones the midline, ventral ones the underside."""
    ras = mesh.scene("posterior").xyz
    left = slice(0, mesh.N_HEMISPHERE)
    front_of = {view: ras[left][np.argsort(mesh.scene(view).xyz[left][:, 1])[:500]].mean(0) - ras[left].mean(0) for view in mesh.VIEWS if view != "flat"}
    assert front_of["lateral"][0] < -20
    assert front_of["left lateral"][0] < -20
    assert front_of["medial"][0] > 20
    assert front_of["ventral"][2] < -30
    assert front_of["posterior"][1] < -50
    for view in ("lateral", "medial", "ventral", "posterior", "flat"):
        xyz = mesh.scene(view).xyz
        assert xyz[left, 0].max() < xyz[mesh.N_HEMISPHERE :, 0].min() or view == "flat"


def test_flat_map_ignores_vertices_on_the_cuts():
    where = mesh.scene("flat")
    used = np.unique(where.faces)
    assert len(where.faces) == 18654 + 18790
    assert len(used) == 9465 + 9537
    assert where.size[1] == 0


def test_finer_meshes_are_cut_to_fsaverage5():
    fine = np.arange(2 * 40962)
    got = mesh.to_fsaverage5(fine)
    assert len(got) == V
    assert got[mesh.N_HEMISPHERE] == 40962
    with pytest.raises(DataInvalid, match="got 100"):
        mesh.to_fsaverage5(np.zeros(100))


def test_outline_of_a_disc_is_one_closed_line_around_it():
    inside = ball(200, 15, "inflated")
    where = mesh.scene("lateral")
    (line,) = mesh.outlines(inside, where.faces)
    assert line.closed
    assert (inside[line.start] != inside[line.stop]).all()
    points = line.points(where)
    np.testing.assert_array_equal(points[0], points[-1])
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.max() < 5  # neighbours on a 3 mm mesh
    radius = np.linalg.norm(points - where.xyz[200], axis=1)
    assert radius.min() > 10
    assert radius.max() < 18


def test_outline_of_one_vertex_and_of_nothing():
    one = np.zeros(V, bool)
    faces = mesh.scene("lateral").faces
    assert mesh.outlines(one, faces) == ()
    assert mesh.outlines(~one, faces) == ()
    one[5000] = True
    (line,) = mesh.outlines(one, faces)
    assert line.closed
    assert len(line.start) == 6


def test_outline_of_a_disc_with_a_hole_is_two_lines():
    ring = ball(200, 20, "inflated") & ~ball(200, 8, "inflated")
    assert [line.closed for line in mesh.outlines(ring, mesh.scene("lateral").faces)] == [True, True]


def test_outline_ends_at_a_cut_of_the_flat_map():
    where = mesh.scene("flat")
    used = np.unique(where.faces[where.faces < mesh.N_HEMISPHERE].reshape(-1))
    rim = used[np.argmax(where.xyz[used, 0])]  # the occipital edge of the left map
    inside = np.linalg.norm(where.xyz - where.xyz[rim], axis=1) < 15
    lines = mesh.outlines(inside, where.faces)
    assert any(not line.closed for line in lines)


def test_a_border_between_two_visual_areas_is_one_line():
    faces = mesh.scene("lateral").faces
    inner, outer = ball(200, 8, "inflated"), ball(200, 16, "inflated")
    areas = (Region("V1", "prf-visualrois", inner), Region("V2", "prf-visualrois", outer & ~inner), Region("FFA-1", "floc-faces", ball(3000, 8, "inflated")))
    lines = [mesh.outlines(region.inside, faces) for region in bordered(areas)]
    assert [len(found) for found in lines] == [1, 1, 1]
    rings = [{(a, b) for a, b in zip(line.start.tolist(), line.stop.tolist(), strict=True)} for (line,) in lines]
    assert not rings[0] & rings[1], "the border of V1 is drawn twice"
    assert len(mesh.outlines(areas[1].inside, faces)) == 2
    assert bordered(areas)[2] is areas[2]


def test_labels_do_not_overlap():
    anchors = np.array([[0, 0], [3, 1], [1, 4], [200, 0]], float)
    sizes = np.array([[40, 12]] * 4, float)
    centres = labels.place(anchors, sizes)
    np.testing.assert_array_equal(centres[3], anchors[3])
    for i in range(4):
        for j in range(i):
            assert (np.abs(centres[i] - centres[j]) >= (sizes[i] + sizes[j]) / 2).any()


def texts_of(fig):
    return [t.get_text() for ax in fig.axes for t in ax.texts] + [t.get_text() for t in fig.texts]


def test_figure_names_the_rois_the_unit_and_what_is_synthetic(world):
    atlas, surface = world
    values = np.where(atlas.voxels("V1") | atlas.voxels("FFA-1"), 0.5, np.nan).astype(np.float32)
    fig = figure(values, surface, atlas, title="subj01", unit="percentile of weight norm", synthetic=True, vmin=0, vmax=1)
    words = texts_of(fig)
    assert {"V1", "FFA-1", "subj01", "synthetic demo", "lateral", "medial", "ventral", "flat"} <= set(words)
    assert words.count("V1") == 2  # one name a hemisphere
    (bar,) = [ax for ax in fig.axes if ax.get_label() == "colour bar"]
    assert bar.get_xlabel() == "percentile of weight norm"
    assert bar.get_xlim() == (0, 1)


def test_figure_draws_the_outline_where_the_colour_is(world):
    """Paint one disc and compare where its colour lands on the page with where its outline does."""
    atlas, surface = world
    disc = atlas.voxels("FFA-1")
    fig = figure(np.where(disc, 1, np.nan).astype(np.float32), surface, atlas, title="", unit="", synthetic=False, vmin=0, vmax=1, cmap="spring")
    over = next(ax for ax in fig.axes if ax.get_label().startswith("over") and len(ax.texts) > 3)
    fig.canvas.draw()
    page = np.asarray(fig.canvas.buffer_rgba())
    yellow = (page[..., 0] > 230) & (page[..., 1] > 230) & (page[..., 2] < 60)
    box = over.get_window_extent()
    rows, columns = np.nonzero(yellow[int(page.shape[0] - box.y1) : int(page.shape[0] - box.y0)])
    found = np.array([columns.mean(), box.y1 - rows.mean()])
    where = mesh.scene("flat")
    inside = disc & np.isin(np.arange(V), where.faces)
    expected = over.transData.transform(where.xyz[inside][:, [0, 2]].mean(axis=0))
    np.testing.assert_allclose(found, expected, atol=6)
    assert "synthetic demo" not in texts_of(fig)


def test_figure_of_a_map_without_values_still_has_a_range(world):
    atlas, surface = world
    fig = figure(np.full(V, np.nan, np.float32), surface, atlas, title="", unit="z", synthetic=False)
    (bar,) = [ax for ax in fig.axes if ax.get_label() == "colour bar"]
    assert bar.get_xlim() == (0, 1)
