"""The cortex figure on a subject's own surfaces, where the data set has them: inflated from three sides, and flat where it was cut."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from havir_explorer.data.dataset import Atlas, Dataset, SurfaceMap
from havir_explorer.data.freesurfer import Hemisphere, read_surfaces
from havir_explorer.data.nsd import NSD
from havir_explorer.data.surface import NATIVE
from havir_explorer.draw import palette
from havir_explorer.draw.cortex import cortical_map, regions
from havir_explorer.errors import DataInvalid
from havir_explorer.records import BoolArray, FloatArray

_X, _Y, _Z = np.eye(3, dtype=np.float32)
_VIEWS = {  # (to the right of the picture, up) for the left and for the right hemisphere, in RAS axes
    "lateral": ((-_Y, _Z), (_Y, _Z)),
    "medial": ((_Y, _Z), (-_Y, _Z)),
    "ventral": ((-_Y, -_X), (_Y, _X)),
}
_INK = "#222222"


@dataclass(frozen=True, eq=False)
class Own:
    """A subject's own cortex.

    Parameters
    ----------
    left, right : Hemisphere
    weights : SurfaceMap
        Voxels to their vertices, left hemisphere first.
    """

    left: Hemisphere
    right: Hemisphere
    weights: SurfaceMap


def own_cortex(dataset: Dataset, subject: str) -> Own | None:
    """Read a subject's own surfaces; None where the data set has none.

    Raises
    ------
    DataMissing, DataInvalid
        A transform is absent; a file is damaged, or of another number of vertices than its partners.
    """
    found = read_surfaces(dataset.root, subject) if isinstance(dataset, NSD) else None
    if found is None or not isinstance(dataset, NSD):
        return None
    weights = dataset.surface(subject, NATIVE)
    vertices = sum(len(half.inflated) for half in found)
    if vertices != len(weights.coverage):
        msg = f"the inflated surfaces of {subject} have {vertices} vertices, but its transforms {len(weights.coverage)}; download both again"
        raise DataInvalid(msg)
    return Own(*found, weights)


def figure(values: FloatArray, own: Own, atlas: Atlas, *, title: str, unit: str, synthetic: bool, cmap: str = palette.UNSIGNED) -> Figure:
    """Draw voxel values on the subject's own cortex, with the borders of its ROIs.

    Parameters
    ----------
    values : float32 (n_voxels,)
        NaN is drawn as bare cortex.
    own : Own
    atlas : Atlas
    title, unit : str
        ``unit`` is the colour bar's label.
    synthetic : bool
        Adds the words "synthetic demo".
    cmap : str
        matplotlib colour map, over [0, 1] or the values' own range where that is wider.

    Returns
    -------
    matplotlib.figure.Figure
        Lateral, medial and ventral views, and flat maps where both hemispheres have one; the caller saves it.
    """
    painted = cortical_map(values, own.weights)
    known = painted[~np.isnan(painted)]
    norm = Normalize(min(0.0, float(known.min(initial=0))), max(1.0, float(known.max(initial=1))))
    shown = regions(atlas, own.weights)
    flats = [half.flat for half in (own.left, own.right) if half.flat is not None]
    rows = len(_VIEWS) + (len(flats) == 2)
    fig = Figure(figsize=(8, 2.3 * rows + 0.9), dpi=160, facecolor="white")
    FigureCanvasAgg(fig)
    axes = fig.subplots(rows, 2, squeeze=False)
    cut = len(own.left.inflated)
    for place, (half, part) in enumerate(((own.left, slice(0, cut)), (own.right, slice(cut, None)))):
        paint = mpl.colormaps[cmap](norm(painted[part]))
        grey = np.repeat(palette.sulci_grey(half.sulcus)[:, None], 3, axis=1)
        colors = np.where(np.isnan(painted[part])[:, None], grey, paint[:, :3])
        inside = [region.inside[part] for region in shown]
        for row, (name, turns) in enumerate(_VIEWS.items()):
            _draw(axes[row, place], _turned(half, *turns[place]), half, colors, inside, f"{'LR'[place]} {name}")
        if len(flats) == 2:
            at = np.column_stack([flats[place], np.zeros(len(flats[place]), np.float32)])
            _draw(axes[-1, place], at, half, colors, inside, f"{'LR'[place]} flat")
    bar = fig.colorbar(ScalarMappable(norm, mpl.colormaps[cmap]), ax=axes, orientation="horizontal", fraction=0.03, pad=0.03, aspect=40)
    bar.set_label(unit, fontsize=7.5, color=_INK)
    bar.ax.tick_params(labelsize=7)
    fig.suptitle(f"{title} – own surface{' – synthetic demo' if synthetic else ''}", fontsize=10, color=_INK)
    return fig


def _turned(half: Hemisphere, right: FloatArray, up: FloatArray) -> FloatArray:
    """Return vertices as (right, up, towards the viewer)."""
    return half.inflated @ np.stack([right, up, np.cross(right, up)], axis=1)


def _draw(ax: Axes, at: FloatArray, half: Hemisphere, colors: FloatArray, regions_inside: list[BoolArray], caption: str) -> None:
    """Draw the faces turned to the viewer, the farthest first; a face that lies on a region's border is dark."""
    faces = half.faces[~np.isnan(at[half.faces]).any(axis=(1, 2))]
    corners = at[faces]
    if at[:, 2].any():  # not a flat map
        first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        facing = first[:, 0] * second[:, 1] > first[:, 1] * second[:, 0]
        faces, corners = faces[facing], corners[facing]
    order = np.argsort(corners[:, :, 2].mean(axis=1), kind="stable")
    shade = colors[faces].mean(axis=1)
    for inside in regions_inside:
        shade[_border(inside, faces)] = 0.1
    triangles = corners[order][:, :, :2]  # one array, which matplotlib draws in half the time of a list
    ax.add_collection(PolyCollection(triangles, facecolors=shade[order], edgecolors="face", linewidths=0.1, rasterized=True))  # type: ignore[arg-type]
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.set_axis_off()
    ax.set_title(caption, fontsize=7.5, color="#444444", pad=2)


def _border(inside: BoolArray, faces: npt.NDArray[np.int32]) -> BoolArray:
    """Return True for faces with vertices on both sides of a region's border."""
    count = inside[faces].sum(axis=1)
    return (count > 0) & (count < 3)
