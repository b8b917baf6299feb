"""Encoding for training: the generator's own numbers, on its device, in its memory, said before it starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import TEST, TRAIN, SmallWorld
from tiny_versatile import tiny_model

from havir_explorer import data, encoding
from havir_explorer.cli import command
from havir_explorer.decode.target_store import TargetStore
from havir_explorer.decode.targets import ImageSource, build
from havir_explorer.diffuse import weights
from havir_explorer.diffuse.fingerprint import fingerprint
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.paint import paint
from havir_explorer.diffuse.sampler import generate
from havir_explorer.errors import DeviceOutOfMemory, RequestError, WeightsMissing
from havir_explorer.evaluate.baselines import nearest_images
from havir_explorer.evaluate.testset import training_images
from havir_explorer.records import Decoded, Settings

IDS = np.arange(11)
HALF = 2**-11
"""Relative error of rounding to float16."""


class TwoLetters(SmallWorld):
    """The small world, described in words that the tiny tokenizer knows."""

    def captions(self, nsd_id: int) -> tuple[str, ...]:
        return ("ab" if nsd_id % 2 else "ba", "", "abba")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HAVIR_DEVICE", "cpu")


@pytest.fixture(scope="module")
def world() -> TwoLetters:
    return TwoLetters()


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("generator")
    weights.save(tiny_model(), folder, torch.float32)
    return str(folder)


def store(world: SmallWorld, generator: str, images: ImageSource = "stimulus", ids: np.ndarray = IDS) -> TargetStore:
    return encoding.make(encoding.prepare(world, ids, generator, captions="mean", images=images))


def test_rows_are_what_the_generators_own_encoders_give(world: TwoLetters, generator: str) -> None:
    held, model = store(world, generator), weights.load(generator)
    direct = build(world, IDS, model)
    assert (held.generator, held.shapes, held.caption_target) == (fingerprint(model), direct.shapes, "mean")
    for kept, true in zip(held.rows(IDS), direct.rows(IDS), strict=True):
        np.testing.assert_allclose(kept, true, rtol=2 * HALF, atol=1e-5)
    two = model.embed_texts(["ba", "abba"]).mean(0)
    np.testing.assert_allclose(held.rows(np.array([4])).text_embeds[0], two, rtol=2 * HALF, atol=1e-5)


def test_encoding_reads_no_denoiser(world: TwoLetters, generator: str) -> None:
    flows = [encoding.prepare(world, IDS, generator, images=images).encode.model.unet.parameters() for images in ("stimulus", "synthesised")]
    assert [any(weight.is_meta for weight in weights_) for weights_ in flows] == [True, False]


def test_synthesised_images_are_drawn_from_the_text_target_alone(world: TwoLetters, generator: str) -> None:
    held, plain = store(world, generator, "synthesised"), store(world, generator)
    assert held.folder != plain.folder
    assert held.image_source == "synthesised"
    assert held.manifest.drawing == "20 karras steps from the text target alone, guidance 3.0, seed nsd_id"
    np.testing.assert_array_equal(held.rows(IDS).latents, plain.rows(IDS).latents)
    np.testing.assert_array_equal(held.rows(IDS).text_embeds, plain.rows(IDS).text_embeds)
    model = weights.load(generator)
    text = build(world, np.array([7]), model).text_embeds
    others = np.random.default_rng(0).standard_normal((1, *held.shapes.latents)), np.random.default_rng(1).standard_normal((1, *held.shapes.image_embeds))
    latents = generate(model, Decoded(*(value.astype(np.float32) for value in others), text), [Settings(seed=7, strength=1, mix=1)]).latents
    np.testing.assert_allclose(held.rows(np.array([7])).image_embeds, model.embed_images(paint(model, latents)), rtol=2 * HALF, atol=1e-3)
    assert not np.allclose(held.rows(IDS).image_embeds, plain.rows(IDS).image_embeds, atol=1e-2)


class Cramped:
    """Stands for an autoencoder's encode on a device that holds some pictures at once."""

    def __init__(self, model: VersatileDiffusion, room: int) -> None:
        self.room, self.tried = room, []
        self._encode = model.vae.encode

    def __call__(self, pictures: torch.Tensor) -> object:
        self.tried.append(len(pictures))
        if len(pictures) > self.room:
            raise torch.OutOfMemoryError
        return self._encode(pictures)


def test_memory_that_runs_out_halves_the_batch_for_good(world: TwoLetters, generator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    encode = encoding.prepare(world, IDS, generator, on_notice=said.append).encode
    cramped = Cramped(encode.model, 3)
    monkeypatch.setattr(encode.model.vae, "encode", cramped)
    first, second = ([rows.latents for _, rows in encode(ids)] for ids in (IDS, IDS + 11))
    assert cramped.tried == [8, 4, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 1]
    assert said == ["memory ran out; going on with 4 pictures at once", "memory ran out; going on with 2 pictures at once"]
    np.testing.assert_allclose(np.concatenate([*first, *second]), build(world, np.arange(22), tiny_model()).latents, rtol=1e-4, atol=1e-5)


def test_memory_for_not_even_one_picture_is_a_sentence_and_keeps_what_is_finished(world: TwoLetters, generator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store(world, generator)
    work = encoding.prepare(world, np.arange(20), generator, captions="mean")
    monkeypatch.setattr(work.encode.model.vae, "encode", Cramped(work.encode.model, 0))
    with pytest.raises(DeviceOutOfMemory, match="one picture does not fit into the memory of the cpu"):
        encoding.make(work)
    assert TargetStore.open(work.plan.folder).nsd_ids.tolist() == IDS.tolist()


def test_a_generator_without_towers_is_refused(world: TwoLetters, generator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(tiny_model(), image_encoder=None, towers=None)
    monkeypatch.setattr(weights, "load", lambda *_, **__: bare)
    with pytest.raises(WeightsMissing, match="without its image_encoder"):
        encoding.prepare(world, IDS, generator)


def test_the_default_folder_is_one_a_data_set_generator_and_rule(world: TwoLetters, generator: str, tmp_path: Path) -> None:
    held = store(world, generator)
    assert held.folder.is_relative_to(tmp_path / "cache" / "targets")
    assert store(world, generator, ids=IDS + 3).folder == held.folder
    others = [encoding.prepare(world, IDS, generator, captions="first").plan.folder, encoding.prepare(world, IDS, "demo", captions="mean").plan.folder]
    assert len({held.folder, *others}) == 3
    with pytest.raises(RequestError, match=rf"was made with the generator {generator}, whose autoencoder or CLIP are not those of demo"):
        encoding.prepare(world, IDS, "demo", captions="mean", folder=held.folder)


def test_the_nearest_image_is_looked_up_in_the_store(world: TwoLetters, generator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, model = training_images(world, "subj01"), weights.load(generator)
    wanted = model.embed_images(world.stimuli(ids[[3, 0]]))
    store(world, generator, ids=ids[:-1])
    assert encoding.stored_images(world, model, ids) is None, "one is lacking"
    store(world, generator, ids=ids)
    assert encoding.stored_images(world, weights.load("demo"), ids) is None, "another generator's"
    monkeypatch.setattr(VersatileDiffusion, "embed_images", lambda *_: pytest.fail("embedded anew"))
    assert nearest_images(world, "subj01", model, wanted).tolist() == ids[[3, 0]].tolist()


def test_the_cost_is_said_first(world: TwoLetters, generator: str, tmp_path: Path) -> None:
    work = encoding.prepare(world, IDS, generator, captions="mean", folder=tmp_path / "store")
    said = str(work)
    assert said.startswith("targets of 11 pictures of small (text: mean caption, images: stimulus): 11 to encode\nwrites 0.0 MB to ")
    assert 0 < work.seconds < 60
    assert work.plan.bytes_to_write == 11 * 2 * (4 * 8 * 8 + 5 * 24 + 6 * 24)
    encoding.make(work)
    again = encoding.prepare(world, IDS, generator, captions="mean", folder=tmp_path / "store")
    assert str(again) == f"targets of 11 pictures of small (text: mean caption, images: stimulus): all are in {tmp_path / 'store'}"
    assert again.seconds == 0


@pytest.fixture
def told(world: TwoLetters, generator: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run havir on the small world with the tiny generator; return the JSON it printed."""
    monkeypatch.setattr(data, "open_dataset", lambda _: world)

    def run(name: str, *more: object) -> dict:
        assert command([name, "--generator", generator, *map(str, more), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_the_command_encodes_what_the_subjects_saw(told, tmp_path: Path) -> None:
    said = told("targets", "--subject", "subj01", "--captions", "mean", "--out", tmp_path / "store")
    assert (said["pictures"], said["encoded"], said["captions"], said["images"]) == (TRAIN + TEST, TRAIN + TEST, "mean", "stimulus")
    assert (said["latents"], said["image_embeds"], said["text_embeds"]) == ([4, 8, 8], [5, 24], [6, 24])
    assert told("targets", "--captions", "mean", "--out", tmp_path / "store")["encoded"] == 0
    assert len(TargetStore.open(Path(said["store"]))) == TRAIN + TEST


def test_training_uses_the_store_that_it_is_given(
    told, generator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["targets", "--subject", "subj01", "--captions", "mean", "--out", str(tmp_path / "mine"), "--generator", generator]) == 0
    assert f"--captions mean --targets {tmp_path / 'mine'}" in capsys.readouterr().out
    monkeypatch.setattr(encoding, "encode", lambda *_, **__: pytest.fail("a picture was encoded again"))
    made = told("train", "--captions", "mean", "--targets", tmp_path / "mine", "--steps", 2, "--out", tmp_path / "havir")
    assert made["caption_target"] == "mean"
    assert not (tmp_path / "cache" / "targets").exists()


def test_training_uses_the_store_that_is_there(told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = told("train", "--out", tmp_path / "first", "--steps", 2)
    assert made["images"] == TRAIN
    (folder,) = (tmp_path / "cache" / "targets").glob("*/*")
    assert TargetStore.open(folder).nsd_ids.tolist() == list(range(TRAIN))
    assert made["image_source"] == "stimulus"
    monkeypatch.setattr(encoding, "encode", lambda *_, **__: pytest.fail("it encoded again"))
    assert told("train", "--out", tmp_path / "second", "--steps", 2)["steps"] == 2


def test_several_subjects_train_one_trunk_and_another_starts_from_it(told, tmp_path: Path) -> None:
    made = told("train", "--subject", "subj01,subj02", "--out", tmp_path / "both", "--steps", 2)
    assert [decoder["subject"] for decoder in made["decoders"]] == ["subj01", "subj02"]
    assert [decoder["trunk_of"] for decoder in made["decoders"]] == [["subj01", "subj02"]] * 2
    assert all(Path(decoder["weights"]) == tmp_path / "both" / decoder["subject"] for decoder in made["decoders"])
    more = ("--subject", "subj02", "--start-from", tmp_path / "both" / "subj01", "--freeze", "--sessions", 1)
    tuned = told("train", *more, "--out", tmp_path / "tuned", "--steps", 2)
    assert tuned["started_from"] == "subj01 of small, trunk frozen"
    assert ["sessions", "1"] in tuned["hyper_parameters"]


@pytest.mark.slow
def test_training_towards_pictures_synthesised_from_captions_says_so(told, tmp_path: Path) -> None:
    assert told("train", "--images", "synthesised", "--out", tmp_path / "v1", "--steps", 2)["image_source"] == "synthesised"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--captions", "all"], "--captions takes mean or first; got 'all'"),
        (["--images", "drawn"], "--images takes stimulus or synthesised; got 'drawn'"),
        (["--subject", "subj01,subj09"], "small has no subject 'subj09'; nearest: subj0"),
    ],
)
def test_bad_options_are_answered_in_a_sentence(told, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["targets", *more]) == 2
    assert sentence in capsys.readouterr().err
