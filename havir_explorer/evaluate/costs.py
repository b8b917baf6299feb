"""What an evaluation will take, known before its first picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from havir_explorer import pipeline
from havir_explorer.diffuse.cost import Cost
from havir_explorer.evaluate.conditions import Condition
from havir_explorer.records import Request


@dataclass(frozen=True)
class Expected:
    """An estimate for a whole evaluation.

    Parameters
    ----------
    images, conditions : int
        Each image is drawn once a condition.
    seconds : float
        Of drawing one after the other on this machine; loading, reading training images and scoring are not in it.
    bytes : int
        Of all pictures, as they are kept.
    device : str
        Of this machine.
    lacking : tuple of str
        Metrics that will be missing from the table, because their networks are not on this machine.
    """

    images: int
    conditions: int
    seconds: float
    bytes: int
    device: str
    lacking: tuple[str, ...] = ()


def expected(conditions: Sequence[Condition], requests: Mapping[str, Request], images: int, side: int, lacking: Sequence[str] = ()) -> Expected:
    """Return what drawing will take.

    Parameters
    ----------
    conditions : sequence of Condition
    requests : mapping of str to Request
        By the name of a condition's decoder.
    images : int
    side : int
        Of a picture, in pixels.
    lacking : sequence of str
        Metrics without a network.
    """
    costs = [_cost(condition, requests[condition.decoder]) for condition in conditions if condition.pictures == "generated"]
    device = costs[0].device if costs else "cpu"
    return Expected(images, len(conditions), images * sum(cost.seconds for cost in costs), images * len(conditions) * 3 * side**2, device, tuple(lacking))


def _cost(condition: Condition, request: Request) -> Cost:
    return pipeline.cost(replace(request, settings=condition.settings(request.settings)))
