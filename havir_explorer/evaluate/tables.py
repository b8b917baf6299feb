"""Scores of every picture, and their means with bootstrap intervals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from havir_explorer import measure
from havir_explorer.records import FloatArray, Settings

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of every picture drawn.

    Parameters
    ----------
    dataset, subject : str
    synthetic : bool
    settings : Settings
    rows : DataFrame
        One row a condition and image: ``condition``, ``nsd_id``, ``trial``, ``seed``, and one column a metric.
    tower : str
        The feature network of the CLIP scores, in words.
    """

    dataset: str
    subject: str
    synthetic: bool
    settings: Settings
    rows: pd.DataFrame
    tower: str = measure.OWN_TOWER

    @property
    def n_images(self) -> int:
        """Number of test images."""
        return int(self.rows["nsd_id"].nunique())

    def as_dict(self) -> dict[str, object]:
        """Return means and bootstrap intervals in the shape the command line prints as JSON."""
        meant = measure.metrics(self.tower).values()
        metrics = {m.name: {"chance": m.chance, "higher_is_better": m.higher_is_better, "protocol": m.protocol} for m in meant}
        conditions = {
            name: {metric: {"mean": mean, "ci95": [low, high]} for metric, (mean, low, high) in found.items()} for name, found in self._intervals().items()
        }
        settings = dataclasses.asdict(self.settings)
        facts = {"dataset": self.dataset, "subject": self.subject, "synthetic": self.synthetic, "settings": settings, "metrics": metrics}
        return {"n_images": self.n_images, "conditions": conditions, **facts}

    def as_table(self) -> pd.DataFrame:
        """Return one row a condition, one column a metric, each cell "mean [low, high]"."""
        cells = {name: {m: f"{mean:.3f} [{low:.3f}, {high:.3f}]" for m, (mean, low, high) in found.items()} for name, found in self._intervals().items()}
        return pd.DataFrame.from_dict(cells, orient="index", columns=list(measure.METRICS))

    def _intervals(self) -> dict[str, dict[str, tuple[float, float, float]]]:
        groups = self.rows.groupby("condition", sort=False)
        return {str(name): {m: _interval(group[m].to_numpy(dtype=np.float64)) for m in measure.METRICS} for name, group in groups}


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


def _interval(values: FloatArray) -> tuple[float, float, float]:
    return float(values.mean()), *bootstrap(values)
