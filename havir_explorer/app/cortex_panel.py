"""The app's one cortex: a mesh drawn once, then painted in place."""

from __future__ import annotations

from typing import Literal, cast

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from havir_explorer.app import cortex_scene as scene
from havir_explorer.app.figure import DRAWING, Figure
from havir_explorer.data.dataset import Atlas, SurfaceMap
from havir_explorer.draw import labels, mesh, palette
from havir_explorer.draw.cortex import Region, bordered, regions
from havir_explorer.errors import RequestError
from havir_explorer.records import FloatArray

Theme = Literal["auto", "light", "dark"]
VIEWS = ("left lateral", "right lateral", "ventral", "medial", "posterior", "flat")
"""Views on offer, in the order of the buttons."""

SPATIAL = ("prf-visualrois",)
"""Atlas files outlined by the "spatial" switch; every other outlined file belongs to "semantic"."""

_MESH, _BAR, _FIRST_OUTLINE = range(3)  # traces; two outlines a file (casing and line)
_INK = {"auto": "#808080", "light": "#3c3c3c", "dark": "#d0d0d0"}
_STYLE = "<style>.havir-auto-ink :is(.g-gtitle, .cbaxis, .cbtitle, .infolayer .colorbar) text {fill: var(--jp-ui-font-color1, #808080) !important}</style>"
"""JupyterLab's own text colour; where the page has none, a grey that reads on white and on black."""
_CASING = "#1c1c1c"
_BAR_WIDTH = 90
"""Pixels kept beside the brain for the colour bar."""


class CortexPanel:
    """Cortical map with ROI outlines; one plotly FigureWidget for the life of the app.

    ``widget`` goes into a layout; everything else is methods. Painting sends 220 kB to the browser, the mesh is sent once.

    Parameters
    ----------
    height : int
        Of the figure in pixels; it never changes.
    width : int
        Width in pixels that the views are fitted to; the figure itself fills its container.
    theme : {'auto', 'light', 'dark'}
        Colour of the text: 'auto' follows JupyterLab's theme; see :meth:`set_theme`.

    Attributes
    ----------
    widget : ipywidgets.VBox
        View buttons and outline switches over the figure.
    figure : plotly.graph_objects.FigureWidget
    view : str
        One of ``VIEWS``.
    """

    def __init__(self, *, height: int = 420, width: int = 860, theme: Theme = "auto") -> None:
        self._box = (width - _BAR_WIDTH, height - scene.TITLE)
        self._regions: tuple[Region, ...] = ()
        self._lines: dict[bool, dict[str, list[mesh.Outline]]] = {}
        self._scale: tuple[str, float, float, str] | None = None
        self._theme: Theme = theme
        self.view = VIEWS[0]
        with DRAWING:
            drawn = go.Figure(self._base_traces(), scene.layout(height, _INK[theme]))
            self.figure = Figure(drawn, {"displayModeBar": False, "scrollZoom": True, "responsive": True}, self._replace)
        self._buttons = widgets.ToggleButtons(
            options=[(v.capitalize(), v) for v in VIEWS], value=self.view, style={"button_width": "auto"}, layout=widgets.Layout(width="auto")
        )
        self._switches = {name: _switch(name) for name in ("spatial ROIs", "semantic ROIs", "names")}
        self._switches["names"].value = False
        self._buttons.observe(lambda change: self.set_view(change["new"]), "value")
        for switch in self._switches.values():
            switch.observe(lambda _: self._show_outlines(), "value")
        bar = widgets.HBox(
            [self._buttons, widgets.HBox(list(self._switches.values()))],
            layout=widgets.Layout(justify_content="space-between", align_items="center", flex_flow="row wrap"),
        )
        style = widgets.HTML(_STYLE, layout=widgets.Layout(display="none"))
        self.widget = widgets.VBox([bar, self.figure, style], layout=widgets.Layout(width="100%", min_height=f"{height + 40}px"))
        self._mark_theme()

    def set_rois(self, atlas: Atlas, surface: SurfaceMap) -> None:
        """Draw the outlines of a subject's ROIs; call it when the subject changes.

        Parameters
        ----------
        atlas : Atlas
        surface : SurfaceMap
        """
        self._regions = tuple(Region(r.name, r.file, mesh.to_fsaverage5(r.inside)) for r in regions(atlas, surface))
        self._lines = {}
        with DRAWING:
            with self.figure.batch_update():
                self.figure.data = self.figure.data[:_FIRST_OUTLINE]
                self.figure.data[_MESH].text = self._vertex_names()
            self.figure.add_traces(self._outline_traces())
            self._show_outlines()

    def show(
        self,
        values_by_vertex: FloatArray,
        title: str,
        unit: str,
        vmin: float,
        vmax: float,
        *,
        cmap: str = palette.UNSIGNED,
        threshold: float | None = None,
        without: str = "no value",
    ) -> None:
        """Paint a map; the mesh, the camera and the outlines stay as they are.

        Parameters
        ----------
        values_by_vertex : float32 (n_vertices,)
            Of fsaverage5, fsaverage6 or fsaverage; NaN is drawn as bare cortex.
        title, unit : str
        vmin, vmax : float
            Range of the colours.
        cmap : str
            matplotlib colour map; ``palette.SIGNED`` with a symmetric range for effects.
        threshold : float, optional
            Smaller absolute values are drawn as bare cortex.
        without : str
            What the pointer is told where there is no value.

        Raises
        ------
        DataInvalid
            Not one value a vertex.
        """
        values = mesh.to_fsaverage5(np.asarray(values_by_vertex, np.float32))
        colors = palette.paint(values, mesh.sulci(), vmin, vmax, cmap, threshold)
        with DRAWING, self.figure.batch_update():
            brain = self.figure.data[_MESH]
            brain.vertexcolor = colors
            brain.customdata = values
            self.figure.without = without
            self.figure.layout.title.text = title
            if self._scale != (scale := (unit, vmin, vmax, cmap)):
                self._scale = scale
                self._draw_bar(unit, vmin, vmax, cmap)

    def _replace(self) -> None:
        """Put another widget where the figure missed its start in the browser."""
        with DRAWING:
            self.figure = self.figure.anew()
            first, _, last = self.widget.children
            self.widget.children = (first, self.figure, last)

    def _draw_bar(self, unit: str, vmin: float, vmax: float, cmap: str) -> None:
        """Range, colours and unit; apart from :meth:`show` because plotly checks all of it anew, which takes longer than painting."""
        marker = self.figure.data[_BAR].marker
        marker.update(cmin=vmin, cmax=vmax, colorscale=palette.colorscale(cmap))
        self.figure.data[_MESH].hovertemplate = f"%{{text}}%{{customdata:.2f}}<extra>{unit}</extra>"
        marker.colorbar.update(title={"text": unit}, tickvals=np.linspace(vmin, vmax, 5).round(6))

    def set_view(self, view: str) -> None:
        """Turn the hemispheres for a view; undoes the user's own rotation.

        Parameters
        ----------
        view : str
            One of ``VIEWS``.

        Raises
        ------
        RequestError
            No such view.
        """
        if view not in VIEWS:
            msg = f"no view is called {view!r}; choose one of {', '.join(VIEWS)}"
            raise RequestError(msg)
        self.view = view
        self._buttons.value = view
        where = self._scene
        with DRAWING, self.figure.batch_update():
            self.figure.data[_MESH].update(**scene.vertices(where))
            self.figure.layout.scene.update(**scene.axes(where, self._box, self._zoom), camera=scene.CAMERA)
            self.figure.layout.scene.annotations = self._texts()  # not in update(), which would edit them one by one beside setting them anew
            for trace, points in zip(self.figure.data[_FIRST_OUTLINE:], self._outline_points(), strict=True):
                trace.update(x=points[:, 0], y=points[:, 1], z=points[:, 2])

    def set_theme(self, theme: Theme) -> None:
        """Set the colour of the text for a light or a dark page; the background is the page's own."""
        self._theme = theme
        self._mark_theme()
        with DRAWING, self.figure.batch_update():
            self.figure.layout.font.color = _INK[theme]
            self.figure.layout.scene.annotations = self._texts()

    def _mark_theme(self) -> None:
        (self.widget.add_class if self._theme == "auto" else self.widget.remove_class)("havir-auto-ink")

    @property
    def _scene(self) -> mesh.Scene:
        return mesh.scene(cast("mesh.View", self.view))

    @property
    def _zoom(self) -> float:
        return scene.ZOOM.get(self.view, 1.0)

    def _base_traces(self) -> list[go.Mesh3d | go.Scatter3d]:
        where = self._scene
        bare = palette.paint(np.full(mesh.N_VERTICES, np.nan, np.float32), mesh.sulci(), 0, 1)
        light = {"ambient": 0.8, "diffuse": 0.36, "specular": 0.04, "roughness": 0.9, "fresnel": 0.0}
        brain = go.Mesh3d(
            **scene.vertices(where),
            vertexcolor=bare,
            lighting=light,
            lightposition={"x": -400, "y": -4000, "z": 3000},
            hovertemplate="%{text}%{customdata:.2f}<extra></extra>",
        )
        colorbar = {"thickness": 12, "len": 0.72, "outlinewidth": 0, "tickfont": {"size": 11}, "title": {"side": "right", "font": {"size": 12}}, "x": 1.0}
        marker = {"size": 0, "color": [0], "cmin": 0, "cmax": 1, "colorscale": palette.colorscale(palette.UNSIGNED), "showscale": True, "colorbar": colorbar}
        bar = go.Scatter3d(x=[None], y=[None], z=[None], mode="markers", marker=marker, hoverinfo="skip")
        return [brain, bar]

    def _vertex_names(self) -> list[str]:
        """Names of the regions at every vertex, joined, ready to stand before the value."""
        found: dict[int, list[str]] = {}
        for region in self._regions:
            for vertex in np.flatnonzero(region.inside).tolist():
                found.setdefault(vertex, []).append(region.name)
        return [f"{' · '.join(found[v])}<br>" if v in found else "" for v in range(mesh.N_VERTICES)]

    def _files(self) -> dict[str, str]:
        return palette.file_colors(list(dict.fromkeys(r.file for r in self._regions)))

    def _outline_traces(self) -> list[go.Scatter3d]:
        traces = []
        points = iter(self._outline_points())
        for file, color in self._files().items():
            for width, ink in ((5, _CASING), (2.5, color)):
                xyz = next(points)
                traces.append(
                    go.Scatter3d(x=xyz[:, 0], y=xyz[:, 1], z=xyz[:, 2], mode="lines", line={"width": width, "color": ink}, hoverinfo="skip", name=file)
                )
        return traces

    def _outline_points(self) -> list[FloatArray]:
        """For every file its outlines in the current view, twice (casing below, line above); lines are parted by NaN."""
        where, parted = self._scene, np.full((1, 3), np.nan, np.float32)
        is_flat = self.view == "flat"
        if is_flat not in self._lines:
            outlined = bordered(self._regions)
            self._lines[is_flat] = {f: [line for r in outlined if r.file == f for line in mesh.outlines(r.inside, where.faces)] for f in self._files()}
        result = []
        for lines in self._lines[is_flat].values():
            for lift in (0.7, 1.1):
                pieces = [piece for line in lines for piece in (line.points(where, lift=lift), parted)]
                result.append(np.concatenate(pieces) if pieces else parted)
        return result

    def _texts(self) -> list[dict[str, object]]:
        """L and R above their hemispheres and, when asked for, the names of the regions that face the viewer."""
        where = self._scene
        letters = [scene.annotation(letter, (x, 0, z), (0, -9), size=14, color=_INK[self._theme]) for letter, x, z in where.letters]
        if not self._switches["names"].value:
            return letters
        found = [(r.name, at) for r in self._shown() for half in self._halves() if (at := scene.middle(where, r.inside, half)) is not None]
        if not found:
            return letters
        pixels = scene.scale(where, self._box) * self._zoom
        anchors = np.array([[at[0], -at[2]] for _, at in found], np.float64) * pixels
        sizes = np.array([[6.4 * len(name) + 4, 14] for name, _ in found])
        moves = labels.place(anchors, sizes, beside=np.ones(len(found), np.bool_)) - anchors
        return letters + [scene.annotation(name, at, move, size=11, color="#101010") for (name, at), move in zip(found, moves, strict=True)]

    def _halves(self) -> tuple[int, ...]:
        """Hemispheres in sight: one hides the other from the side."""
        return {"left lateral": (0,), "right lateral": (1,)}.get(self.view, (0, 1))

    def _shown(self) -> tuple[Region, ...]:
        return tuple(r for r in self._regions if self._is_on(r.file))

    def _is_on(self, file: str) -> bool:
        return bool(self._switches["spatial ROIs" if file in SPATIAL else "semantic ROIs"].value)

    def _show_outlines(self) -> None:
        with DRAWING, self.figure.batch_update():
            self.figure.layout.scene.annotations = self._texts()
            for trace in self.figure.data[_FIRST_OUTLINE:]:
                trace.visible = self._is_on(trace.name)


def _switch(name: str) -> widgets.ToggleButton:
    description = name[0].upper() + name[1:]
    return widgets.ToggleButton(description=description, value=True, layout=widgets.Layout(width="auto", margin="2px 4px 2px 0"))
