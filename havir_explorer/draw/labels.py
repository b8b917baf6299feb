"""Names beside what they name, without one name over another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False) + np.pi / 2


def place(anchors: Points, sizes: Points, *, beside: npt.NDArray[np.bool_] | None = None, margin: float = 2.0, rings: int = 12) -> Points:
    """Put each label's centre on its anchor, or as near as no earlier label overlaps.

    Labels are placed in the order of how crowded their anchors are, the loneliest first; each tries rings of growing radius.

    Parameters
    ----------
    anchors : float64 (n, 2)
        Points to be named, in pixels.
    sizes : float64 (n, 2)
        Width and height of the labels, in pixels.
    beside : bool (n,), optional
        Labels that may not lie on their own anchor: those that would hide a small region.
    margin : float
        Pixels kept free around a label.
    rings : int
        Radii tried; the last one is used even if it overlaps.

    Returns
    -------
    float64 (n, 2)
        Centres of the labels.
    """
    centres = np.array(anchors, np.float64)
    aside = np.zeros(len(centres), bool) if beside is None else beside
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2) + np.diag(np.full(len(centres), np.inf))
    done: list[int] = []
    for i in np.argsort(-apart.min(axis=1), kind="stable"):
        centres[i] = _first_free(i, centres, sizes + margin, done, rings, aside=bool(aside[i]))
        done.append(int(i))
    return centres


def _first_free(i: np.intp, centres: Points, boxes: Points, done: list[int], rings: int, *, aside: bool) -> Points:
    """Nearest tried place of label i that overlaps no placed label and hides no other anchor."""
    tried = [] if aside else [centres[i]]
    for ring in range(1, rings + 1):
        radius = boxes[i, 1] * (0.5 + 0.5 * ring)
        tried += [centres[i] + radius * np.array([1.4 * np.cos(a), np.sin(a)]) for a in _ANGLES]
    rest = [j for j in range(len(centres)) if j != i and j not in done]
    for spot in tried:
        if aside and (np.abs(spot - centres[i]) < boxes[i] / 2).all():
            continue
        clear = all((np.abs(spot - centres[j]) >= (boxes[i] + boxes[j]) / 2).any() for j in done)
        if clear and all((np.abs(spot - centres[j]) >= boxes[i] / 2).any() for j in rest):
            return spot
    return tried[-1]
