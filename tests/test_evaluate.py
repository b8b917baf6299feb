"""The evaluation's conditions and intervals, with a decoder and a painter whose pictures can be predicted."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from small_world import REPEATS, SIDE, TEST, TRAIN, SmallWorld

from havir_explorer import evaluate as scoring
from havir_explorer import measure
from havir_explorer.decode.manifest import Manifest
from havir_explorer.diffuse.sampler import Drawn
from havir_explorer.errors import Cancelled, RequestError
from havir_explorer.evaluate import drawing, run
from havir_explorer.records import Decoded, FloatArray, Request, Settings, UInt8Array

BASE = Settings(seed=5, strength=0.5)


class Reader:
    """Knows which response belongs to which test image, and passes the image on as its latents."""

    def __init__(self, responses: FloatArray, stimuli: UInt8Array) -> None:
        self.responses, self.stimuli = responses, stimuli
        self.batches: list[int] = []
        self.manifest = Manifest.model_construct(subject="subj01", train_nsd_ids=tuple(range(TRAIN)))

    def decode(self, responses: FloatArray) -> Decoded:
        self.batches.append(len(responses))
        distance = ((responses[:, None] - self.responses) ** 2).sum(-1)
        pictures = np.where((responses == 0).all(1)[:, None, None, None], 0, self.stimuli[distance.argmin(1)]).astype(np.float32)
        return Decoded(pictures, pictures.mean((1, 2), keepdims=False)[:, None], np.zeros((len(responses), 1, 3), np.float32))


class Painter:
    """Strength blends the latents into noise of the picture's seed; the mix greys it."""

    side = SIDE

    def generate(self, decoded: Decoded, settings: Sequence[Settings], *, on_step: Callable[[int, int, torch.Tensor], None]) -> Drawn:
        noise = np.stack([np.random.default_rng(s.seed).integers(0, 256, (SIDE, SIDE, 3)) for s in settings])
        strength, mix = (np.array([getattr(s, n) for s in settings])[:, None, None, None] for n in ("strength", "mix"))
        latents = torch.from_numpy((1 - strength) * decoded.latents * (1 - 0.2 * mix) + strength * noise)
        for step in (1, 2):
            on_step(step, 2, latents)
        return Drawn(latents, 2, 1.0)

    def image_features(self, pictures: UInt8Array) -> FloatArray:
        return pictures.reshape(len(pictures), SIDE, 2, SIDE // 2, 3).mean((1, 3)).reshape(len(pictures), -1).astype(np.float32)


@pytest.fixture
def tested() -> scoring.TestSet:
    return scoring.collect(SmallWorld(), "subj01", 100, SIDE)


@pytest.fixture
def reader(tested: scoring.TestSet, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """The decoder; the small world, it and a painter stand in for what a request names."""
    world, painter = SmallWorld(), Painter()
    reader = Reader(scoring.mean_responses(world, "subj01", tested.nsd_ids), tested.stimuli)
    for module in (drawing, run):
        monkeypatch.setattr(module, "models", lambda request: (world, reader, painter))
    monkeypatch.setattr(drawing, "fitting", lambda model, wanted: wanted)
    monkeypatch.setattr(drawing, "generate", Painter.generate)
    monkeypatch.setattr(drawing, "paint", lambda model, latents: latents.numpy().astype(np.uint8))
    return reader


@pytest.fixture
def evaluation(reader: Reader) -> scoring.Evaluation:
    return scoring.evaluate(seed=BASE.seed, settings=BASE)


def test_the_test_set_is_the_shared_images_with_their_repeats_averaged(tested: scoring.TestSet) -> None:
    world = SmallWorld()
    assert tested.nsd_ids.tolist() == list(range(TRAIN, TRAIN + TEST))
    assert tested.trials.tolist() == tested.nsd_ids.tolist()
    trials = np.array([TRAIN + 2 + r * (TRAIN + TEST) for r in range(REPEATS)])
    assert np.allclose(scoring.mean_responses(world, "subj01", tested.nsd_ids[2:3])[0], world.responses("subj01", trials).mean(0))
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


# Chunks


def test_chunks_hold_every_image_once_with_its_seed(tested: scoring.TestSet) -> None:
    cut = scoring.chunks("wrong_trial", tested.nsd_ids, Request(settings=BASE), size=5)
    assert [len(chunk.nsd_ids) for chunk in cut] == [5, 5, 2]
    assert [i for chunk in cut for i in chunk.nsd_ids] == tested.nsd_ids.tolist()
    assert [i for chunk in cut for i in chunk.sources] == [*tested.nsd_ids.tolist()[1:], TRAIN]
    assert [s for chunk in cut for s in chunk.seeds] == list(range(5, 5 + TEST))


@pytest.mark.parametrize("name", scoring.ALL)
def test_a_chunk_sent_to_another_process_draws_the_same_pictures_in_pieces(name: str, tested: scoring.TestSet, reader: Reader) -> None:
    request = Request(settings=BASE)
    (whole,) = scoring.chunks(name, tested.nsd_ids, request)
    sent = [pickle.loads(pickle.dumps(chunk)) for chunk in scoring.chunks(name, tested.nsd_ids, request, size=5)]  # noqa: S301 - our own bytes
    pieces = np.concatenate([scoring.draw(chunk) for chunk in sent])
    assert reader.batches == [5, 5, 2]
    assert pieces.dtype == np.uint8
    assert np.array_equal(scoring.draw(whole), pieces)
    assert len({hash(chunk) for chunk in sent}) == 3


def test_too_little_memory_draws_fewer_at_once(tested: scoring.TestSet, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = scoring.chunks("full", tested.nsd_ids, Request(settings=BASE))
    pictures = scoring.draw(whole)
    monkeypatch.setattr(drawing, "fitting", lambda model, wanted: 7)
    assert np.array_equal(scoring.draw(whole), pictures)
    assert reader.batches == [12, 7, 5]


def test_scores_need_the_pictures_alone(tested: scoring.TestSet, reader: Reader, evaluation: scoring.Evaluation) -> None:
    pictures = np.concatenate([scoring.draw(chunk) for chunk in scoring.chunks("no_text", tested.nsd_ids, Request(settings=BASE), size=4)])
    rows = scoring.score(pictures, tested.stimuli, measure.Tower("flat", Painter().image_features))
    expected = evaluation.rows.query("condition == 'no_text'")[list(rows)].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected)


def test_progress_counts_pictures_and_can_stop(reader: Reader) -> None:
    said: list[tuple[float, str]] = []
    scoring.evaluate(conditions=("full", "no_brain"), progress=lambda share, text: said.append((round(share, 6), text)))
    steps = [(0.25, "full: step 1 of 2"), (0.5, "full: step 2 of 2"), (0.5, "full: 12 of 12 pictures")]
    assert said == [*steps, *((share + 0.5, text.replace("full", "no_brain")) for share, text in steps)]

    def stop(share: float, text: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        scoring.evaluate(progress=stop)


# Tables


def test_json_has_the_promised_shape(evaluation: scoring.Evaluation) -> None:
    found = evaluation.as_dict()
    assert found["n_images"] == TEST
    assert list(found["conditions"]) == list(scoring.ALL)
    cell = found["conditions"]["full"]["PixCorr"]
    values = evaluation.rows.query("condition == 'full'")["PixCorr"]
    assert cell["mean"] == pytest.approx(values.mean())
    assert cell["ci95"][0] < cell["mean"] < cell["ci95"][1]
    assert list(found["conditions"]["full"]) == ["PixCorr", "SSIM", "CLIP", "CLIP-cos"]
    assert found["settings"] == dataclasses.asdict(BASE)


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


def test_test_images_that_the_decoder_has_seen_are_refused(reader: Reader) -> None:
    reader.manifest = Manifest.model_construct(subject="subj01", train_nsd_ids=(1, *range(TRAIN + 2, TRAIN + 7)))
    with pytest.raises(RequestError, match=rf"has seen 5 of the {TEST} test pictures in training \({TRAIN + 2}, {TRAIN + 3}, {TRAIN + 4} and so on\)"):
        scoring.evaluate(seed=BASE.seed, settings=BASE)
    assert reader.batches == []  # before anything is drawn
    assert len(scoring.evaluate(limit=2, seed=BASE.seed, settings=BASE).rows)  # the two it has not seen
