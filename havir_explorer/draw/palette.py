"""Colours: ROI outlines that everyone can tell apart, and vertices painted fast enough for a slider."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from havir_explorer.records import FloatArray

ColorArray = npt.NDArray[np.str_]

UNSIGNED = "viridis"
"""Colour map of maps that start at zero."""
SIGNED = "RdBu_r"
"""Colour map of maps whose zero means something; always drawn with a symmetric range."""

OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")
"""Okabe and Ito (2008), "Color Universal Design": eight colours that stay apart under colour-vision deficiency."""

FILE_COLORS = {
    "prf-visualrois": "#FFFFFF",
    "floc-faces": "#D55E00",
    "floc-bodies": "#E69F00",
    "floc-places": "#CC79A7",
    "floc-words": "#56B4E9",
}
"""Outline colours of NSD's atlas files over viridis: white for the spatial group, Okabe-Ito's for the semantic ones."""
_SPARE = ("#009E73", "#F0E442", "#0072B2", "#000000")
GROUP_NAMES = {
    "prf-visualrois": "early visual",
    "floc-faces": "faces",
    "floc-bodies": "bodies",
    "floc-places": "places",
    "floc-words": "words",
}
"""What a reader calls these files."""

_LEVELS = 256
_LIGHT, _DARK = 0.80, 0.56


def file_colors(files: Sequence[str]) -> dict[str, str]:
    """Return one outline colour per atlas file, ``#RRGGBB``; files beyond the palette share grey and are told apart by their names.

    Parameters
    ----------
    files : sequence of str
        Atlas file names, without repeats.
    """
    spare = iter(_SPARE)
    return {name: FILE_COLORS.get(name) or next(spare, "#888888") for name in files}


def sulci_grey(sulc: FloatArray) -> FloatArray:
    """Grey level of the bare cortex: gyri light, sulci dark, softly stepped.

    Parameters
    ----------
    sulc : float32 (n_vertices,)
        FreeSurfer's sulcal depth; positive in a sulcus.

    Returns
    -------
    float32 (n_vertices,)
        In [0.56, 0.80]; 0 is black.
    """
    step = 0.5 + 0.5 * np.tanh(np.asarray(sulc, np.float32) / 0.2)
    return (_LIGHT + (_DARK - _LIGHT) * step).astype(np.float32)


def paint(values: FloatArray, sulc: FloatArray, vmin: float, vmax: float, cmap: str = UNSIGNED, threshold: float | None = None) -> ColorArray:
    """Colour every vertex: the map's colour where there is a value, grey folds where there is none.

    Colours have 12 bits (``#rgb``): four characters a vertex keep the message to the browser small.

    Parameters
    ----------
    values : float32 (n_vertices,)
        NaN means no data.
    sulc : float32 (n_vertices,)
        Sulcal depth, for the grey of vertices without a value.
    vmin, vmax : float
        Values of the first and last colour; values beyond are clipped.
    cmap : str
        Name of a matplotlib colour map.
    threshold : float, optional
        Vertices with ``abs(value) < threshold`` are drawn as bare cortex.

    Returns
    -------
    str (n_vertices,)
        dtype ``<U4``.
    """
    bare = np.isnan(values)
    if threshold is not None:
        bare |= np.abs(values) < threshold
    span = vmax - vmin if vmax > vmin else 1.0
    level = np.clip((np.where(bare, vmin, values) - vmin) * (_LEVELS / span), 0, _LEVELS - 1).astype(np.intp)
    grey = (sulci_grey(sulc) * (_LEVELS - 1)).astype(np.intp)
    return _table(cmap)[np.where(bare, grey + _LEVELS, level)]


@cache
def _table(cmap: str) -> ColorArray:
    """Map's 256 colours, then 256 greys, as ``#rgb``."""
    ramp = np.linspace(0, 1, _LEVELS)
    rgb = np.concatenate([mpl.colormaps[cmap](ramp)[:, :3], np.repeat(ramp[:, None], 3, axis=1)])
    return np.array(["#{:x}{:x}{:x}".format(*c) for c in np.rint(rgb * 15).astype(int)])


def colorscale(cmap: str, stops: int = 33) -> list[tuple[float, str]]:
    """Return a matplotlib colour map as plotly's list of (position in [0, 1], ``#rrggbb``)."""
    return [(float(p), mpl.colors.to_hex(mpl.colormaps[cmap](p))) for p in np.linspace(0, 1, stops)]
