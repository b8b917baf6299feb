"""A condition's pictures against the stimuli: one row an image, one column a metric.

What compares them is put together once: a :class:`Gauge` holds a metric's feature network and the features of the stimuli, which all conditions
share. Pictures pass in groups, so that memory holds the features of one metric's pictures and no enlarged pictures.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from torch import nn

from havir_explorer.errors import WeightsMissing
from havir_explorer.measure import networks
from havir_explorer.measure.protocols import OWN_NETWORK, Measure, Protocol
from havir_explorer.measure.records import Tower
from havir_explorer.pipeline import at_side
from havir_explorer.records import FloatArray, UInt8Array

TOWER = "havir weights compact CHECKPOINT --to FOLDER --towers"
"""What makes a generator's folder with CLIP towers, from a whole checkpoint."""
GROUP = 32
"""Pictures that are resized at once."""


@dataclass(frozen=True)
class Missing:
    """A metric that cannot be computed here.

    Parameters
    ----------
    metric : str
    file : str
        What was looked for.
    get : str
        The command that brings it.
    """

    metric: str
    file: str
    get: str


@dataclass(frozen=True, eq=False)
class Gauge:
    """One metric, ready to compare pictures with the stimuli.

    Parameters
    ----------
    measure : Measure
    stimuli : uint8 (n, H, W, 3)
    read : callable or None
        What ``measure.resize`` returns to features; None for pixels.
    true : float32 (n, D) or None
        The stimuli's features; None for pixels.
    """

    measure: Measure
    stimuli: UInt8Array
    read: Callable[[FloatArray], FloatArray] | None = None
    true: FloatArray | None = None

    def compare(self, pictures: UInt8Array) -> FloatArray:
        """Return one number a picture, float32 (n,), of uint8 (n, H, W, 3): row i belongs to stimulus i."""
        measure = self.measure
        if self.read is None or self.true is None:
            groups = _groups(len(pictures))
            return np.concatenate([measure.compare(measure.resize(pictures[some]), measure.resize(self.stimuli[some])) for some in groups])
        return measure.compare(seen(measure, self.read, pictures), self.true)

    def chance(self) -> float:
        """Return what a picture unrelated to the stimulus scores: the protocol's own chance, or the mean of the next stimulus in its place."""
        measure = self.measure
        if measure.metric.chance is not None:
            return measure.metric.chance
        if self.true is not None:
            return float(measure.compare(np.roll(self.true, -1, axis=0), self.true).mean())
        return float(self.compare(np.roll(self.stimuli, -1, axis=0)).mean())


def seen(measure: Measure, read: Callable[[FloatArray], FloatArray], pictures: UInt8Array) -> FloatArray:
    """Return the features of pictures, float32 (n, D)."""
    return np.concatenate([read(measure.resize(pictures[some])) for some in _groups(len(pictures))])


def available(protocol: Protocol, tower: Tower | None, folder: Path | None = None) -> tuple[tuple[Measure, ...], tuple[Missing, ...]]:
    """Divide a protocol's measures into those whose weights are on this machine and the rest.

    Parameters
    ----------
    protocol : Protocol
    tower : Tower or None
        The network of the own protocol; None where the generator has none.
    folder : Path, optional
        Where checkpoints are looked for, as :func:`~havir_explorer.measure.networks.find`.
    """
    lacking = {name: lack for name in {m.network for m in protocol.measures} if (lack := _lacking(name, tower, folder))}
    missing = tuple(Missing(m.metric.name, *lacking[m.network]) for m in protocol.measures if m.network in lacking)
    return tuple(m for m in protocol.measures if m.network not in lacking), missing


def gauges(
    protocol: Protocol,
    measures: Sequence[Measure],
    stimuli: UInt8Array,
    *,
    side: int,
    tower: Tower | None = None,
    folder: Path | None = None,
    device: str = "cpu",
) -> tuple[Gauge, ...]:
    """Load the feature networks of ``measures`` and let them see the stimuli.

    Parameters
    ----------
    protocol : Protocol
    measures : sequence of Measure
        Those of :func:`available`.
    stimuli : uint8 (n, H, W, 3)
    side : int
        Of the pictures to come.
    tower, folder
        As in :func:`available`.
    device : str
        Where the networks run.

    Raises
    ------
    WeightsInvalid
        A checkpoint is damaged.
    """
    fitted = np.concatenate([at_side(stimuli[some], side) for some in _groups(len(stimuli))]) if protocol.fitted else stimuli
    loaded = {name: _loaded(name, folder, device) for name in {m.network for m in measures} - {OWN_NETWORK, ""}}
    return tuple(_gauge(measure, fitted, _reader(measure, tower, loaded.get(measure.network))) for measure in measures)


def score(pictures: UInt8Array, gauges: Sequence[Gauge]) -> pd.DataFrame:
    """Score every picture of one condition.

    Parameters
    ----------
    pictures : uint8 (n, H, W, 3)
        Row i belongs to stimulus i of the gauges; n at least 2, all test images together: identification compares each with all others.
    gauges : sequence of Gauge

    Returns
    -------
    DataFrame
        n rows; a column a metric.

    Raises
    ------
    RequestError
        Sizes differ, or there are fewer than two.
    """
    return pd.DataFrame({gauge.measure.metric.name: gauge.compare(pictures) for gauge in gauges})


def _gauge(measure: Measure, stimuli: UInt8Array, read: Callable[[FloatArray], FloatArray] | None) -> Gauge:
    return Gauge(measure, stimuli, read, None if read is None else seen(measure, read, stimuli))


def _reader(measure: Measure, tower: Tower | None, module: nn.Module | None) -> Callable[[FloatArray], FloatArray] | None:
    if measure.network == OWN_NETWORK and tower is not None:
        return cast("Callable[[FloatArray], FloatArray]", tower.features)  # of the own protocol's pictures, which stay uint8
    return networks.features(networks.network(measure.network), module, measure.layer) if module is not None else None


def _loaded(name: str, folder: Path | None, device: str) -> nn.Module:
    wanted = networks.network(name)
    file = networks.find(wanted, folder)
    if file is None:
        msg = f"{wanted.file} is not on this machine any more; get it with: havir networks fetch {name}"
        raise WeightsMissing(msg)
    return wanted.load(file, device)


def _lacking(name: str, tower: Tower | None, folder: Path | None) -> tuple[str, str] | None:
    if name == OWN_NETWORK:
        return None if tower else ("the generator's CLIP image tower", TOWER)
    if not name or networks.find(networks.network(name), folder):
        return None
    option = f" --to {shlex.quote(str(folder))}" if folder else ""
    return networks.network(name).file, f"havir networks fetch {name}{option}"


def _groups(count: int) -> list[slice]:
    return [slice(start, start + GROUP) for start in range(0, count, GROUP)]
