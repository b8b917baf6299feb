"""The cortex as triangles: both hemispheres of fsaverage5 in one mesh, turned for each view, and ROI outlines over it.

A scene has x to the right, z up and y away from the viewer, so that one camera serves every view: the hemispheres turn, not the camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from nilearn.datasets import load_fsaverage, load_fsaverage_data

from havir_explorer.errors import DataInvalid
from havir_explorer.records import BoolArray, FloatArray

FaceArray = npt.NDArray[np.uint16]
Shape = Literal["inflated", "pial", "flat"]
View = Literal["left lateral", "right lateral", "lateral", "medial", "ventral", "posterior", "flat"]

MESH = "fsaverage5"
"""What to ask a data set's surface for: nilearn brings this mesh, and a browser turns it smoothly."""
N_HEMISPHERE = 10242
"""Vertices of one hemisphere of fsaverage5."""
N_VERTICES = 2 * N_HEMISPHERE
SIDES = ("left", "right")
GAP = 14.0
"""Millimetres between the hemispheres of a scene."""

_SPECK = 8
"""Edges that leave a pair of neighbouring vertices."""

_X, _Y, _Z = np.eye(3, dtype=np.float32)
_TURNS = {  # (to the right of the picture, up) for the left and for the right hemisphere, in RAS axes
    "left lateral": ((-_Y, _Z), (-_Y, _Z)),
    "right lateral": ((_Y, _Z), (_Y, _Z)),
    "lateral": ((-_Y, _Z), (_Y, _Z)),
    "medial": ((_Y, _Z), (-_Y, _Z)),
    "ventral": ((-_Y, -_X), (_Y, _X)),
    "posterior": ((_X, _Z), (_X, _Z)),
    "flat": ((_X, _Y), (_X, _Y)),
}
VIEWS: tuple[str, ...] = tuple(_TURNS)


@dataclass(frozen=True, eq=False)
class Scene:
    """Both hemispheres, laid out for one view.

    Parameters
    ----------
    xyz : float32 (20484, 3)
        Millimetres; x right, y away from the viewer, z up; centred on 0. Left hemisphere first.
    faces : uint16 (n_faces, 3)
    normals : float32 (20484, 3)
        Unit length, outward (towards the viewer on the flat map).
    size : (float, float, float)
        Extent of the drawn vertices along x, y and z in millimetres.
    letters : tuple of (str, float, float)
        ``L`` and ``R`` with their x and z.
    """

    xyz: FloatArray
    faces: FaceArray
    normals: FloatArray
    size: tuple[float, float, float]
    letters: tuple[tuple[str, float, float], ...]


@cache
def scene(view: View, shape: Shape = "inflated") -> Scene:
    """Return the mesh turned for ``view``; ``flat`` ignores ``shape``.

    The flat map leaves vertices on the cuts out of its faces; these are parked at the centre of their hemisphere.
    """
    kind: Shape = "flat" if view == "flat" else shape
    halves, faces = _halves(kind)
    turned = [_turn(half, *axes) for half, axes in zip(halves, _TURNS[view], strict=True)]
    turned = _behind(turned, front=("left lateral", "right lateral").index(view)) if view in ("left lateral", "right lateral") else _beside(turned)
    low, high = np.min([half.min(0) for half in turned], axis=0), np.max([half.max(0) for half in turned], axis=0)
    turned = [half - (low + high) / 2 for half in turned]
    xyz = np.concatenate(turned).astype(np.float32)
    letters = tuple((side[0].upper(), float(half[:, 0].mean()), float(half[:, 2].max())) for side, half in zip(SIDES, turned, strict=True))
    shown = {"left lateral": letters[:1], "right lateral": letters[1:]}.get(view, letters)
    width, depth, height = (float(s) for s in np.ptp(xyz, axis=0))
    normals = np.tile(-_Y, (len(xyz), 1)) if kind == "flat" else _normals(xyz, faces)
    return Scene(xyz, faces, normals, (width, depth, height), shown)


@cache
def _halves(shape: Shape) -> tuple[tuple[FloatArray, FloatArray], FaceArray]:
    """Coordinates of each hemisphere, centred, and the faces of both (the right one's shifted by 10242)."""
    parts = load_fsaverage("fsaverage5")[shape].parts
    coords, faces = [], []
    for shift, side in zip((0, N_HEMISPHERE), SIDES, strict=True):
        part = parts[side]
        used = np.unique(part.faces)
        xyz = part.coordinates.astype(np.float32)
        centre = (xyz[used].min(0) + xyz[used].max(0)) / 2
        placed = np.zeros_like(xyz)
        placed[used] = xyz[used] - centre
        coords.append(placed)
        faces.append(part.faces + shift)
    return (coords[0], coords[1]), np.concatenate(faces).astype(np.uint16)


def _turn(half: FloatArray, right: FloatArray, up: FloatArray) -> FloatArray:
    return half @ np.stack([right, np.cross(up, right), up], axis=1)


def _beside(halves: list[FloatArray]) -> list[FloatArray]:
    """Left hemisphere left, right one right, a gap between them."""
    left, right = halves
    return [left - [left[:, 0].max() + GAP / 2, 0, 0], right - [right[:, 0].min() - GAP / 2, 0, 0]]


def _behind(halves: list[FloatArray], front: int) -> list[FloatArray]:
    """One hemisphere behind the other, as in a head seen from the side."""
    placed = list(halves)
    placed[front] = halves[front] - [0, halves[front][:, 1].max() + GAP / 2, 0]
    placed[1 - front] = halves[1 - front] - [0, halves[1 - front][:, 1].min() - GAP / 2, 0]
    return placed


def _normals(xyz: FloatArray, faces: FaceArray) -> FloatArray:
    a, b, c = (xyz[faces[:, i]] for i in range(3))
    face = np.cross(b - a, c - a)
    total = np.zeros(xyz.shape, np.float64)
    for i in range(3):
        np.add.at(total, faces[:, i], face)
    return (total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)).astype(np.float32)


@cache
def sulci() -> FloatArray:
    """FreeSurfer's sulcal depth, float32 (20484,); positive in a sulcus."""
    parts = load_fsaverage_data("fsaverage5", mesh_type="inflated", data_type="sulcal").data.parts
    return np.concatenate([parts[side] for side in SIDES]).astype(np.float32)


Kind = TypeVar("Kind", bound=np.generic)


def to_fsaverage5(per_vertex: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """Pick fsaverage5's vertices from an array over fsaverage5, fsaverage6 or fsaverage; left hemisphere first.

    FreeSurfer's meshes are nested: the first 10242 vertices of a finer hemisphere are those of fsaverage5.

    Parameters
    ----------
    per_vertex : array (n_left + n_right, …)

    Raises
    ------
    DataInvalid
        The number of rows is not that of one of the three meshes.
    """
    half = len(per_vertex) // 2
    if len(per_vertex) % 2 or half not in (10242, 40962, 163842):
        msg = f"a cortical map needs 20484, 81924 or 327684 vertices (fsaverage5, 6 or 7, both hemispheres); got {len(per_vertex)}"
        raise DataInvalid(msg)
    if half == N_HEMISPHERE:
        return per_vertex
    return np.concatenate([per_vertex[:N_HEMISPHERE], per_vertex[half : half + N_HEMISPHERE]])


@dataclass(frozen=True, eq=False)
class Outline:
    """One line around a region: every point is the middle of a mesh edge, so that it can be placed on any shape of the same mesh.

    Parameters
    ----------
    start, stop : int64 (n_points,)
        Vertices of the edges.
    closed : bool
        False where the line ends at a cut of the flat map.
    """

    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    closed: bool

    def points(self, where: Scene, *, lift: float = 0.0, smooth: int = 2) -> FloatArray:
        """Return the line's points in a scene, float32 (n, 3), millimetres; a closed line repeats its first point.

        Parameters
        ----------
        where : Scene
        lift : float
            Millimetres above the surface, so that the line is not swallowed by it.
        smooth : int
            Passes of a three-point average, which takes the mesh's zigzag away.
        """
        xyz = (where.xyz[self.start] + where.xyz[self.stop]) / 2
        for _ in range(smooth):
            middle = (np.roll(xyz, 1, axis=0) + 2 * xyz + np.roll(xyz, -1, axis=0)) / 4
            if not self.closed:
                middle[[0, -1]] = xyz[[0, -1]]
            xyz = middle
        xyz = xyz + lift * (where.normals[self.start] + where.normals[self.stop]) / 2
        return (np.concatenate([xyz, xyz[:1]]) if self.closed else xyz).astype(np.float32)


def outlines(inside: BoolArray, faces: FaceArray) -> tuple[Outline, ...]:
    """Find the lines between the vertices of a region and the rest (marching triangles at one half).

    Parameters
    ----------
    inside : bool (n_vertices,)
    faces : uint16 (n_faces, 3)
        Each edge in at most two faces.

    Returns
    -------
    tuple of Outline
        Empty for an empty region and for one that covers the mesh. Specks of one or two vertices are left out of a region that has more.
    """
    mixed = faces[(inside[faces].sum(axis=1) % 3) != 0].astype(np.int64)
    pairs = np.stack([np.sort(mixed[:, [a, b]], axis=1) for a, b in ((0, 1), (1, 2), (2, 0))], axis=1)  # (n, 3 edges, 2 vertices)
    crossing = inside[pairs[..., 0]] != inside[pairs[..., 1]]
    keys = (pairs[..., 0] * len(inside) + pairs[..., 1])[crossing].reshape(-1, 2)  # each mixed triangle is crossed at exactly two edges
    lines = _chains(keys)
    lines = [(line, closed) for line, closed in lines if not closed or len(line) > _SPECK] or lines
    return tuple(Outline(np.array(line) // len(inside), np.array(line) % len(inside), closed) for line, closed in lines)


def _chains(links: npt.NDArray[np.int64]) -> list[tuple[list[int], bool]]:
    """Join links (pairs of nodes, each node in one or two links) into lines; the flag says whether a line is closed."""
    next_to: dict[int, list[int]] = {}
    for a, b in links.tolist():
        next_to.setdefault(a, []).append(b)
        next_to.setdefault(b, []).append(a)
    ends = [node for node, others in next_to.items() if len(others) == 1]
    seen: set[int] = set()
    lines: list[tuple[list[int], bool]] = []
    for first in [*ends, *next_to]:
        if first in seen:
            continue
        line = [first]
        seen.add(first)
        while fresh := [node for node in next_to[line[-1]] if node not in seen]:
            line.append(fresh[0])
            seen.add(fresh[0])
        lines.append((line, len(next_to[first]) == 2))
    return lines
