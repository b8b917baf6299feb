"""A training's losses, kept beside the weights while it runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from havir_explorer.decode.files import whole
from havir_explorer.records import Branch


class Point(NamedTuple):
    """One look at the held-out pictures.

    Parameters
    ----------
    step : int
        Steps done.
    training_loss : float
        Mean over the steps since the point before.
    held_out_loss : float
    learning_rate : float
        Of the last step.
    """

    step: int
    training_loss: float
    held_out_loss: float
    learning_rate: float


def curve(folder: Path, branch: Branch) -> Path:
    """Return the file of a branch's curve."""
    return folder / f"losses-{branch}.csv"


def write(file: Path, points: list[Point]) -> None:
    """Write all points, whole or not at all; every number in full, so that two files are equal where their runs are."""
    with whole(file) as (part,), part.open("w", newline="", encoding="utf-8") as opened:
        lines = csv.writer(opened)
        lines.writerow(Point._fields)
        lines.writerows(points)
