"""The linear decoder: its solver against the closed form, its components, its repair, and what it makes of a planted problem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import SPATIAL, TEST, TRAIN, SmallEncoder, SmallWorld

from havir_explorer.decode import card, components, ridge
from havir_explorer.decode.linear import LinearDecoder
from havir_explorer.decode.linear_cost import cost
from havir_explorer.decode.linear_fit import LinearOptions, fit
from havir_explorer.decode.targets import Shapes, Targets, build
from havir_explorer.errors import Cancelled, WeightsInvalid


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def closed_form(x: torch.Tensor, y: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """(X'X + alpha I)⁻¹ X'y, target by target, in float64."""
    x, y = x.double(), y.double()
    unit = torch.eye(x.shape[1], dtype=torch.float64)
    return torch.stack([torch.linalg.solve(x.T @ x + alpha * unit, x.T @ y[:, at]) for at, alpha in enumerate(alphas.double())], 1)


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return SmallWorld()


@pytest.fixture(scope="module")
def targets(world: SmallWorld) -> Targets:
    return build(world, np.arange(TRAIN + TEST), SmallEncoder())


@pytest.fixture(scope="module")
def fitted(world: SmallWorld, targets: Targets, tmp_path_factory: pytest.TempPathFactory) -> LinearDecoder:
    return fit(world, "subj01", targets, tmp_path_factory.mktemp("linear"), seed=3)


# the solver


@pytest.mark.parametrize("voxels", [12, 90])
def test_weights_are_the_closed_form_of_ridge(voxels: int) -> None:
    x, y = random(60, voxels), random(60, 7, seed=1)
    x, y = x - x.mean(0), y - y.mean(0)
    found = ridge.solve(x @ x.T, y, ridge.folds(60, 5, 0))
    assert torch.allclose((x.T @ found.dual).double(), closed_form(x, y, found.alphas), atol=2e-5)


def test_held_out_predictions_and_chosen_regularisation_are_those_of_plain_cross_validation() -> None:
    x, y = random(50, 20), random(50, 4, seed=1) @ torch.diag(torch.tensor([0.1, 1.0, 5.0, 20.0]))
    y[:, 1:] += x @ random(20, 3, seed=2)
    x, y = x - x.mean(0), y - y.mean(0)
    splits = ridge.folds(50, 5, 4)
    found = ridge.solve(x @ x.T, y, splits)
    grid = ridge.GRID * x.square().sum(1).mean()
    held_out = torch.zeros(len(grid), 50, 4, dtype=torch.float64)
    for train, test in splits:
        for at, alpha in enumerate(grid):
            held_out[at, test] = x[test].double() @ closed_form(x[train], y[train], alpha.expand(4))
    errors = (held_out - y).square().mean(1)
    best = errors.argmin(0)
    assert torch.equal(found.alphas, grid[best])
    assert torch.allclose(found.held_out.double(), held_out[best, :, torch.arange(4)].T, atol=2e-4)
    assert torch.allclose(found.explained(y).double(), 1 - errors.amin(0) / y.double().square().mean(0), atol=1e-4)


def test_a_noisy_target_is_regularised_more_than_a_clean_one() -> None:
    x = random(200, 40)
    cause = x @ random(40, 1, seed=1) / 40**0.5
    y = torch.cat((cause + 0.05 * random(200, 1, seed=2), cause + 3 * random(200, 1, seed=3), random(200, 1, seed=4)), 1)
    x, y = x - x.mean(0), y - y.mean(0)
    found = ridge.solve(x @ x.T, y, ridge.folds(200, 5, 0))
    clean, noisy, none = found.alphas / x.square().sum(1).mean()
    assert clean < 0.1 < noisy < none
    assert found.explained(y)[0] > 0.98
    assert found.explained(y)[2] < 0.02


def test_folds_hold_every_row_out_once() -> None:
    splits = ridge.folds(23, 5, 1)
    assert sorted(np.concatenate([test for _, test in splits])) == list(range(23))
    assert all(sorted([*train, *test]) == list(range(23)) for train, test in splits)
    assert [t.tolist() for _, t in splits] == [t.tolist() for _, t in ridge.folds(23, 5, 1)]
    assert [t.tolist() for _, t in splits] != [t.tolist() for _, t in ridge.folds(23, 5, 2)]


def test_another_backend_is_given_back_even_after_a_cancel() -> None:
    from himalaya.backend import get_backend

    before = get_backend().name

    def stop(_share: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        ridge.solve(torch.eye(10), random(10, 2), ridge.folds(10, 5, 0), tick=stop)
    assert get_backend().name == before


# components


def test_components_read_in_blocks_are_those_of_the_whole(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.arange(5, 70)
    parts = []
    for rows in (1000, 7):
        monkeypatch.setattr(components, "ROWS", rows)
        centred = components.centre(targets, places, lambda share: None)
        scores = components.scores(centred, 6, lambda share: None)
        parts.append((centred, scores, components.bases(centred, scores, lambda share: None)))
    whole, blocks = parts
    for one, other in zip((*whole[0].mean, *whole[0].spread), (*blocks[0].mean, *blocks[0].spread), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    for one, other, basis, again in zip(whole[1], blocks[1], whole[2], blocks[2], strict=True):
        assert torch.allclose(one @ basis, other @ again, atol=1e-4)


def test_components_are_principal(targets: Targets) -> None:
    centred = components.centre(targets, np.arange(TRAIN), lambda share: None)
    scores = components.scores(centred, 1000, lambda share: None)
    bases = components.bases(centred, scores, lambda share: None)
    flat = torch.from_numpy(targets.latents[:TRAIN]).flatten(1)
    flat = flat - flat.mean(0)
    widths = torch.linalg.svdvals(flat)
    assert torch.allclose(scores[0].norm(dim=0), widths[: scores[0].shape[1]], rtol=1e-3)
    assert torch.allclose(bases[0] @ bases[0].T, torch.eye(len(bases[0])), atol=1e-3)
    assert torch.allclose(scores[0] @ bases[0], flat, atol=1e-2)
    assert torch.allclose(centred.spread[0], flat.std(0, correction=0), atol=1e-5)
    assert scores[2].shape == (TRAIN, 0)  # every caption of this world has as many words


# the decoder


def test_the_fit_finds_the_causes(world: SmallWorld, targets: Targets, fitted: LinearDecoder) -> None:
    test = np.arange(TRAIN, TRAIN + TEST)
    responses = np.stack([world.responses("subj01", np.flatnonzero(world.trials("subj01")["nsd_id"] == n)).mean(0) for n in test])
    decoded = fitted.decode(responses)
    left = decoded.latents[:, :3, :, :4] - targets.latents[test][:, :3, :, :4]
    assert np.sqrt((left**2).mean()) < 0.2  # the colours' own spread is 0.58
    right = decoded.latents[:, :3, :, 4:] - targets.latents[test][:, :3, :, 4:]
    assert np.sqrt((right**2).mean()) > 0.4  # spatial voxels know nothing of the right half
    image, true = decoded.image_embeds - targets.image_embeds.mean(0), targets.image_embeds[test] - targets.image_embeds.mean(0)
    assert np.corrcoef(image.ravel(), true.ravel())[0, 1] > 0.9
    assert np.allclose(decoded.text_embeds, 3.5, atol=0.05)
    assert np.allclose(np.linalg.norm(decoded.image_embeds[:, 0], axis=-1), 1, atol=1e-4)


def test_with_one_regularisation_the_decoder_is_ridge_of_every_feature(
    world: SmallWorld, targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "GRID", torch.tensor([0.3]))
    decoder = fit(world, "subj01", targets, tmp_path, options=LinearOptions(repair_latents=0))
    responses = np.stack([world.responses("subj01", np.flatnonzero(world.trials("subj01")["nsd_id"] == n)).mean(0) for n in range(TRAIN)])
    x, y = torch.from_numpy(responses[:, :SPATIAL]), torch.from_numpy(targets.latents[:TRAIN]).flatten(1)
    centred = x - x.mean(0)
    weights = closed_form(centred, y - y.mean(0), (0.3 * centred.square().sum(1).mean()).expand(y.shape[1]))
    predicted = y.mean(0) + centred.double() @ weights
    off = torch.from_numpy(decoder.decode(responses).latents).flatten(1) - predicted
    lost = 1 - decoder.manifest.ridge.explained[0]  # components left out because cross-validation does not predict them
    assert float(off.square().mean()) < 0.05 * lost * float(y.var(0).mean())


def test_held_out_predictions_are_given_the_training_spread(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    decoders = [fit(world, "subj01", targets, tmp_path, options=LinearOptions(repair_latents=share)) for share in (0.0, 1.0)]
    spread = torch.from_numpy(targets.latents[:TRAIN]).flatten(1).std(0, correction=0)
    plain, repaired = (decoder.latents for decoder in decoders)
    assert torch.allclose(plain.gain, torch.ones(()))
    left = (torch.arange(256) % 8) < 4
    assert torch.allclose(repaired.gain[left], torch.ones(()), atol=0.15)  # well predicted: little to restore
    responses = np.stack([world.responses("subj01", np.flatnonzero(world.trials("subj01")["nsd_id"] == n)).mean(0) for n in range(TRAIN, TRAIN + TEST)])
    narrow, wide = (decoder.decode(responses).latents.reshape(TEST, -1) for decoder in decoders)
    assert narrow[:, ~left].std() < 0.7 * float(spread[~left].mean())
    assert wide[:, ~left].std() > 1.5 * narrow[:, ~left].std()


def test_a_cancelled_fit_goes_on_to_the_same_weights(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    lines: list[str] = []

    def stop(share: float, line: str) -> None:
        lines.append(line)
        if share > 0.7:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(world, "subj01", targets, tmp_path, progress=stop)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["unfinished-components.safetensors", "unfinished-structural.safetensors"]
    again: list[str] = []
    resumed = fit(world, "subj01", targets, tmp_path, progress=lambda share, line: again.append(line))
    assert any("latents" in line for line in lines)
    assert not any("latents" in line for line in again)
    whole = fit(world, "subj01", targets, tmp_path / "whole")
    for one, other in zip((whole.latents, whole.image, whole.text), (resumed.latents, resumed.image, resumed.text), strict=True):
        assert torch.equal(one.weights, other.weights)
        assert torch.equal(one.gain, other.gain)
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["card.md", "manifest.json", "model.safetensors"]


def test_the_card_says_what_ridge_predicts(fitted: LinearDecoder) -> None:
    words = card.text(fitted.manifest, "0" * 64)
    assert words.startswith("# Linear decoder of subj01, small")
    components, explained = fitted.manifest.ridge.components, fitted.manifest.ridge.explained
    assert components[0] >= 3
    assert components[2] == 0
    assert 0.4 < explained[0] < 0.6  # half of the latents is the right half, of which spatial voxels know nothing
    assert 0.8 < explained[1] < 1
    assert f"| Ridge, components | {components[0]}, {components[1]}, 0 |" in words
    assert "| himalaya | 0." in words
    assert "best step" not in words
    assert "Structural Generator, width" not in words


def test_what_another_fit_has_left_is_not_used(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    def stop(share: float, line: str) -> None:
        if share > 0.7:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(world, "subj01", targets, tmp_path, seed=1, progress=stop)
    lines: list[str] = []
    fit(world, "subj01", targets, tmp_path, seed=2, progress=lambda share, line: lines.append(line))
    assert any("latents" in line for line in lines)


def test_weights_of_other_sizes_are_refused(fitted: LinearDecoder, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    file = tmp_path / "manifest.json"
    file.write_text(file.read_text().replace('"latent_shape":[4,8,8]', '"latent_shape":[4,16,16]'))
    with pytest.raises(WeightsInvalid, match=r"weights of latents .* do not fit"):
        LinearDecoder.load(tmp_path)


def test_the_cost_of_the_published_size_is_bounded_and_said() -> None:
    shapes = Shapes((4, 64, 64), (257, 768), (77, 768))
    found = cost(9000, 5000, 10_700, shapes, components=500, folds=5)
    assert 2e9 < found.memory_bytes < 4e9
    assert found.features == 272_896
    half = cost(4500, 5000, 10_700, shapes, components=500, folds=5)
    assert 5 < found.operations / half.operations < 8  # cubes of images decide
    words = found.sentence()
    assert words.startswith("linear decoder: 9,000 images, 10,700 voxels, 272,896 features of the targets; about ")
    assert "GB of memory and" in words
