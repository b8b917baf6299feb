"""Scores of every picture, and their means with bootstrap intervals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from havir_explorer.evaluate.scoring import Missing
from havir_explorer.measure.protocols import OWN, Protocol
from havir_explorer.records import FloatArray, Settings

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Cell:
    """A condition's mean in one metric, with the 95 % interval over images."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric as tables show it.

    Parameters
    ----------
    name : str
    chance : float
        The protocol's own, or what the next test stimulus scores in a picture's place.
    higher_is_better : bool
    protocol : str
        In words.
    """

    name: str
    chance: float
    higher_is_better: bool
    protocol: str

    @property
    def title(self) -> str:
        """Name, with an arrow where it should go."""
        return f"{self.name} {'↑' if self.higher_is_better else '↓'}"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of every picture drawn.

    Parameters
    ----------
    dataset, subject : str
    synthetic : bool
    settings : Settings
    rows : DataFrame
        One row a condition and image: ``condition``, ``kind``, ``protocol``, ``nsd_id``, ``trial``, ``seed``, and one column a metric.
    columns : tuple of Column
        What the metrics' columns mean.
    missing : tuple of Missing
        Metrics of the protocol that are not there for lack of weights.
    protocol : Protocol
    split, repeats : str
        Which test images, and whether their responses are averaged.
    left_out : tuple of str
        Why conditions are not there that nobody named: a sentence each.
    """

    dataset: str
    subject: str
    synthetic: bool
    settings: Settings
    rows: pd.DataFrame
    columns: tuple[Column, ...]
    missing: tuple[Missing, ...] = ()
    protocol: Protocol = OWN
    split: str = ""
    repeats: str = "mean"
    left_out: tuple[str, ...] = ()

    @property
    def n_images(self) -> int:
        """Number of test images."""
        return int(self.rows["nsd_id"].nunique())

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions, in order."""
        return tuple(str(name) for name in self.rows["condition"].unique())

    def cells(self, condition: str) -> tuple[Cell, ...]:
        """Return a condition's means, one a column."""
        rows = self.rows[self.rows["condition"] == condition]
        return tuple(_cell(rows[column.name].to_numpy(dtype=np.float64)) for column in self.columns)

    def facts(self) -> dict[str, object]:
        """Return what is to be said beside the numbers, in values that JSON knows."""
        metrics = {c.name: {"chance": c.chance, "higher_is_better": c.higher_is_better, "protocol": c.protocol} for c in self.columns}
        named = {"dataset": self.dataset, "subject": self.subject, "synthetic": self.synthetic, "settings": dataclasses.asdict(self.settings)}
        tested = {"split": self.split or "shared", "repeats": self.repeats, "protocol": self.protocol.name}
        return {
            "n_images": self.n_images,
            **named,
            **tested,
            "metrics": metrics,
            "missing": [dataclasses.asdict(m) for m in self.missing],
            "left_out": self.left_out,
        }

    def as_dict(self) -> dict[str, object]:
        """Return means and bootstrap intervals in the shape the command line prints as JSON."""
        conditions = {
            name: {column.name: {"mean": cell.mean, "ci95": [cell.low, cell.high]} for column, cell in zip(self.columns, self.cells(name), strict=True)}
            for name in self.conditions
        }
        return {"conditions": conditions, **self.facts()}


def bootstrap(values: FloatArray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean over images.

    Parameters
    ----------
    values : float (n,)
        One an image.
    resamples : int
    seed : int
        Of the resampling.

    Returns
    -------
    low, high : float
    """
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    return float(low), float(high)


def _cell(values: FloatArray) -> Cell:
    return Cell(float(values.mean()), *bootstrap(values))
