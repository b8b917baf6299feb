"""The Sobel term in pixels, with decoders whose pictures can be worked out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from small_world import SIDE, TEST, TRAIN, SmallEncoder, SmallWorld
from tiny_versatile import tiny_model

from havir_explorer.decode.edges import PixelEdges, median
from havir_explorer.decode.losses import sobel
from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes
from havir_explorer.decode.options import Options
from havir_explorer.decode.targets import build
from havir_explorer.decode.train import fit
from havir_explorer.diffuse.model import resized, to_uint8
from havir_explorer.errors import RequestError


def enlarged(latents: torch.Tensor) -> torch.Tensor:
    """A decoder: the first three channels, twice as large."""
    return latents[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)


def stimuli(nsd_ids: np.ndarray) -> torch.Tensor:
    """Picture n is a ramp of slope n / 100 a pixel."""
    return torch.stack([(int(n) / 100) * torch.arange(12.0).expand(3, 12, 12) for n in nsd_ids])


def test_the_median_is_scipys() -> None:
    pictures = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = ndimage.median_filter(pictures.numpy(), size=(1, 1, 3, 3), mode="nearest")
    assert np.array_equal(median(pictures).numpy(), expected)


def test_the_loss_is_the_difference_of_slopes() -> None:
    """Decoded pictures are flat, so that each edge is the stimulus's own: inside, the slope; the replicated border has half of it."""
    found = PixelEdges(enlarged, stimuli).loss(torch.zeros(2, 4, 6, 6), np.array([3, 5]))
    by_hand = np.mean([(10 * np.hypot(slope, 1e-3) + 2 * np.hypot(slope / 2, 1e-3)) / 12 - 1e-3 for slope in (0.03, 0.05)])
    assert float(found) == pytest.approx(float(by_hand), rel=1e-4)


def test_a_speck_in_the_stimulus_is_not_asked_for() -> None:
    def specked(nsd_ids: np.ndarray) -> torch.Tensor:
        pictures = torch.full((len(nsd_ids), 3, 12, 12), 0.5)
        pictures[:, :, 4, 5] = 1
        return pictures

    assert float(PixelEdges(enlarged, specked).loss(torch.full((1, 4, 6, 6), 0.3), np.array([1]))) == pytest.approx(0, abs=1e-6)


def test_gradients_are_those_of_decoding_all_pictures_at_once() -> None:
    weight = torch.randn(3, 4, 1, 1, generator=torch.Generator().manual_seed(1))
    sizes: list[int] = []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        sizes.append(len(latents))
        return torch.nn.functional.conv2d(latents, weight).sigmoid()

    def pictures(nsd_ids: np.ndarray) -> torch.Tensor:
        return torch.rand(len(nsd_ids), 3, 8, 8, generator=torch.Generator().manual_seed(2))

    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3), requires_grad=True)
    found = PixelEdges(decode, pictures).loss(latents, np.arange(3))
    torch.autograd.backward(found)
    assert sizes == [1] * 6  # one picture at a time, and again for its gradient
    whole = latents.detach().clone().requires_grad_()
    expected = (sobel(decode(whole)) - sobel(median(pictures(np.arange(3))))).abs().mean()
    torch.autograd.backward(expected)
    assert torch.allclose(found, expected)
    assert latents.grad is not None
    assert whole.grad is not None
    assert torch.allclose(latents.grad, whole.grad, atol=1e-7)
    assert latents.grad.abs().sum() > 0


def test_descending_the_loss_makes_the_edge_appear() -> None:
    def step(nsd_ids: np.ndarray) -> torch.Tensor:
        return (torch.arange(12) >= 6).float().expand(len(nsd_ids), 3, 12, 12)

    edges, latents = PixelEdges(enlarged, step), torch.full((1, 4, 6, 6), 0.5)
    latents[..., 3:] += 0.05  # a hint of it: without one the sign is not known
    latents.requires_grad_()
    before = float(edges.loss(latents, np.array([0])).detach())
    optimiser = torch.optim.Adam([latents], lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        torch.autograd.backward(edges.loss(latents, np.array([0])))
        optimiser.step()
    assert float(edges.loss(latents, np.array([0])).detach()) < 0.3 * before


def test_stimuli_of_another_size_are_refused() -> None:
    with pytest.raises(RequestError, match=r"decoded pictures are \(3, 8, 8\) but stimuli \(3, 12, 12\)"):
        PixelEdges(enlarged, stimuli).loss(torch.zeros(1, 4, 4, 4), np.array([1]))


def test_training_decodes_a_few_training_pictures_a_step(tmp_path: Path) -> None:
    world, shown = SmallWorld(), list[np.ndarray]()

    def pictures(nsd_ids: np.ndarray) -> torch.Tensor:
        shown.append(nsd_ids)
        return resized(world.stimuli(nsd_ids), SIDE)

    options = Options(
        structural=StructuralSizes(width=12, maps=4, channels=8),
        semantic=SemanticSizes(width=12),
        batch=16,
        check_every=10,
        edges=0.0,
        pixel_edges=50.0,
        pixel_pictures=3,
    )
    targets = build(world, np.arange(TRAIN + TEST), SmallEncoder())
    with_edges = fit(world, "subj01", targets, tmp_path / "with", steps=10, options=options, edges=PixelEdges(enlarged, pictures))
    assert [len(nsd_ids) for nsd_ids in shown] == [3] * 11  # ten steps and a look at the held-out pictures
    assert max(nsd_ids.max() for nsd_ids in shown) < TRAIN
    without = fit(world, "subj01", targets, tmp_path / "without", steps=10, options=replace(options, pixel_edges=0.0))
    assert len(shown) == 11
    assert not torch.equal(with_edges.structural_generator.to_maps.weight, without.structural_generator.to_maps.weight)
    assert torch.equal(with_edges.semantic_extractor.to_image.weight, without.semantic_extractor.to_image.weight)
    assert with_edges.manifest.record.held_out_loss_structural > without.manifest.record.held_out_loss_structural


def test_edges_in_pixels_without_a_decoder_are_refused(tmp_path: Path) -> None:
    world = SmallWorld()
    targets = build(world, np.arange(TRAIN), SmallEncoder())
    with pytest.raises(RequestError, match="edges in pixels need the generator's decoder"):
        fit(world, "subj01", targets, tmp_path, steps=1, options=Options(pixel_edges=1.0))


def test_the_generators_decoder_lets_gradients_pass_and_draws_the_same() -> None:
    model = tiny_model()
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(4)).requires_grad_()
    drawn = model.decode_pixels(latents)
    assert np.array_equal(to_uint8(drawn.detach()), model.decode_latents(latents.detach()))
    torch.autograd.backward(PixelEdges(model.decode_pixels, lambda nsd_ids: torch.zeros(len(nsd_ids), 3, model.side, model.side)).loss(latents, np.arange(2)))
    assert latents.grad is not None
    assert bool((latents.grad != 0).any())
    assert all(parameter.grad is None for parameter in model.vae.parameters())
