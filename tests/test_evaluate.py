"""The evaluation's conditions and intervals, with a decoder and a painter whose pictures can be predicted."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_world import REPEATS, SIDE, TEST, TRAIN, SmallWorld

from havir_explorer import evaluate as scoring
from havir_explorer import measure
from havir_explorer.decode.manifest import Manifest
from havir_explorer.diffuse.sampler import Drawn
from havir_explorer.errors import Cancelled, RequestError, WeightsMissing
from havir_explorer.evaluate import drawing, formats, run
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

    side, device = SIDE, "cpu"

    def sees(self) -> bool:
        return True

    def embed_images(self, pictures: UInt8Array) -> FloatArray:
        return pictures.mean((1, 2))[:, None].astype(np.float32)

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
    return scoring.collect(SmallWorld(), "subj01", 100)


@pytest.fixture
def reader(tested: scoring.TestSet, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """The decoder; the small world, it and a painter stand in for what a request names."""
    world, painter = SmallWorld(), Painter()
    reader = Reader(scoring.mean_responses(world, "subj01", tested.nsd_ids), tested.stimuli)
    for module in (drawing, run):
        monkeypatch.setattr(module, "models", lambda request: (world, reader, painter))
    monkeypatch.setattr(run, "decoder_folder", lambda dataset, subject, named: Path("nowhere"))
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
    assert len(scoring.collect(SmallWorld(), "subj01", 3).nsd_ids) == 3
    for limit in (1, 0, -4):
        with pytest.raises(RequestError, match=f"limit is {limit} and subj01 saw {TEST}"):
            scoring.collect(SmallWorld(), "subj01", limit)
    assert len(scoring.collect(SmallWorld(), "subj01", None).nsd_ids) == TEST


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
        "mean_image": (0.75, 0.4, "own"),
        "nearest_image": (0.75, 0.4, "own"),
        "linear": (0.75, 0.4, "own"),
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


@pytest.mark.parametrize("name", [c.name for c in scoring.CONDITIONS.values() if c.pictures == "generated"])
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
    tower = measure.Tower("flat", Painter().image_features)
    rows = scoring.score(pictures, scoring.gauges(measure.OWN, measure.OWN.measures, tested.stimuli, side=SIDE, tower=tower))
    expected = evaluation.rows.query("condition == 'no_text'")[list(rows)].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected)


def test_pictures_may_be_drawn_elsewhere_and_in_any_order(tested: scoring.TestSet, reader: Reader) -> None:
    planned = scoring.chunks("full", tested.nsd_ids, Request(settings=BASE), size=5)
    drawn = [(place, scoring.draw(planned[place])) for place in (2, 0, 1)]
    assert np.array_equal(scoring.gathered(iter(drawn), planned), np.concatenate([scoring.draw(chunk) for chunk in planned]))


def test_progress_counts_pictures_and_can_stop(reader: Reader) -> None:
    said: list[tuple[float, str]] = []
    scoring.evaluate(conditions=("full", "no_brain"), progress=lambda share, text: said.append((round(share, 6), text)))
    steps = [(0.25, "full: step 1 of 2"), (0.5, "full: step 2 of 2"), (0.5, "full: 12 of 12 pictures")]
    assert said == [*steps, *((share + 0.5, text.replace("full", "no_brain")) for share, text in steps)]

    def stop(share: float, text: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        scoring.evaluate(progress=stop)


# Baselines and groups


def test_the_mean_image_is_that_of_the_training_images_for_all(tested: scoring.TestSet, reader: Reader) -> None:
    (chunk,) = scoring.chunks("mean_image", tested.nsd_ids, Request(settings=BASE), size=5)
    pictures = scoring.draw(chunk)
    expected = SmallWorld().stimuli(np.arange(TRAIN)).mean(0).round()
    assert pictures.shape == (TEST, SIDE, SIDE, 3)
    assert all(np.abs(picture - expected).max() <= 1 for picture in pictures)


def test_the_nearest_image_is_the_training_image_that_the_embedding_points_at(tested: scoring.TestSet, reader: Reader) -> None:
    (chunk,) = scoring.chunks("nearest_image", tested.nsd_ids, Request(settings=BASE), size=5)
    train, wanted = (stimuli.mean((1, 2)) for stimuli in (SmallWorld().stimuli(np.arange(TRAIN)), tested.stimuli))
    cosines = [[t @ w / np.linalg.norm(t) / np.linalg.norm(w) for t in train] for w in wanted]
    assert np.array_equal(scoring.draw(chunk), SmallWorld().stimuli(np.argmax(cosines, axis=1)))


def test_rows_say_what_kind_of_picture_they_score(evaluation: scoring.Evaluation) -> None:
    kinds = evaluation.rows.groupby("condition")["kind"].unique()
    assert kinds["full"].tolist() == ["generated"]
    assert kinds["structure_only"].tolist() == ["decoded"]
    assert kinds["nearest_image"].tolist() == ["retrieved"]


def test_a_generator_without_its_tower_is_refused_the_retrieval_and_scored_without_clip(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Painter, "sees", lambda self: False)
    with pytest.raises(WeightsMissing, match="nearest_image embeds the training images"):
        scoring.evaluate(conditions=("controls",))
    assert scoring.evaluate(limit=2).conditions == scoring.ALL[:-1]  # what cannot be drawn is left out unless asked for
    found = scoring.evaluate(conditions=("full",))
    assert [column.name for column in found.columns] == ["PixCorr", "SSIM"]
    assert [m.metric for m in found.missing] == ["CLIP", "CLIP-cos"]
    assert {m.get for m in found.missing} == {"havir weights compact CHECKPOINT --to FOLDER --towers"}


def test_the_cost_is_told_before_any_network_sees_a_stimulus(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them take six networks the better part of an hour on a CPU."""
    monkeypatch.setattr(run, "gauges", lambda *_, **__: pytest.fail("the networks came first"))

    def stop(cost: object) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        scoring.evaluate(limit=2, on_cost=stop)


def test_conditions_that_nobody_named_are_not_left_out_silently(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Painter, "sees", lambda self: False)
    found = scoring.evaluate(limit=2)
    lines = [line for line in formats.markdown(found).splitlines() if line.startswith("- ") and " is missing" not in line]
    assert [line.split("; ")[0].split(": ")[0] for line in lines[2:]] == [
        "- nearest_image embeds the training images, and this generator has no CLIP image tower",
        "- the condition linear needs a linear decoder",
    ]
    assert len(found.as_dict()["left_out"]) == 2
    assert not scoring.evaluate(limit=2, conditions=("full",)).left_out


def test_a_group_is_its_conditions(reader: Reader) -> None:
    found = scoring.evaluate(conditions=("ablation", "full", "no_brain"))
    assert found.conditions == ("full", "semantic_only", "no_text", "no_image", "no_brain")


def test_the_linear_baseline_decodes_with_its_own_decoder(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsMissing, match="the condition linear needs a linear decoder"):
        scoring.evaluate(conditions=("full", "linear"))
    world, black = SmallWorld(), Reader(reader.responses, np.zeros_like(reader.stimuli))
    for module in (drawing, run):
        monkeypatch.setattr(module, "models", lambda request: (world, black if request.decoder == "ridge" else reader, Painter()))
    found = scoring.evaluate(conditions=("full", "linear"), linear="ridge", settings=BASE).rows.groupby("condition")["PixCorr"].mean()
    assert found["full"] > found["linear"] + 0.3
    assert "linear" in scoring.evaluate(linear="ridge", limit=2).conditions


def test_a_linear_decoder_that_is_there_needs_no_name(reader: Reader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "linear" not in scoring.evaluate(limit=2).conditions
    monkeypatch.setattr(run, "decoder_folder", lambda dataset, subject, named: tmp_path if (subject, named) == ("subj01", "linear") else tmp_path / "no")
    assert "linear" in scoring.evaluate(limit=2).conditions


def test_single_repeats_are_the_first_presentations(tested: scoring.TestSet) -> None:
    world = SmallWorld()
    assert np.array_equal(scoring.mean_responses(world, "subj01", tested.nsd_ids, "single"), world.responses("subj01", tested.trials))


def test_a_split_chooses_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = np.array([TRAIN + 1, TRAIN + 3, TRAIN + 8, 10**6])
    monkeypatch.setattr(SmallWorld, "split", lambda self, subject, name: {"special515": wanted}[name], raising=False)
    assert scoring.collect(SmallWorld(), "subj01", 100, "special515").nsd_ids.tolist() == [TRAIN + 1, TRAIN + 3, TRAIN + 8]
    with pytest.raises(RequestError, match="limit is 1 and subj01 saw 3 images of special515"):
        scoring.collect(SmallWorld(), "subj01", 1, "special515")


# Tables


def test_chance_is_measured_where_the_protocol_does_not_fix_it(tested: scoring.TestSet, evaluation: scoring.Evaluation) -> None:
    chance = {column.name: column.chance for column in evaluation.columns}
    assert chance["CLIP"] == 0.5
    assert chance["PixCorr"] == pytest.approx(measure.pixcorr(np.roll(tested.stimuli, -1, axis=0), tested.stimuli).mean())
    features = Painter().image_features(tested.stimuli)
    assert chance["CLIP-cos"] == pytest.approx(measure.cosine(np.roll(features, -1, axis=0), features).mean())


def test_json_has_the_promised_shape(evaluation: scoring.Evaluation) -> None:
    found = evaluation.as_dict()
    assert found["n_images"] == TEST
    assert list(found["conditions"]) == list(scoring.ALL)
    cell = found["conditions"]["full"]["PixCorr"]
    values = evaluation.rows.query("condition == 'full'")["PixCorr"]
    assert cell["mean"] == pytest.approx(values.mean())
    assert cell["ci95"][0] < cell["mean"] < cell["ci95"][1]
    assert list(found["conditions"]["full"]) == ["PixCorr", "SSIM", "CLIP", "CLIP-cos"]
    assert found["protocol"] == "own"
    assert found["missing"] == []
    assert found["settings"] == dataclasses.asdict(BASE)


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
