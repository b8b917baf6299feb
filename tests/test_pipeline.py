"""One request, one reconstruction, on the teaching world with the shipped weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from havir_explorer import masks, pipeline
from havir_explorer.diffuse import weights
from havir_explorer.errors import Cancelled, RequestError, WeightsInvalid, WeightsMissing
from havir_explorer.paths import shipped_weights
from havir_explorer.records import Mask, Request, Settings


def test_the_same_request_gives_the_same_bytes(request_):
    first, second = pipeline.run(request_), pipeline.run(request_)
    assert first.picture.tobytes() == second.picture.tobytes()
    assert [s.name for s in first.scores] == ["PixCorr", "SSIM", "CLIP", "CLIP-cos"]
    assert (first.kind, first.synthetic, first.trained_on) == ("generated", True, False)
    assert first.picture.shape == first.structure.shape == first.stimulus.shape == (64, 64, 3)
    other = pipeline.run(replace(request_, settings=replace(request_.settings, seed=1)))
    assert other.picture.tobytes() != first.picture.tobytes()


def test_strength_zero_is_the_decoded_latents_and_says_so(request_):
    result = pipeline.run(replace(request_, settings=Settings(strength=0)))
    assert result.kind == "decoded"
    assert np.array_equal(result.picture, result.structure)


def test_stages_and_steps_are_announced_with_previews(request_):
    steps = []
    pipeline.run(replace(request_, settings=Settings(steps=4, strength=1)), on_step=steps.append)
    assert [s.stage for s in steps if not s.count] == ["load", "decode", "diffuse", "measure"]
    counted = [s for s in steps if s.count]
    assert [(s.index, s.count) for s in counted] == [(i, 4) for i in (1, 2, 3, 4)]
    assert all(s.preview is not None and s.preview.shape == (16, 16, 3) for s in counted)


def test_raising_in_a_step_stops_there(request_):
    seen = []

    def stop(step):
        seen.append(step)
        if step.count:
            raise Cancelled

    with pytest.raises(Cancelled):
        pipeline.run(request_, on_step=stop)
    assert sum(s.count > 0 for s in seen) == 1


def test_a_mask_reaches_only_its_branch(request_):
    plain = pipeline.run(request_)
    semantic = pipeline.run(replace(request_, mask=Mask(mute=("FFA-1", "FFA-2"))))
    assert np.array_equal(semantic.structure, plain.structure)  # the latents cannot move
    spatial = pipeline.run(replace(request_, mask=Mask(mute=("V1",))))
    assert not np.array_equal(spatial.structure, plain.structure)
    dataset, decoder, _ = pipeline.models(request_)
    responses = pipeline.measured(dataset, request_)
    lesioned = decoder.decode(masks.apply(responses, Mask(mute=("V1",)), dataset.atlas("subj01")))
    assert np.array_equal(lesioned.image_embeds, decoder.decode(responses).image_embeds)  # nor can the embeddings


def test_repeats_are_all_presentations_of_the_picture(demo, request_):
    trials = pipeline.presentations(demo, request_)
    table = demo.trials("subj01")
    assert len(trials) == 3
    assert table.loc[trials, "nsd_id"].nunique() == 1
    assert pipeline.presentations(demo, replace(request_, repeats="single")).tolist() == [request_.trial]


def test_a_training_picture_is_badged(demo, request_):
    table = demo.trials("subj01")
    seen = int(table.index[~table["shared"].to_numpy(bool)][0])
    assert pipeline.run(replace(request_, trial=seen, settings=Settings(strength=0))).trained_on


def test_what_does_not_exist_is_said(request_, tmp_path):
    with pytest.raises(RequestError, match="8249"):
        pipeline.run(replace(request_, trial=999_999))
    with pytest.raises(WeightsMissing, match="havir train"):
        pipeline.run(replace(request_, decoder=str(tmp_path / "nothing")))
    with pytest.raises(WeightsInvalid, match="subj02"):
        pipeline.run(replace(request_, subject="subj01", decoder=str(pipeline.decoder_folder(pipeline.open_dataset("demo"), "subj02"))))
    with pytest.raises(RequestError, match="subj09"):
        pipeline.run(Request(subject="subj09"))


@pytest.fixture
def another_generator(tmp_path):
    """Write the shipped generator with one part's weights scaled, and return its folder."""

    def write(part: str) -> str:
        model = weights.load()
        model.clip("text_encoder")  # else its weights are still on disk
        for parameter in getattr(model, part).parameters():
            parameter.mul_(0.8)
        weights.save(weights.completed(model), tmp_path / part)
        return str(tmp_path / part)

    return write


def test_a_decoder_refuses_a_generator_with_another_clip(another_generator, request_):
    with pytest.raises(WeightsInvalid, match="trained for another autoencoder and CLIP"):
        pipeline.models(replace(request_, generator=another_generator("text_encoder")))


def test_a_decoder_drives_a_generator_with_another_denoiser(another_generator, request_):
    _, _, generator = pipeline.models(replace(request_, generator=another_generator("unet")))
    assert generator.latent_shape == (4, 16, 16)


def test_a_request_names_its_decoder_by_method_or_by_folder(demo):
    assert pipeline.decoder_folder(demo, "subj02") == shipped_weights() / "havir" / "subj02"
    assert pipeline.decoder_folder(demo, "subj02", "linear") == shipped_weights() / "linear" / "subj02"
    assert pipeline.decoder_folder(demo, "subj02", "mine") == Path("mine")


@pytest.mark.parametrize("whose", ["subj01", "subj02"])
def test_the_shipped_linear_decoder_draws(demo, request_, whose):
    shared = demo.trials(whose)
    trial = int(shared.index[shared["shared"]][0])
    result = pipeline.run(replace(request_, subject=whose, trial=trial, decoder="linear", settings=Settings(strength=0)))
    assert (result.kind, result.trained_on) == ("decoded", False)
    assert {score.name: score.value for score in result.scores}["PixCorr"] > 0.5


def test_a_data_set_of_ones_own_has_its_decoders_in_the_cache_folder(own_cache):
    from small_world import SmallWorld

    world = SmallWorld()
    world.synthetic = False
    assert pipeline.decoder_folder(world, "subj01", "linear") == own_cache / "linear" / "small" / "subj01"
    assert pipeline.decoder_folder(world, "subj01") == own_cache / "havir" / "small" / "subj01"
