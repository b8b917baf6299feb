"""The decoder's losses, blocks, training and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import OTHER, SEMANTIC, SPATIAL, TEST, TRAIN, VOXELS, SmallEncoder, SmallWorld
from torch import nn
from torch.nn import functional

from havir_explorer.data.dataset import Atlas
from havir_explorer.decode import losses
from havir_explorer.decode.blocks import Dropout, Repair
from havir_explorer.decode.havir import Havir, StructuralGenerator
from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes, voxel_hash
from havir_explorer.decode.options import Options
from havir_explorer.decode.run import checkpoint, one_cycle
from havir_explorer.decode.samples import collect
from havir_explorer.decode.split import default_split
from havir_explorer.decode.targets import Targets, TargetSource, build
from havir_explorer.decode.train import fit
from havir_explorer.errors import Cancelled, DataInvalid, DataMissing, RequestError, WeightsInvalid, WeightsMissing

OPTIONS = Options(
    structural=StructuralSizes(width=24, blocks=1, dropout=0.1, block_dropout=0.1, maps=4, channels=8),
    semantic=SemanticSizes(width=24, blocks=1, dropout=0.1, block_dropout=0.1),
    batch=32,
    check_every=50,
    save_every=20,
    held_out=0.2,
)


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return SmallWorld()


@pytest.fixture(scope="module")
def targets(world: SmallWorld) -> Targets:
    return build(world, np.arange(TRAIN + TEST), SmallEncoder())


@pytest.fixture(scope="module")
def trained(world: SmallWorld, targets: Targets, tmp_path_factory: pytest.TempPathFactory) -> tuple[Havir, Path]:
    folder = tmp_path_factory.mktemp("havir")
    return fit(world, "subj01", targets, folder, steps=200, seed=3, options=OPTIONS), folder


# losses


def test_sobel_of_a_ramp_is_its_slope() -> None:
    ramp = 3 * torch.arange(8.0).expand(1, 2, 6, 8)
    assert torch.allclose(losses.sobel(ramp)[..., 1:-1], torch.full((1, 2, 6, 6), 3.0), atol=1e-4)
    assert torch.allclose(losses.sobel(ramp.transpose(2, 3))[..., 1:-1, :], torch.full((1, 2, 6, 6), 3.0), atol=1e-4)


def test_sobel_of_a_constant_is_the_smoothing_alone() -> None:
    assert torch.allclose(losses.sobel(torch.full((1, 4, 5, 5), 7.0)), torch.full((1, 4, 5, 5), 1e-3))


def test_structural_loss_of_an_offset_has_no_edge_term() -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(losses.structural_loss(latents + 0.5, latents, edges=10)) == pytest.approx(0.25, abs=1e-4)


def test_structural_loss_weighs_edges() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)
    by_hand = (losses.sobel(ramp) - 1e-3).square().mean() + ramp.square().mean() / 0.1
    assert float(losses.structural_loss(ramp, torch.zeros_like(ramp), edges=0.1)) == pytest.approx(0.1 * float(by_hand), rel=1e-5)


def test_soft_clip_of_orthonormal_targets_is_plain_contrast() -> None:
    target, temperature = torch.eye(4), 0.05
    predicted = functional.normalize(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    logits, rows = predicted / temperature, torch.arange(4)
    expected = (functional.cross_entropy(logits, rows) + functional.cross_entropy(logits.T, rows)) / 2
    assert float(losses.soft_clip(predicted, target, temperature)) == pytest.approx(float(expected), rel=1e-4)


def test_soft_clip_is_least_at_the_targets() -> None:
    rng = torch.Generator().manual_seed(2)
    target = functional.normalize(torch.randn(6, 10, generator=rng), dim=1)
    labels = (target @ target.T / 0.1).softmax(-1)
    entropy = -(labels * labels.log()).sum(-1).mean()
    assert float(losses.soft_clip(target, target, 0.1)) == pytest.approx(float(entropy), rel=1e-5)
    assert losses.soft_clip(target.roll(1, 0), target, 0.1) > entropy + 1


def test_token_loss_ignores_scale_and_adds_the_squared_distance() -> None:
    rng = torch.Generator().manual_seed(3)
    predicted, target = torch.randn(5, 3, 2, generator=rng), torch.randn(5, 3, 2, generator=rng)
    assert float(losses.token_loss(4 * predicted, target)) == pytest.approx(float(losses.token_loss(predicted, target)), rel=1e-5)
    cosines = functional.cosine_similarity(predicted.flatten(1), target.flatten(1))
    assert float(losses.token_loss(predicted, target, mse=1, contrast=0)) == pytest.approx(float((2 - 2 * cosines).mean() / 6), rel=1e-4)


# blocks


def test_structural_generator_has_the_blocks_of_the_method_in_order() -> None:
    model = StructuralGenerator(30, (4, 8, 8), OPTIONS.structural)
    assert [type(part) for part in model.stem] == [nn.Linear, nn.LayerNorm, nn.SiLU, Dropout]
    assert model.stem[0].bias is None
    assert model.to_maps.bias is None
    assert isinstance(model.norm, nn.GroupNorm)
    assert model.norm.num_groups == 1
    assert model(torch.zeros(3, 30)).shape == (3, 4, 8, 8)


def test_latents_that_the_doublings_cannot_reach_are_refused() -> None:
    with pytest.raises(WeightsInvalid, match="2 doublings cannot end at latents of 6 x 6"):
        StructuralGenerator(30, (4, 6, 6), StructuralSizes(doublings=2))


def test_dropout_keeps_the_mean_and_repeats_itself() -> None:
    layer = Dropout(0.25)
    layer.generator = torch.Generator().manual_seed(0)
    first = layer(torch.ones(100, 100))
    layer.generator.manual_seed(0)
    assert torch.equal(first, layer(torch.ones(100, 100)))
    assert first.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(first.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.eval()(first), first)


def test_repair_restores_mean_and_spread_of_shrunken_predictions() -> None:
    rng = torch.Generator().manual_seed(4)
    target = torch.randn(4000, 3, 2, generator=rng) * torch.tensor([0.5, 2.0, 0.0])[:, None] + 1
    predicted = 0.4 * (target - 1) + 0.2
    repair = Repair((3, 2), (3, 1)).fit([(predicted, target, torch.arange(4000) % 2 == 0)], 1.0)
    assert torch.allclose(repair(predicted), target, atol=0.05)
    assert repair.gain.flatten().tolist() == pytest.approx([2.5, 2.5, 1], abs=0.01)
    half = Repair((3, 2), (3, 1)).fit([(predicted, target, torch.arange(4000) % 2 == 0)], 0.5)
    assert float(half.gain[0]) == pytest.approx(2.5**0.5, abs=0.01)


# split, targets, samples


def test_default_split_is_disjoint_and_takes_floc_voxels_outside_nsdgeneral(world: SmallWorld) -> None:
    spatial, semantic = default_split(world.atlas("subj01"))
    assert np.flatnonzero(spatial).tolist() == list(range(SPATIAL))
    assert np.flatnonzero(semantic).tolist() == list(range(SPATIAL, VOXELS - OTHER))


def test_a_split_without_spatial_voxels_is_refused(world: SmallWorld) -> None:
    atlas = world.atlas("subj01")
    with pytest.raises(WeightsInvalid, match="needs spatial voxels"):
        default_split(Atlas(tuple(r for r in atlas.rois if r.file != "prf-visualrois"), atlas.right))


def test_targets_average_captions_or_take_the_first(world: SmallWorld) -> None:
    ids = np.array([4, 2])
    assert build(world, ids, SmallEncoder()).nsd_ids.tolist() == [2, 4]
    assert np.all(build(world, ids, SmallEncoder()).text_embeds == 3.5)  # captions of 2 and 5 words
    assert np.all(build(world, ids, SmallEncoder(), captions="first").text_embeds == 2)


def test_targets_average_five_captions_at_most(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "captions", lambda nsd_id: ("", "a", "a b", "a b c", "a b c d", "a b c d e", "many words more than the five before it have"))
    assert np.all(build(world, np.array([4]), SmallEncoder()).text_embeds == 3)


def test_targets_without_captions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = SmallWorld()
    monkeypatch.setattr(world, "captions", lambda nsd_id: ())
    with pytest.raises(DataMissing, match="picture 1 of small has no caption under small; the text target needs at least one"):
        build(world, np.array([1]), SmallEncoder())


def test_targets_are_gathered_by_place(targets: Targets) -> None:
    source: TargetSource = targets
    rows = source.rows(np.array([5, 2, 5]))
    assert source.shapes == (rows.latents.shape[1:], rows.image_embeds.shape[1:], rows.text_embeds.shape[1:])
    for gathered, whole in zip(rows, (targets.latents, targets.image_embeds, targets.text_embeds), strict=True):
        np.testing.assert_array_equal(gathered, whole[[5, 2, 5]])


def test_samples_leave_test_pictures_out_and_mix_only_their_own_repeats(world: SmallWorld) -> None:
    samples = collect(world, "subj01", np.arange(TRAIN + TEST))
    assert samples.nsd_ids.tolist() == list(range(TRAIN))
    pictures, voxels = torch.tensor([7, 3]), np.isin(np.arange(VOXELS), (5, 60))
    mixed = samples.mix(samples.means(pictures), pictures, samples.columns(voxels))
    mine = [world.responses("subj01", np.flatnonzero(world.trials("subj01")["nsd_id"] == n)).mean(0)[[5, 60]] for n in (7, 3)]
    assert np.allclose(mixed.numpy(), mine, atol=1e-6)


def test_random_weights_have_the_three_kinds_in_their_shares(world: SmallWorld) -> None:
    samples = collect(world, "subj01", np.arange(TRAIN))
    weights = samples.random_weights(torch.zeros(20_000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert torch.allclose(weights.sum(1), torch.ones(20_000))
    assert float((weights.max(1).values == 1).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(torch.isclose(weights, torch.tensor(1 / 3)).all(1).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_too_few_training_pictures_are_refused(world: SmallWorld) -> None:
    with pytest.raises(DataInvalid, match="at least 20 pictures"):
        collect(world, "subj01", np.arange(TRAIN - 3, TRAIN + TEST))


# training and files


def test_training_finds_the_causes(world: SmallWorld, targets: Targets, trained: tuple[Havir, Path]) -> None:
    test = np.arange(TRAIN, TRAIN + TEST)
    responses = np.stack([world.responses("subj01", np.flatnonzero(world.trials("subj01")["nsd_id"] == n)).mean(0) for n in test])
    decoded = trained[0].decode(responses)
    left = decoded.latents[:, :3, :, :4].mean((2, 3)) - targets.latents[test][:, :3, :, :4].mean((2, 3))
    assert np.sqrt((left**2).mean()) < 0.3  # the colours' own spread is 0.58
    image, true = decoded.image_embeds - targets.image_embeds.mean(0), targets.image_embeds[test] - targets.image_embeds.mean(0)
    assert np.corrcoef(image.ravel(), true.ravel())[0, 1] > 0.8


def test_decoded_tokens_have_the_generators_norms(world: SmallWorld, targets: Targets, trained: tuple[Havir, Path]) -> None:
    decoded = trained[0].decode(world.responses("subj01", np.arange(30)))
    assert np.allclose(np.linalg.norm(decoded.image_embeds[:, 0], axis=-1), 1, atol=1e-4)
    assert decoded.text_embeds.shape == (30, 4, 6)
    assert np.allclose(decoded.text_embeds, 3.5, atol=0.05)
    assert decoded.latents.dtype == np.float32


def test_each_branch_reads_only_its_own_voxels(world: SmallWorld, trained: tuple[Havir, Path]) -> None:
    havir, responses = trained[0], world.responses("subj01", np.arange(4))
    without = responses.copy()
    without[:, SPATIAL:] = 0
    assert np.array_equal(havir.decode(without).latents, havir.decode(responses).latents)
    assert not np.allclose(havir.decode(without).image_embeds, havir.decode(responses).image_embeds)
    without[:] = responses
    without[:, :SPATIAL] = 0
    assert np.array_equal(havir.decode(without).text_embeds, havir.decode(responses).text_embeds)


def test_manifest_records_the_training(world: SmallWorld, trained: tuple[Havir, Path]) -> None:
    manifest = trained[0].manifest
    assert manifest.saw(0)
    assert manifest.saw(TRAIN - 1)
    assert not manifest.saw(TRAIN)
    assert not manifest.saw(-1)
    assert manifest.record.steps == 200
    assert manifest.record.held_out_images == 18
    assert manifest.voxel_hash == voxel_hash(np.arange(VOXELS))
    manifest.check(world, "subj01")


def test_manifest_refuses_other_subjects_voxels_and_conventions(trained: tuple[Havir, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, world = trained[0].manifest, SmallWorld()
    with pytest.raises(WeightsInvalid, match=r"trained on subj01 .* asked to read subj02"):
        manifest.check(world, "subj02")
    with pytest.raises(WeightsInvalid, match="voxels other than"):
        manifest.model_copy(update={"subject": "subj02"}).check(world, "subj02")
    monkeypatch.setattr(world, "convention", "raw")
    with pytest.raises(WeightsInvalid, match="expects responses 'z-scored' but small gives 'raw'"):
        manifest.check(world, "subj01")


@pytest.mark.slow
def test_interrupted_training_ends_at_the_same_weights(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    def stop(share: float, text: str) -> None:
        if share >= 0.75:
            raise Cancelled

    whole = fit(world, "subj01", targets, tmp_path / "whole", steps=60, seed=1, options=OPTIONS)
    with pytest.raises(Cancelled):
        fit(world, "subj01", targets, tmp_path / "cut", steps=60, seed=1, options=OPTIONS, progress=stop)
    assert checkpoint(tmp_path / "cut", "semantic").exists()
    torch.rand(5)  # whatever else draws from the global generator changes nothing
    resumed = fit(world, "subj01", targets, tmp_path / "cut", steps=60, seed=1, options=OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert not checkpoint(tmp_path / "cut", "semantic").exists()


def test_a_checkpoint_of_another_run_is_refused(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    def stop(share: float, text: str) -> None:
        if share >= 0.25:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(world, "subj01", targets, tmp_path, steps=60, seed=1, options=OPTIONS, progress=stop)
    with pytest.raises(WeightsInvalid, match="of a run with other options"):
        fit(world, "subj01", targets, tmp_path, steps=60, seed=2, options=OPTIONS)
    checkpoint(tmp_path, "structural").write_bytes(b"half a file")
    with pytest.raises(WeightsInvalid, match="cannot be read"):
        fit(world, "subj01", targets, tmp_path, steps=60, seed=1, options=OPTIONS)


def test_training_needs_a_step(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="steps must be 1 or more; got 0"):
        fit(world, "subj01", targets, tmp_path, steps=0)


def test_one_cycle_rises_then_falls() -> None:
    assert [one_cycle(s) for s in (0.0, 0.1, 1.0)] == pytest.approx([0.04, 1.0, 0.001])


def test_a_saved_decoder_decodes_the_same_after_loading(world: SmallWorld, trained: tuple[Havir, Path]) -> None:
    havir, folder = trained
    again, responses = Havir.load(folder), world.responses("subj01", np.arange(5))
    assert np.array_equal(again.decode(responses).latents, havir.decode(responses).latents)
    assert again.manifest == havir.manifest
    assert np.array_equal(again.spatial, havir.spatial)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_decoder_that_lacks_a_part_is_missing(name: str, trained: tuple[Havir, Path], tmp_path: Path) -> None:
    trained[0].save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(WeightsMissing, match=f"lacks {name}"):
        Havir.load(tmp_path)


def test_truncated_weights_are_invalid(trained: tuple[Havir, Path], tmp_path: Path) -> None:
    trained[0].save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsInvalid, match="truncated or not safetensors"):
        Havir.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"n_spatial": 7}, "spatial mask .* does not choose 7"), ({"latent_shape": [4, 16, 16]}, "do not fit the sizes"), ({"subject": 3}, "is not the manifest")],
)
def test_a_manifest_that_does_not_fit_the_weights_is_invalid(change: dict[str, object], sentence: str, trained: tuple[Havir, Path], tmp_path: Path) -> None:
    trained[0].save(tmp_path)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsInvalid, match=sentence):
        Havir.load(tmp_path)


def test_a_manifest_that_is_not_json_is_invalid(trained: tuple[Havir, Path], tmp_path: Path) -> None:
    trained[0].save(tmp_path)
    (tmp_path / "manifest.json").write_text("{half")
    with pytest.raises(WeightsInvalid, match="is not the manifest"):
        Havir.load(tmp_path)


def test_responses_of_another_width_or_not_finite_are_refused(trained: tuple[Havir, Path]) -> None:
    with pytest.raises(RequestError, match=rf"must be \(trials, {VOXELS}\)"):
        trained[0].decode(np.zeros((1, SPATIAL + SEMANTIC), np.float32))
    with pytest.raises(RequestError, match="not finite"):
        trained[0].decode(np.full((1, VOXELS), np.nan, np.float32))
