"""What plotly is told of a scene: camera, axes, mesh and letters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from havir_explorer.draw import labels, mesh
from havir_explorer.records import BoolArray, FloatArray

TITLE = 34
"""Pixels kept above the brain for the title."""
_MARGIN = 22.0
"""Millimetres around a scene, for the letters."""
_SPAN = 2.0
"""plotly's orthographic camera shows this much of the aspect ratio along the height of a scene (measured)."""
ZOOM = {"flat": 1.6, "ventral": 1.6}
"""Views that come closer than the whole cortex, because visual areas lie around their middle."""
CAMERA = {"eye": {"x": 0, "y": -2, "z": 0}, "up": {"x": 0, "y": 0, "z": 1}, "center": {"x": 0, "y": 0, "z": 0}, "projection": {"type": "orthographic"}}


def layout(height: int, ink: str) -> go.Layout:
    """Return the layout of a figure ``height`` pixels high on the page's own background, its text in the colour ``ink``."""
    clear = "rgba(0,0,0,0)"
    return go.Layout(
        height=height,
        autosize=True,
        margin={"l": 0, "r": 0, "t": TITLE, "b": 0},
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        font={"color": ink, "family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12},
        title={"text": "", "x": 0.01, "xanchor": "left", "y": 0.98, "yanchor": "top", "font": {"size": 14}},
        showlegend=False,
        uirevision="keep",
        hoverlabel={"bgcolor": "#202020", "font": {"color": "#f4f4f4", "size": 12}, "bordercolor": "#202020"},
        scene={
            "bgcolor": clear,
            "camera": CAMERA,
            "dragmode": "orbit",
            "uirevision": "keep",
            "aspectmode": "manual",
            **axes(mesh.scene("left lateral"), (height, height)),
        },
    )


def axes(where: mesh.Scene, box: tuple[int, int], zoom: float = 1.0) -> dict[str, object]:
    """Ranges and aspect that show a scene at one scale along all axes: ``zoom`` times as large as the whole of it could be in the box."""
    hidden = {"visible": False, "showspikes": False}
    size = [s + _MARGIN for s in where.size]
    aspect = zoom * scale(where, box) * _SPAN / box[1]
    ranges = {f"{name}axis": {**hidden, "range": [-s / 2, s / 2]} for name, s in zip("xyz", size, strict=True)}
    return {**ranges, "aspectratio": {name: s * aspect for name, s in zip("xyz", size, strict=True)}}


def scale(where: mesh.Scene, box: tuple[int, int]) -> float:
    """Pixels a millimetre."""
    return min(box[0] / (where.size[0] + _MARGIN), box[1] / (where.size[2] + _MARGIN))


def vertices(where: mesh.Scene) -> dict[str, np.ndarray]:
    """Return a scene's mesh as plotly's Mesh3d takes it."""
    xyz, faces = where.xyz, where.faces
    return {"x": xyz[:, 0], "y": xyz[:, 1], "z": xyz[:, 2], "i": faces[:, 0], "j": faces[:, 1], "k": faces[:, 2]}


def annotation(words: str, at: Sequence[float] | FloatArray, move: Sequence[float] | labels.Points, *, size: int, color: str) -> dict[str, object]:
    """Annotation of a point of the scene, ``move`` pixels (right, down) away; a line joins them when the text had to make room."""
    plate = "rgba(255,255,255,0.8)" if size < 14 else "rgba(0,0,0,0)"
    right, down = float(move[0]), float(move[1])
    far = size < 14 and abs(right) + abs(down) > 4
    line = {"ax": right, "ay": down, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": "#101010"} if far else {"yshift": -down}
    x, y, z = (float(v) for v in at)
    return {"text": words, "x": x, "y": y, "z": z, "showarrow": far, "font": {"size": size, "color": color}, "bgcolor": plate, "borderpad": 0, **line}


def middle(where: mesh.Scene, inside: BoolArray, half: int) -> FloatArray | None:
    """Return the region's point nearest to its centre among those of one hemisphere that face the viewer; None where none does."""
    front = inside & (where.normals[:, 1] < -0.35)
    at = np.flatnonzero(front[half * mesh.N_HEMISPHERE :][: mesh.N_HEMISPHERE]) + half * mesh.N_HEMISPHERE
    if not at.size:
        return None
    xyz = where.xyz[at]
    return np.asarray(xyz[np.argmin(np.linalg.norm(xyz - xyz.mean(axis=0), axis=1))], np.float32)
