"""The cortex figure for print: inflated and flat views of both hemispheres by nilearn, ROI outlines with their names, one colour bar."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Stroke, withStroke
from mpl_toolkits.mplot3d import Axes3D, proj3d
from nilearn.plotting import plot_surf

from havir_explorer.data.dataset import Atlas, SurfaceMap
from havir_explorer.draw import labels, mesh, palette
from havir_explorer.draw.cortex import Region, bordered, regions
from havir_explorer.records import BoolArray, FloatArray

WIDTH, HEIGHT, DPI = 1280, 850, 160
"""Pixels, and pixels an inch: 8 inches wide, so that its 6.5-point names stay readable in a two-column page."""
_INK = "#222222"
_PANELS: tuple[tuple[mesh.View, tuple[int, int, int, int]], ...] = (  # left, top, width, height in pixels
    ("lateral", (16, 78, 416, 150)),
    ("medial", (432, 78, 416, 150)),
    ("ventral", (848, 78, 416, 150)),
    ("flat", (16, 254, 1248, 516)),
)


def figure(
    values_by_vertex: FloatArray,
    surface: SurfaceMap,
    atlas: Atlas,
    *,
    title: str,
    unit: str,
    synthetic: bool,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = palette.UNSIGNED,
) -> Figure:
    """Draw a cortical map: lateral, medial and ventral on the inflated surface, and the flat map with ROI names.

    Parameters
    ----------
    values_by_vertex : float32 (n_vertices,)
        Of :func:`cortical_map`; NaN is drawn as bare cortex.
    surface : SurfaceMap
    atlas : Atlas
    title, unit : str
        ``unit`` is the colour bar's label.
    synthetic : bool
        Adds the words "synthetic demo".
    vmin, vmax : float, optional
        Range of the colours; by default the values' own, and [0, 1] for a map without values.
    cmap : str
        matplotlib colour map.

    Returns
    -------
    matplotlib.figure.Figure
        1280 by 850 pixels at 160 per inch; not registered with pyplot. The caller saves it.

    Raises
    ------
    DataInvalid
        Not one value a vertex of fsaverage5, fsaverage6 or fsaverage.
    """
    values = mesh.to_fsaverage5(np.asarray(values_by_vertex, np.float32))
    low, high = _range(values, vmin, vmax)
    shown = regions(atlas, surface)
    colors = palette.file_colors(list(dict.fromkeys(r.file for r in shown)))
    fig = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(fig)
    for view, box in _PANELS:
        where = mesh.scene(view)
        scale = 0.97 * min(box[2] / where.size[0], box[3] / where.size[2])
        _surface(fig, where, values, box, scale, low, high, cmap)
        over = _overlay(fig, box, scale)
        _draw_outlines(over, where, shown, colors, wide=1.6 if view == "flat" else 1.1)
        _captions(over, view)
        if view == "flat":
            _names(over, where, shown)
    _legend(fig, colors)
    _colorbar(fig, low, high, cmap, unit)
    fig.text(0.5, 1 - 22 / HEIGHT, title, ha="center", va="center", fontsize=10, color=_INK)
    if synthetic:
        badge = {"boxstyle": "round,pad=0.35", "facecolor": "#EEEEEE", "edgecolor": "none"}
        fig.text(1 - 20 / WIDTH, 1 - 22 / HEIGHT, "synthetic demo", ha="right", va="center", fontsize=7, color="#444444", bbox=badge)
    return fig


def _range(values: FloatArray, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    low = vmin if vmin is not None else float(known.min()) if known.size else 0.0
    high = vmax if vmax is not None else float(known.max()) if known.size else 1.0
    return low, high if high > low else low + 1.0


def _rect(box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """Pixels from the top left to matplotlib's fractions from the bottom left."""
    left, top, width, height = box
    return left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT


def _surface(fig: Figure, where: mesh.Scene, values: FloatArray, box: tuple[int, int, int, int], scale: float, low: float, high: float, cmap: str) -> None:
    """Let nilearn draw the mesh, then set its axes to ``scale`` pixels a millimetre with the scene's origin in the middle of the box."""
    side = max(box[2], box[3])
    square = (box[0] + (box[2] - side) // 2, box[1] + (box[3] - side) // 2, side, side)
    ax = fig.add_axes(_rect(square), projection="3d", proj_type="ortho")
    faces = where.faces.astype(np.int64)
    plot_surf(
        (where.xyz.copy(), faces),
        surf_map=values,
        bg_map=1 - palette.sulci_grey(mesh.sulci()),  # nilearn draws 1 as black
        hemi="left",
        view=(0, -90),
        engine="matplotlib",
        cmap=cmap,
        colorbar=False,
        vmin=low,
        vmax=high,
        axes=ax,
        figure=fig,
    )
    _fit(ax, where, scale, centre=(box[0] + box[2] / 2, HEIGHT - box[1] - box[3] / 2))
    ax.patch.set_visible(False)


def _fit(ax: Axes3D, where: mesh.Scene, scale: float, centre: tuple[float, float]) -> None:
    """Set zoom and limits so that the scene's origin lies at ``centre`` (pixels from the bottom left) at ``scale`` pixels a millimetre.

    matplotlib's own mapping depends on margins and is a few pixels off centre, so it is measured and corrected.
    """
    origin = -where.xyz.mean(axis=0, dtype=np.float64)  # nilearn centres the mesh on its vertices' mean
    half = max(where.size) / 2
    _limits(ax, origin, half)
    ax.set_box_aspect((1, 1, 1), zoom=1)
    ax.apply_aspect()
    ax.set_box_aspect((1, 1, 1), zoom=scale / (_pixel(ax, origin, 100) - _pixel(ax, origin))[0] * 100)
    off = _pixel(ax, origin) - centre
    _limits(ax, origin + np.array([off[0], 0, off[1]]) / scale, half)


def _limits(ax: Axes3D, centre: npt.NDArray[np.float64], half: float) -> None:
    for set_limits, middle in zip((ax.set_xlim, ax.set_ylim, ax.set_zlim), centre, strict=True):
        set_limits(middle - half, middle + half)


def _pixel(ax: Axes3D, at: npt.NDArray[np.float64], right: float = 0) -> npt.NDArray[np.float64]:
    """Where a point of the 3-D axes, moved ``right`` millimetres, lands on the page."""
    x, y, _ = proj3d.proj_transform(at[0] + right, at[1], at[2], ax.get_proj())
    return np.asarray(ax.transData.transform((x, y)))


def _overlay(fig: Figure, box: tuple[int, int, int, int], scale: float) -> Axes:
    """Plain axes over a surface, in its millimetres."""
    over = fig.add_axes(_rect(box), label=f"over {box}")
    over.set(xlim=np.array([-0.5, 0.5]) * box[2] / scale, ylim=np.array([-0.5, 0.5]) * box[3] / scale)
    over.set_axis_off()
    over.patch.set_visible(False)
    return over


def _draw_outlines(over: Axes, where: mesh.Scene, shown: tuple[Region, ...], colors: dict[str, str], wide: float) -> None:
    """Draw the borders, ``wide`` points with their dark casing: narrower where the cortex is small, so that bands keep their colours."""
    for region in bordered(shown):
        runs = [run for line in mesh.outlines(mesh.to_fsaverage5(region.inside), where.faces) for run in _visible_runs(line.points(where), where, line)]
        for width, color, order in ((wide, _INK, 2), (wide / 2, colors[region.file], 3)):
            over.add_collection(LineCollection(runs, colors=color, linewidths=width, capstyle="round", zorder=order), autolim=False)


def _visible_runs(points: FloatArray, where: mesh.Scene, line: mesh.Outline) -> list[FloatArray]:
    """Parts of a line that face the viewer, as (n, 2) of x and z."""
    towards = -(where.normals[line.start] + where.normals[line.stop])[:, 1] / 2
    front = np.append(towards, towards[:1])[: len(points)] > 0.35
    if front.all():
        return [points[:, [0, 2]]]
    cuts = np.flatnonzero(np.diff(front.astype(int))) + 1
    bounds = [0, *cuts.tolist(), len(points)]
    return [points[a:b, [0, 2]] for a, b in pairwise(bounds) if front[a] and b - a > 1]


def _captions(over: Axes, view: str) -> None:
    for text, x, style in (("L", 0.25, "bold"), (view, 0.5, "normal"), ("R", 0.75, "bold")):
        over.text(x, 1.02, text, transform=over.transAxes, ha="center", va="bottom", fontsize=7.5, fontweight=style, color="#444444")


def _names(over: Axes, where: mesh.Scene, shown: tuple[Region, ...]) -> None:
    """Name every region of each hemisphere once, with a line to it when the name had to move."""
    used = np.zeros(mesh.N_VERTICES, bool)
    used[where.faces] = True
    found = [(region.name, at) for region in shown for half in (0, 1) if (at := _middle(where, mesh.to_fsaverage5(region.inside) & used, half)) is not None]
    if not found:
        return
    halo = [withStroke(linewidth=1.6, foreground="white")]
    texts = [over.text(at[0], at[1], name, ha="center", va="center", fontsize=6.5, color="black", path_effects=halo, zorder=6) for name, at in found]
    sizes = np.array([text.get_window_extent().size for text in texts])
    anchors = over.transData.transform([(at[0], at[1]) for _, at in found])
    narrow = np.array([width for _, (_, _, width) in found]) * np.ptp(over.bbox.intervalx) / np.ptp(over.get_xlim()) < sizes[:, 0]
    for text, anchor, centre in zip(texts, anchors, labels.place(anchors, sizes, beside=narrow, margin=3), strict=True):
        ends = over.transData.inverted().transform([anchor, centre])
        text.set_position(tuple(ends[1]))
        if np.linalg.norm(centre - anchor) > 4:
            casing = [Stroke(linewidth=1.4, foreground="white", alpha=0.7), withStroke(linewidth=0)]
            over.plot(*ends.T, color=_INK, linewidth=0.6, zorder=5, path_effects=casing)


def _middle(where: mesh.Scene, inside: BoolArray, half: int) -> npt.NDArray[np.float64] | None:
    """Return x and z of the region's vertex nearest to its centre in one hemisphere and the region's width; None where it has no vertex."""
    at = np.flatnonzero(inside[half * mesh.N_HEMISPHERE :][: mesh.N_HEMISPHERE]) + half * mesh.N_HEMISPHERE
    if not at.size:
        return None
    plane = where.xyz[at][:, [0, 2]].astype(np.float64)
    middle = plane[np.argmin(np.linalg.norm(plane - plane.mean(axis=0), axis=1))]
    return np.array([*middle, np.ptp(plane[:, 0])])


def _legend(fig: Figure, colors: dict[str, str]) -> None:
    casing = [Stroke(linewidth=3.2, foreground=_INK), withStroke(linewidth=0)]
    handles = [Line2D([], [], color=c, linewidth=1.8, label=palette.GROUP_NAMES.get(f, f), path_effects=casing) for f, c in colors.items()]
    if handles:
        fig.legend(handles=handles, loc="lower left", bbox_to_anchor=(16 / WIDTH, 14 / HEIGHT), ncols=len(handles), fontsize=7, frameon=False, handlelength=1.6)


def _colorbar(fig: Figure, low: float, high: float, cmap: str, unit: str) -> None:
    cax = fig.add_axes(_rect((800, 782, 440, 14)), label="colour bar")
    bar = fig.colorbar(ScalarMappable(Normalize(low, high), mpl.colormaps[cmap]), cax=cax, orientation="horizontal")
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=7, width=0.5, length=2.5, colors=_INK)
    bar.set_label(unit, fontsize=7.5, color=_INK, labelpad=2)
