"""How good the reconstructions are over the shared test images, and what of it the brain is responsible for.

Every condition redraws the same images with the same noise, one seed a picture, and is scored the same way; what a control loses against
``full`` is what the thing it removes was worth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from havir_explorer import measure, pipeline
from havir_explorer.data.dataset import Dataset
from havir_explorer.diffuse import sampler
from havir_explorer.errors import RequestError, nearest
from havir_explorer.records import Decoded, FloatArray, IntArray, Request, Settings, UInt8Array

Progress = Callable[[float, str], None]
BATCH = 20
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Condition:
    """One row of the ablation table.

    Parameters
    ----------
    name : str
    why : str
        What it removes.
    strength, mix : float or None
        Instead of the settings' own.
    responses : {'own', 'wrong', 'none'}
        The trial's, another test image's (the next one in the list), or every voxel at its mean.
    """

    name: str
    why: str
    strength: float | None = None
    mix: float | None = None
    responses: str = "own"

    def settings(self, base: Settings) -> Settings:
        """Return ``base`` with this condition's changes."""
        strength = base.strength if self.strength is None else self.strength
        return dataclasses.replace(base, strength=strength, mix=base.mix if self.mix is None else self.mix)


CONDITIONS: dict[str, Condition] = {
    c.name: c
    for c in (
        Condition("full", "nothing"),
        Condition("structure_only", "diffusion: the decoded latents as they are", strength=0.0),
        Condition("semantic_only", "the decoded latents: the start is pure noise", strength=1.0),
        Condition("no_text", "the decoded text embedding", mix=0.0),
        Condition("no_image", "the decoded image embedding", mix=1.0),
        Condition("wrong_trial", "the right brain response: that of another image instead", responses="wrong"),
        Condition("no_brain", "every brain response: all voxels at their mean", responses="none"),
    )
}
ALL: tuple[str, ...] = tuple(CONDITIONS)


class Decoder(Protocol):
    """Responses to conditions."""

    def decode(self, responses: FloatArray) -> Decoded:
        """Decode float32 (B, n_voxels)."""


class Painter(Protocol):
    """Decoded conditions to pictures, and pictures to features."""

    def draw(self, decoded: Decoded, settings: Sequence[Settings]) -> UInt8Array:
        """Return uint8 (B, H, W, 3); all ``settings`` share steps and strength."""

    def features(self, pictures: UInt8Array) -> FloatArray:
        """Return float32 (n, D)."""


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
    """Test images and the mean response to each.

    Parameters
    ----------
    nsd_ids : int64 (n,)
    trials : int64 (n,)
        The first trial of each.
    responses : float32 (n, n_voxels)
        Mean over all presentations.
    stimuli : uint8 (n, H, W, 3)
        At the pictures' size.
    """

    nsd_ids: IntArray
    trials: IntArray
    responses: FloatArray
    stimuli: UInt8Array


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


def evaluate(
    dataset: str = "demo",
    subject: str = "subj01",
    *,
    conditions: Sequence[str] = ALL,
    limit: int = 100,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
    generator: str = "demo",
    decoder: str = "",
    clip: measure.Tower | None = None,
) -> Evaluation:
    """Redraw and score the shared test images of a subject.

    Parameters
    ----------
    dataset, subject, generator, decoder : str
        As in :class:`~havir_explorer.records.Request`.
    conditions : sequence of str
        Names of :data:`CONDITIONS`.
    limit : int
        At most this many images, in ascending order of their ids; 2 or more.
    seed : int
        Image i is drawn with noise of ``seed`` + i, the same in every condition.
    settings : Settings, optional
        Its seed is ignored.
    progress : callable, optional
        Called with the share done in [0, 1] and a line of text; raising stops the evaluation.
    clip : Tower, optional
        Another feature network for the CLIP scores, e.g. :func:`~havir_explorer.measure.open_clip_tower`; the generator's own when left out.

    Returns
    -------
    Evaluation

    Raises
    ------
    RequestError
        An unknown condition, a limit below 2, or fewer than two test images.
    """
    chosen = [_condition(name) for name in conditions]
    request = Request(dataset=dataset, subject=subject, generator=generator, decoder=decoder)
    data, havir, versatile = pipeline.models(request)
    tower = clip or measure.Tower(measure.OWN_TOWER, versatile.image_features)

    class _Versatile:
        def draw(self, decoded: Decoded, each: Sequence[Settings]) -> UInt8Array:
            return versatile.decode_latents(sampler.generate(versatile, decoded, each).latents)

        def features(self, pictures: UInt8Array) -> FloatArray:
            return tower.features(pictures)

    tested = collect(data, subject, limit, versatile.side)
    base = dataclasses.replace(settings or Settings(), seed=seed)
    rows = score_conditions(tested, havir, _Versatile(), chosen, base, progress=progress)
    return Evaluation(data.name, subject, data.synthetic, base, rows, tower.name)


def collect(dataset: Dataset, subject: str, limit: int, side: int) -> TestSet:
    """Return the first ``limit`` shared images a subject saw, with the mean response to each.

    Raises
    ------
    RequestError
        ``limit`` or the number of shared images is below 2.
    """
    trials = dataset.trials(subject)
    shared = trials[trials["shared"].to_numpy(dtype=bool)]
    ids = np.unique(shared["nsd_id"].to_numpy(dtype=np.int64))[: max(limit, 0)]
    if len(ids) < 2:
        msg = f"an evaluation needs at least 2 shared test images; limit is {limit} and {subject} saw {shared['nsd_id'].nunique()} in {dataset.name}"
        raise RequestError(msg)
    groups = [shared.index[shared["nsd_id"] == nsd_id].to_numpy(dtype=np.int64) for nsd_id in ids]
    responses = np.stack([dataset.responses(subject, group).mean(0) for group in groups])
    first = np.array([group[0] for group in groups])
    return TestSet(ids, first, responses, pipeline.at_side(dataset.stimuli(ids), side))


def score_conditions(
    tested: TestSet,
    decoder: Decoder,
    painter: Painter,
    conditions: Sequence[Condition],
    base: Settings,
    *,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Draw and score every test image under every condition; see :class:`Evaluation` for the rows."""
    seeds = (base.seed + np.arange(len(tested.nsd_ids))) % 2**32
    true = painter.features(tested.stimuli)
    total, frames = len(conditions) * len(seeds), []
    for place, condition in enumerate(conditions):
        responses = {"own": tested.responses, "wrong": np.roll(tested.responses, -1, axis=0), "none": np.zeros_like(tested.responses)}[condition.responses]
        pictures = []
        for start in range(0, len(seeds), BATCH):
            each = [dataclasses.replace(condition.settings(base), seed=int(seed)) for seed in seeds[start : start + BATCH]]
            pictures.append(painter.draw(decoder.decode(responses[start : start + BATCH]), each))
            if progress:
                done = place * len(seeds) + start + len(each)
                progress(done / total, f"{condition.name}: {start + len(each)} of {len(seeds)} pictures")
        frames.append(_rows(tested, seeds, condition.name, np.concatenate(pictures), true, painter))
    return pd.concat(frames, ignore_index=True)


def _rows(tested: TestSet, seeds: IntArray, name: str, pictures: UInt8Array, true: FloatArray, painter: Painter) -> pd.DataFrame:
    found = painter.features(pictures)
    return pd.DataFrame(
        {
            "condition": name,
            "nsd_id": tested.nsd_ids,
            "trial": tested.trials,
            "seed": seeds,
            "PixCorr": measure.pixcorr(pictures, tested.stimuli),
            "SSIM": measure.ssim(pictures, tested.stimuli),
            "CLIP": measure.two_way(found, true),
            "CLIP-cos": measure.cosine(found, true),
        }
    )


def _condition(name: str) -> Condition:
    if name not in CONDITIONS:
        msg = f"no condition is called {name!r}; {nearest(name, ALL, len(ALL))}"
        raise RequestError(msg)
    return CONDITIONS[name]


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
