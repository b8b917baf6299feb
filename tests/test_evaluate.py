"""The evaluation's conditions and intervals, with a decoder and a painter whose pictures can be predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from small_world import REPEATS, SIDE, TEST, TRAIN, SmallWorld

from havir_explorer import evaluate as scoring
from havir_explorer import measure
from havir_explorer.errors import Cancelled, RequestError
from havir_explorer.records import Decoded, FloatArray, Settings, UInt8Array


class Reader:
    """Knows which response belongs to which test image, and passes the image on as its latents."""

    def __init__(self, tested: scoring.TestSet) -> None:
        self.tested = tested
        self.batches: list[int] = []

    def decode(self, responses: FloatArray) -> Decoded:
        self.batches.append(len(responses))
        distance = ((responses[:, None] - self.tested.responses) ** 2).sum(-1)
        pictures = np.where((responses == 0).all(1)[:, None, None, None], 0, self.tested.stimuli[distance.argmin(1)]).astype(np.float32)
        return Decoded(pictures, pictures.mean((1, 2), keepdims=False)[:, None], np.zeros((len(responses), 1, 3), np.float32))


class Painter:
    """Strength blends the latents into noise of the picture's seed; the mix greys it."""

    def __init__(self) -> None:
        self.asked: list[Settings] = []

    def draw(self, decoded: Decoded, settings: Sequence[Settings]) -> UInt8Array:
        self.asked += settings
        noise = np.stack([np.random.default_rng(s.seed).integers(0, 256, (SIDE, SIDE, 3)) for s in settings])
        strength, mix = (np.array([getattr(s, n) for s in settings])[:, None, None, None] for n in ("strength", "mix"))
        return ((1 - strength) * decoded.latents * (1 - 0.2 * mix) + strength * noise).astype(np.uint8)

    def features(self, pictures: UInt8Array) -> FloatArray:
        return pictures.reshape(len(pictures), SIDE, 2, SIDE // 2, 3).mean((1, 3)).reshape(len(pictures), -1).astype(np.float32)


@pytest.fixture
def tested() -> scoring.TestSet:
    return scoring.collect(SmallWorld(), "subj01", 100, SIDE)


@pytest.fixture
def evaluation(tested: scoring.TestSet) -> scoring.Evaluation:
    base = Settings(seed=5, strength=0.5)
    rows = scoring.score_conditions(tested, Reader(tested), Painter(), list(scoring.CONDITIONS.values()), base)
    return scoring.Evaluation("small", "subj01", synthetic=True, settings=base, rows=rows)


def test_the_test_set_is_the_shared_images_with_their_repeats_averaged(tested: scoring.TestSet) -> None:
    world = SmallWorld()
    assert tested.nsd_ids.tolist() == list(range(TRAIN, TRAIN + TEST))
    assert tested.trials.tolist() == tested.nsd_ids.tolist()
    trials = np.array([TRAIN + 2 + r * (TRAIN + TEST) for r in range(REPEATS)])
    assert np.allclose(tested.responses[2], world.responses("subj01", trials).mean(0))
    assert np.array_equal(tested.stimuli, world.stimuli(tested.nsd_ids))


def test_a_limit_takes_the_first_images_and_must_leave_two() -> None:
    assert len(scoring.collect(SmallWorld(), "subj01", 3, SIDE).nsd_ids) == 3
    for limit in (1, 0, -4):
        with pytest.raises(RequestError, match=f"limit is {limit} and subj01 saw {TEST}"):
            scoring.collect(SmallWorld(), "subj01", limit, SIDE)


def test_each_condition_changes_only_what_it_names() -> None:
    base = Settings(strength=0.75, mix=0.4)
    found = {c.name: (c.settings(base).strength, c.settings(base).mix, c.responses) for c in scoring.CONDITIONS.values()}
    assert found == {
        "full": (0.75, 0.4, "own"),
        "structure_only": (0.0, 0.4, "own"),
        "semantic_only": (1.0, 0.4, "own"),
        "no_text": (0.75, 0.0, "own"),
        "no_image": (0.75, 1.0, "own"),
        "wrong_trial": (0.75, 0.4, "wrong"),
        "no_brain": (0.75, 0.4, "none"),
    }


def test_conditions_score_as_their_pictures_deserve(evaluation: scoring.Evaluation) -> None:
    means = evaluation.rows.groupby("condition")[list(measure.METRICS)].mean()
    assert means.loc["structure_only", "PixCorr"] == pytest.approx(1, abs=1e-3)
    assert means.loc["structure_only", "CLIP"] == 1
    assert means.loc["full", "PixCorr"] > means.loc["wrong_trial", "PixCorr"] + 0.1
    assert abs(means.loc["semantic_only", "PixCorr"]) < 0.05
    assert abs(means.loc["no_brain", "PixCorr"]) < 0.05


def test_every_picture_has_a_seed_of_its_own_that_conditions_share(evaluation: scoring.Evaluation) -> None:
    for _, group in evaluation.rows.groupby("condition"):
        assert group["seed"].tolist() == list(range(5, 5 + TEST))


def test_batches_do_not_change_the_pictures(tested: scoring.TestSet, evaluation: scoring.Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH", 5)
    reader = Reader(tested)
    rows = scoring.score_conditions(tested, reader, Painter(), list(scoring.CONDITIONS.values()), evaluation.settings)
    assert reader.batches[:3] == [5, 5, 2]
    assert rows.equals(evaluation.rows)


def test_progress_counts_pictures_and_can_stop(tested: scoring.TestSet) -> None:
    said: list[tuple[float, str]] = []
    conditions = [scoring.CONDITIONS["full"], scoring.CONDITIONS["no_brain"]]
    scoring.score_conditions(tested, Reader(tested), Painter(), conditions, Settings(), progress=lambda share, text: said.append((share, text)))
    assert said == [(0.5, "full: 12 of 12 pictures"), (1.0, "no_brain: 12 of 12 pictures")]

    def stop(share: float, text: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        scoring.score_conditions(tested, Reader(tested), Painter(), conditions, Settings(), progress=stop)


def test_json_has_the_promised_shape(evaluation: scoring.Evaluation) -> None:
    found = evaluation.as_dict()
    assert found["n_images"] == TEST
    assert list(found["conditions"]) == list(scoring.ALL)
    cell = found["conditions"]["full"]["PixCorr"]
    values = evaluation.rows.query("condition == 'full'")["PixCorr"]
    assert cell["mean"] == pytest.approx(values.mean())
    assert cell["ci95"][0] < cell["mean"] < cell["ci95"][1]
    assert list(found["conditions"]["full"]) == ["PixCorr", "SSIM", "CLIP", "CLIP-cos"]


def test_the_table_prints_means_with_intervals(evaluation: scoring.Evaluation) -> None:
    assert evaluation.as_table().loc["structure_only", "CLIP"] == "1.000 [1.000, 1.000]"


def test_bootstrap_of_a_normal_sample_is_near_the_analytic_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = scoring.bootstrap(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert scoring.bootstrap(values) == (low, high)


def test_an_unknown_condition_is_refused() -> None:
    with pytest.raises(RequestError, match="no condition is called 'fulll'; nearest: full"):
        scoring.evaluate("demo", "subj01", conditions=("fulll",))
