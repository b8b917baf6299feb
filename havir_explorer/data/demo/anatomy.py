"""The teaching world's brains: bundled fsaverage5 and MNI152 on a grid like NSD's func1pt8mm, with NSD's ROI names and codes.

The surface is fsaverage5 for both the native surface and fsaverage; the volume is MNI152 at 1.8 mm. Seeds are rounded MNI152 coordinates of
the literature (approximate to about 8 mm), each region a geodesic disc or band around them, made smaller than in a real brain so that the
whole world stays small. Subjects differ in the seeds' exact place and in every region's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from nilearn import datasets
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from havir_explorer.records import BoolArray, FloatArray, IntArray

SHAPE = (81, 104, 83)
AFFINE = np.array([[1.8, 0, 0, -72.0], [0, 1.8, 0, -109.7], [0, 0, 1.8, -68.8], [0, 0, 0, 1.0]])
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # from pial to white; layers B1, B2 and B3 are the three in the middle
RIBBON_MM = 2.0
MNI305_TO_MNI152 = np.array(  # FreeSurfer wiki, CoordinateSystems
    [[0.9975, -0.0073, 0.0176, -0.0429], [0.0146, 1.0009, -0.0024, 1.5496], [-0.0130, -0.0093, 0.9971, 1.1840], [0.0, 0.0, 0.0, 1.0]]
)

ROI_NAMES: dict[str, tuple[str, ...]] = {  # code 1, 2, ... of each atlas file
    "nsdgeneral": ("nsdgeneral",),
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "prf-eccrois": ("ecc0pt5", "ecc1", "ecc2", "ecc4", "ecc4+"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}
"""Names of the codes 1, 2, … of each atlas file; 0 is cortex without a label and -1 not cortex."""

_CALCARINE = ((10.0, -99.0, -3.0), (13.0, -64.0, 6.0))
_BANDS_MM = (5.4, 9.2, 12.8)  # outer borders of V1, V2 and V3 from the calcarine
_FRONT_Y = -58.0
_HV4 = ((28.0, -80.0, -13.0), 8.0)

# MNI152 seed in the right hemisphere and geodesic radius in mm; mirror x for the left.
_DISCS: dict[str, tuple[tuple[float, float, float], float]] = {
    "OFA": ((39, -79, -12), 5.6),
    "FFA-1": ((40, -63, -17), 6.4),
    "FFA-2": ((42, -48, -20), 6.4),
    "mTL-faces": ((44, -30, -22), 4.8),
    "aTL-faces": ((34, -10, -38), 4.8),
    "EBA": ((49, -72, 4), 7.2),
    "FBA-1": ((43, -58, -18), 5.2),
    "FBA-2": ((43, -44, -22), 5.2),
    "mTL-bodies": ((46, -28, -24), 4.4),
    "OPA": ((34, -82, 20), 6.4),
    "PPA": ((27, -46, -10), 6.6),
    "RSC": ((16, -56, 11), 5.4),
    "OWFA": ((36, -86, -12), 5.0),
    "VWFA-1": ((44, -66, -12), 5.6),
    "VWFA-2": ((44, -54, -15), 5.6),
    "mfs-words": ((38, -44, -20), 4.6),
    "mTL-words": ((46, -34, -20), 4.6),
}
_STREAM_SEEDS: dict[str, tuple[tuple[tuple[float, float, float], float], ...]] = {
    "midventral": (((28, -80, -13), 11.0),),
    "midlateral": (((42, -80, -6), 9.0),),
    "midparietal": (((24, -86, 24), 8.0),),
    "ventral": (((40, -60, -18), 10.0), ((40, -46, -20), 9.0), ((27, -46, -10), 8.0)),
    "lateral": (((49, -70, 4), 10.0),),
    "parietal": (((24, -64, 50), 9.0),),
}
_OUTSIDE_NSDGENERAL = ("aTL-faces", "RSC")  # nsdgeneral leaves these out for the most part in the real data too
_LEFT_DOMINANT, _RIGHT_DOMINANT = "floc-words", "floc-faces"


@dataclass(frozen=True, eq=False)
class Mesh:
    """One hemisphere of fsaverage5 in MNI152 millimetres.

    Parameters
    ----------
    layers : float64 (5, n_vertices, 3)
        Points at the five ``DEPTHS``.
    neighbours : int64 (n_vertices, 6)
        Neighbouring vertices, padded with the vertex itself.
    graph : sparse float64 (n_vertices, n_vertices)
        Edge lengths at mid-thickness, mm.
    """

    layers: npt.NDArray[np.float64]
    neighbours: IntArray
    graph: sparse.csr_array

    @property
    def middle(self) -> npt.NDArray[np.float64]:
        """Mid-thickness points, (n_vertices, 3)."""
        return np.asarray(self.layers[2])


@dataclass(frozen=True, eq=False)
class Cortex:
    """What all subjects share: the grid's anatomy and which surface point each cortical voxel belongs to.

    Parameters
    ----------
    meshes : (Mesh, Mesh)
        Left, right.
    flat_index : int64 (n,)
        C-order indices of cortical voxels in the grid, ascending.
    right : bool (n,)
    patch : int64 (n, 7)
        Nearest vertex of the voxel's hemisphere and that vertex's neighbours.
    patch_weights : float64 (n, 7)
        Inverse-square-distance weights over ``patch``; rows sum to 1.
    template, brain : float32, bool, both ``SHAPE``
        MNI152 T1 in [0, 1] and brain mask on the grid.
    """

    meshes: tuple[Mesh, Mesh]
    flat_index: IntArray
    right: BoolArray
    patch: IntArray
    patch_weights: npt.NDArray[np.float64]
    template: FloatArray
    brain: BoolArray


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One subject's regions over the cortical voxels.

    Parameters
    ----------
    cortex : Cortex
    codes : dict of str to int64 (n_cortical,)
        Code of every cortical voxel per atlas file, 0 where it has none. ``prf-eccrois`` is added once receptive fields are known.
    along, across : float64 (n_cortical,)
        Position along the calcarine in [0, 1] from the pole to the front, and signed distance from it in mm (positive: dorsal).
    """

    cortex: Cortex
    codes: dict[str, IntArray]
    along: npt.NDArray[np.float64]
    across: npt.NDArray[np.float64]

    @property
    def active(self) -> BoolArray:
        """Cortical voxels in any region: the ones that respond and are written, (n_cortical,)."""
        return np.asarray(np.logical_or.reduce([c > 0 for c in self.codes.values()]))


def load_cortex() -> Cortex:
    """Put the bundled surfaces and template on the grid; about three seconds."""
    meshes = (_mesh("left"), _mesh("right"))
    points = np.concatenate([m.layers.reshape(-1, 3) for m in meshes])
    n_vertices = len(meshes[0].middle)
    distance, nearest = cKDTree(points).query(_grid_mm(), distance_upper_bound=RIBBON_MM)
    flat = np.flatnonzero(np.isfinite(distance))
    nearest = nearest[flat]
    depth, vertex = np.divmod(nearest % (len(DEPTHS) * n_vertices), n_vertices)
    right = nearest >= len(DEPTHS) * n_vertices
    patch = np.empty((len(flat), 7), np.int64)
    weights = np.empty((len(flat), 7))
    for side, mesh in enumerate(meshes):
        mine = right == bool(side)
        patch[mine] = np.column_stack([vertex[mine], mesh.neighbours[vertex[mine]]])
        gap = mesh.layers[depth[mine, None], patch[mine]] - _grid_mm()[flat[mine], None]
        weights[mine] = 1.0 / (np.square(gap).sum(-1) + 0.5)
    template = _on_grid(datasets.load_mni152_template(resolution=1), order=1)
    brain = _on_grid(datasets.load_mni152_brain_mask(resolution=1), order=0) > 0.5
    return Cortex(meshes, flat, right, patch, weights / weights.sum(1, keepdims=True), template.astype(np.float32), np.asarray(brain))


def anatomy(cortex: Cortex, seed: int, scale: float) -> Anatomy:
    """Lay one subject's regions on the cortex.

    Parameters
    ----------
    cortex : Cortex
    seed : int
        Of the subject's own places and sizes.
    scale : float
        Overall size of its regions; 1 gives about 6000 voxels.

    Returns
    -------
    Anatomy
    """
    rng = np.random.default_rng(seed)
    n = len(cortex.flat_index)
    along, across = np.ones(n), np.full(n, np.inf)
    codes = {name: np.zeros(n, np.int64) for name in ROI_NAMES}
    rim = np.zeros(n, bool)
    for side in (0, 1):
        mine = cortex.right == bool(side)
        field = _Fields(cortex, side, mine)
        along[mine], across[mine] = field.calcarine(rng)
        codes["prf-visualrois"][mine] = _early_codes(field, across[mine], scale * rng.uniform(0.95, 1.05), rng)
        for file in ("floc-faces", "floc-bodies", "floc-places", "floc-words"):
            dominance = 1.12 if (file == _RIGHT_DOMINANT and side) or (file == _LEFT_DOMINANT and not side) else 0.94
            codes[file][mine] = _disc_codes(field, ROI_NAMES[file], scale * dominance, rng)
        codes["streams"][mine], rim[mine] = _stream_codes(field, codes["prf-visualrois"][mine], scale, rng)
    inside = np.logical_or.reduce([c > 0 for c in codes.values()]) | rim
    for name in _OUTSIDE_NSDGENERAL:
        file = next(f for f, names in ROI_NAMES.items() if name in names)
        inside &= codes[file] != ROI_NAMES[file].index(name) + 1
    codes["nsdgeneral"] = inside.astype(np.int64)
    return Anatomy(cortex, codes, along, across)


def layer_coordinates(mesh: Mesh, layer: int) -> FloatArray:
    """Return ``func1pt8-to-layerB{layer}``: 1-based voxel coordinates of every vertex, 9999 where there is none.

    Parameters
    ----------
    mesh : Mesh
    layer : int
        1, 2 or 3: 25, 50 or 75 % of the way from pial to white.

    Returns
    -------
    float32 (n_vertices, 3)
        Points off the grid are invalid, and so are the two most anterior vertices, as NSD's files hold invalid rows too.
    """
    points = mesh.layers[layer]
    voxel = (points - AFFINE[:3, 3]) / np.diag(AFFINE)[:3]
    outside = ((voxel < 0) | (voxel > np.array(SHAPE) - 1)).any(1)
    outside[np.argsort(points[:, 1])[-2:]] = True
    return np.where(outside[:, None], 9999.0, voxel + 1).astype(np.float32)


class _Fields:
    """Geodesic fields of one hemisphere, read at its cortical voxels."""

    def __init__(self, cortex: Cortex, side: int, mine: BoolArray) -> None:
        self.mesh, self._mirror = cortex.meshes[side], 1.0 if side else -1.0
        self._tree = cKDTree(self.mesh.middle)
        self._patch, self._weights = cortex.patch[mine], cortex.patch_weights[mine]
        self.y = self.at_voxels(self.mesh.middle[:, 1])

    def at_voxels(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Interpolate per-vertex values at the voxels, without crossing a sulcus."""
        return np.asarray((values[self._patch] * self._weights).sum(1))

    def vertex(self, seed: tuple[float, float, float], rng: np.random.Generator, jitter: float = 1.2) -> int:
        """Return the mid-thickness vertex nearest a right-hemisphere seed, moved a little."""
        point = np.array(seed) * (self._mirror, 1.0, 1.0) + rng.normal(0.0, jitter, 3)
        return int(self._tree.query(point)[1])

    def distance(self, vertex: int) -> npt.NDArray[np.float64]:
        """Geodesic distance in mm from a vertex, at the voxels."""
        reach = dijkstra(self.mesh.graph, indices=vertex, limit=30.0)
        return self.at_voxels(np.minimum(reach, 30.0))

    def calcarine(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return position along the calcarine in [0, 1] and signed distance from it in mm (positive above), at the voxels."""
        pole, front = (self.vertex(seed, rng) for seed in _CALCARINE)
        _, before = dijkstra(self.mesh.graph, indices=pole, return_predecessors=True)
        path = [front]
        while path[-1] != pole:
            path.append(int(before[path[-1]]))
        path.reverse()
        distance, _, source = dijkstra(self.mesh.graph, indices=path, return_predecessors=True, min_only=True)
        step = np.zeros(len(distance))
        step[path] = np.linspace(0.0, 1.0, len(path))
        above = np.where(self.mesh.middle[:, 2] >= self.mesh.middle[source, 2], 1.0, -1.0)
        return self.at_voxels(step[source]), self.at_voxels(above * distance)


def _early_codes(field: _Fields, across: npt.NDArray[np.float64], scale: float, rng: np.random.Generator) -> IntArray:
    borders = np.array(_BANDS_MM) * scale
    band = np.searchsorted(borders, np.abs(across))  # 0 V1, 1 V2, 2 V3, 3 outside
    codes = np.where((band < 3) & (field.y < _FRONT_Y), 1 + 2 * band + (across > 0), 0)
    seed, radius = _HV4
    disc = field.distance(field.vertex(seed, rng)) < radius * scale
    return np.asarray(np.where((codes == 0) & disc, 7, codes), np.int64)


def _disc_codes(field: _Fields, names: tuple[str, ...], scale: float, rng: np.random.Generator) -> IntArray:
    codes = np.zeros(len(field.y), np.int64)
    for code, name in enumerate(names, start=1):
        seed, radius = _DISCS[name]
        disc = field.distance(field.vertex(seed, rng)) < radius * scale * rng.uniform(0.9, 1.1)
        codes[(codes == 0) & disc] = code  # first come, first served within a file
    return codes


def _stream_codes(field: _Fields, visual: IntArray, scale: float, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
    """Return stream codes and the rim just outside the streams that nsdgeneral takes in as well."""
    seeds = [(code, *spot) for code, name in enumerate(ROI_NAMES["streams"], 1) for spot in _STREAM_SEEDS.get(name, ())]
    excess = np.stack([field.distance(field.vertex(seed, rng)) - radius * scale for _, seed, radius in seeds])
    nearest = excess.argmin(0)
    labels = np.array([code for code, _, _ in seeds])[nearest]
    inside = excess.min(0)
    codes = np.where(inside < 0, labels, 0)
    codes[visual == 7] = ROI_NAMES["streams"].index("midventral") + 1
    codes[(visual > 0) & (visual < 7)] = 1
    return np.asarray(codes, np.int64), np.asarray((inside >= 0) & (inside < 0.7))


def _mesh(side: str) -> Mesh:
    pial, white = (datasets.load_fsaverage("fsaverage5")[kind].parts[side] for kind in ("pial", "white_matter"))
    faces = np.asarray(pial.faces, np.int64)
    outer, inner = (_to_mni152(np.asarray(m.coordinates, np.float64)) for m in (pial, white))
    layers = np.stack([outer + share * (inner - outer) for share in DEPTHS])
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    length = np.linalg.norm(layers[2][edges[:, 0]] - layers[2][edges[:, 1]], axis=1)
    both = np.concatenate([edges, edges[:, ::-1]])
    n = len(outer)
    graph = sparse.csr_array((np.concatenate([length, length]), (both[:, 0], both[:, 1])), shape=(n, n))
    neighbours = np.repeat(np.arange(n)[:, None], 6, axis=1)
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    slot = np.arange(len(both)) - np.searchsorted(both[:, 0], both[:, 0])
    neighbours[both[:, 0], slot] = both[:, 1]
    return Mesh(layers, neighbours, graph)


def _to_mni152(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(points @ MNI305_TO_MNI152[:3, :3].T + MNI305_TO_MNI152[:3, 3])


def _grid_mm() -> npt.NDArray[np.float64]:
    index = np.stack(np.unravel_index(np.arange(np.prod(SHAPE)), SHAPE), axis=1)
    return np.asarray(index * np.diag(AFFINE)[:3] + AFFINE[:3, 3])


def _on_grid(image: object, order: int) -> npt.NDArray[np.float64]:
    """Resample a NIfTI image onto the grid."""
    to_source = np.linalg.inv(image.affine) @ AFFINE  # type: ignore[attr-defined]
    data = np.asarray(image.dataobj, np.float64)  # type: ignore[attr-defined]
    return np.asarray(ndimage.affine_transform(data, to_source[:3, :3], to_source[:3, 3], output_shape=SHAPE, order=order))
