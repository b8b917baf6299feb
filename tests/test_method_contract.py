"""What every way from voxels to the generator's conditions must do; a new method is one more row in ``METHODS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_world import OTHER, SEMANTIC, SPATIAL, TEST, TRAIN, VOXELS, SmallEncoder, SmallWorld

from havir_explorer.decode import decoders, linear_fit, train
from havir_explorer.decode.decoders import Decoder
from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes
from havir_explorer.decode.options import Options
from havir_explorer.decode.targets import Targets, build
from havir_explorer.errors import OutputError, RequestError, WeightsInvalid, WeightsMissing
from havir_explorer.records import FloatArray

SMALL = Options(structural=StructuralSizes(width=16, maps=4, channels=8), semantic=SemanticSizes(width=16), batch=16, check_every=10, held_out=0.2)


def _havir(world: SmallWorld, targets: Targets, folder: Path) -> None:
    train.fit(world, "subj01", targets, folder, steps=20, options=SMALL)


def _linear(world: SmallWorld, targets: Targets, folder: Path) -> None:
    linear_fit.fit(world, "subj01", targets, folder)


METHODS: dict[str, Callable[[SmallWorld, Targets, Path], None]] = {"havir": _havir, "linear": _linear}


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return SmallWorld()


@pytest.fixture(scope="module", params=METHODS)
def folder(request: pytest.FixtureRequest, world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder trained on the first subject, under the name of its method."""
    folder = tmp_path_factory.mktemp("method") / request.param
    METHODS[request.param](world, build(world, np.arange(TRAIN + TEST), SmallEncoder()), folder)
    return folder


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return decoders.load(folder)


@pytest.fixture(scope="module")
def responses(world: SmallWorld) -> FloatArray:
    return world.responses("subj01", np.arange(6))


def test_the_manifest_names_the_method(folder: Path, decoder: Decoder) -> None:
    assert decoder.manifest.kind == folder.name


def test_decoded_arrays_have_the_targets_shapes_and_are_finite(decoder: Decoder, responses: FloatArray) -> None:
    decoded = decoder.decode(responses)
    found = (decoded.latents, decoded.image_embeds, decoded.text_embeds)
    assert [values.shape for values in found] == [(6, 4, 8, 8), (6, 5, 6), (6, 4, 6)]
    assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in found)
    assert decoded.latents.std(0).max() > 0


def test_a_response_is_decoded_the_same_whatever_shares_its_batch(decoder: Decoder, responses: FloatArray) -> None:
    together, alone = decoder.decode(responses), decoder.decode(responses[2:3])
    for one, other in ((together.latents, alone.latents), (together.image_embeds, alone.image_embeds), (together.text_embeds, alone.text_embeds)):
        assert np.allclose(one[2:3], other, atol=1e-5)


def test_decoding_repeats_itself_and_leaves_the_responses_as_they_are(decoder: Decoder, responses: FloatArray) -> None:
    before = responses.copy()
    once, again = decoder.decode(responses), decoder.decode(responses)
    assert np.array_equal(once.latents, again.latents)
    assert np.array_equal(once.image_embeds, again.image_embeds)
    assert np.array_equal(responses, before)


@pytest.mark.parametrize("shape", [(1, VOXELS - 1), (1, VOXELS + 1), (VOXELS,), (1, 1, VOXELS)])
def test_responses_of_another_number_of_voxels_are_refused(shape: tuple[int, ...], decoder: Decoder) -> None:
    with pytest.raises(RequestError, match=rf"must be \(trials, {VOXELS}\) for the decoder of subj01; got \("):
        decoder.decode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_responses_that_are_not_finite_are_refused(value: float, decoder: Decoder, responses: FloatArray) -> None:
    broken = responses.copy()
    broken[1, 3] = value
    with pytest.raises(RequestError, match="not finite"):
        decoder.decode(broken)


def test_masks_are_those_of_the_split(decoder: Decoder) -> None:
    assert np.flatnonzero(decoder.spatial).tolist() == list(range(SPATIAL))
    assert np.flatnonzero(decoder.semantic).tolist() == list(range(SPATIAL, SPATIAL + SEMANTIC))
    assert (decoder.manifest.n_voxels, decoder.manifest.n_spatial, decoder.manifest.n_semantic) == (VOXELS, SPATIAL, SEMANTIC)


def test_a_lesion_of_spatial_voxels_leaves_the_tokens_bit_equal(decoder: Decoder, responses: FloatArray) -> None:
    lesioned = np.where(decoder.spatial, np.float32(0), responses)
    whole, without = decoder.decode(responses), decoder.decode(lesioned)
    assert np.array_equal(whole.image_embeds, without.image_embeds)
    assert np.array_equal(whole.text_embeds, without.text_embeds)
    assert not np.allclose(whole.latents, without.latents, atol=1e-4)


def test_a_lesion_of_semantic_voxels_leaves_the_latents_bit_equal(decoder: Decoder, responses: FloatArray) -> None:
    lesioned = np.where(decoder.semantic, np.float32(0), responses)
    whole, without = decoder.decode(responses), decoder.decode(lesioned)
    assert np.array_equal(whole.latents, without.latents)
    assert not np.allclose(whole.image_embeds, without.image_embeds, atol=1e-4)


def test_voxels_that_no_branch_reads_change_nothing(decoder: Decoder, responses: FloatArray) -> None:
    other = responses.copy()
    other[:, VOXELS - OTHER :] += 5
    assert np.array_equal(decoder.decode(other).latents, decoder.decode(responses).latents)
    assert np.array_equal(decoder.decode(other).image_embeds, decoder.decode(responses).image_embeds)


@pytest.mark.parametrize("branch", ["structural", "semantic"])
def test_contributions_are_percentiles_of_the_branchs_own_voxels(branch: str, decoder: Decoder) -> None:
    found, mask = decoder.contribution(branch), decoder.spatial if branch == "structural" else decoder.semantic
    assert found.branch == branch
    assert found.values.shape == (VOXELS,)
    assert np.isnan(found.values[~mask]).all()
    assert found.values[mask].min() == 0
    assert found.values[mask].max() == 1
    assert np.allclose(np.sort(found.values[mask]), np.linspace(0, 1, mask.sum()), atol=1e-6)


def test_an_unknown_branch_is_refused(decoder: Decoder) -> None:
    with pytest.raises(RequestError, match="branch must be 'structural' or 'semantic'; got 'both'"):
        decoder.contribution("both")


def test_a_saved_decoder_is_read_back_the_same(decoder: Decoder, responses: FloatArray, tmp_path: Path) -> None:
    decoder.save(tmp_path)
    again = decoders.load(tmp_path)
    assert type(again) is type(decoder)
    assert again.manifest == decoder.manifest
    assert np.array_equal(again.spatial, decoder.spatial)
    one, other = decoder.decode(responses), again.decode(responses)
    assert np.array_equal(one.latents, other.latents)
    assert np.array_equal(one.text_embeds, other.text_embeds)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["manifest.json", "model.safetensors"]


def test_a_full_disk_leaves_the_old_decoder(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self: Path, *_args: object, **_options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        decoder.save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_folder_without_one_of_the_files_is_missing_weights(name: str, decoder: Decoder, tmp_path: Path) -> None:
    decoder.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(WeightsMissing, match=name):
        decoders.load(tmp_path)


def test_truncated_weights_are_invalid(decoder: Decoder, tmp_path: Path) -> None:
    decoder.save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(WeightsInvalid, match="truncated or not safetensors"):
        decoders.load(tmp_path)


def test_weights_of_another_method_are_invalid(decoder: Decoder, tmp_path: Path) -> None:
    decoder.save(tmp_path)
    other = next(kind for kind in METHODS if kind != decoder.manifest.kind)
    file = tmp_path / "manifest.json"
    file.write_text(file.read_text().replace(f'"kind":"{decoder.manifest.kind}"', f'"kind":"{other}"'))
    with pytest.raises(WeightsInvalid):
        decoders.load(tmp_path)


def test_the_manifest_knows_its_data(decoder: Decoder, world: SmallWorld) -> None:
    decoder.manifest.check(world, "subj01")
    assert decoder.manifest.train_nsd_ids == tuple(range(TRAIN))
    assert decoder.manifest.saw(TRAIN - 1)
    assert not decoder.manifest.saw(TRAIN)
    with pytest.raises(WeightsInvalid, match="trained on subj01"):
        decoder.manifest.check(world, "subj02")


def test_responses_in_another_convention_are_refused(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    world = SmallWorld()
    monkeypatch.setattr(world, "convention", "raw")
    with pytest.raises(WeightsInvalid, match="expects responses"):
        decoder.manifest.check(world, "subj01")
