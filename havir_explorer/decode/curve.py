"""A training's losses, kept beside the weights while it runs: a CSV file, and TensorBoard's on request."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from havir_explorer.decode.files import whole
from havir_explorer.records import Branch

TENSORBOARD = "tensorboard"


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


class Board:
    """A branch's curve for TensorBoard, in a folder of its own beside the weights; steps after ``step`` that an earlier process wrote are struck out."""

    def __init__(self, folder: Path, branch: Branch, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of imports

        self._writer = SummaryWriter(folder / TENSORBOARD / branch, purge_step=step + 1)

    def add(self, point: Point) -> None:
        """Write a point, at once."""
        for name, value in point._asdict().items():
            if name != "step":
                self._writer.add_scalar(name, value, point.step)
        self._writer.flush()
