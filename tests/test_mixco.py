"""MixCo: how a batch is mixed, and its loss against the paper's sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from havir_explorer.decode import losses, mixco
from havir_explorer.decode.mixco import Mixing


def unit(*shape: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_half_of_a_batch_is_mixed_by_beta_shares() -> None:
    drawn = mixco.draw(20_000, torch.Generator().manual_seed(0))
    mixed = drawn.share[drawn.share < 1].numpy().astype(np.float64)
    assert len(mixed) / 20_000 == pytest.approx(0.5, abs=0.1)  # float32 rounds some of the mixed ones' shares to 1
    inner = (mixed > 0.01) & (mixed < 0.99)
    beta = stats.beta(0.15, 0.15)
    low, high = beta.cdf([0.01, 0.99])
    within = stats.kstest(mixed[inner], lambda x: (beta.cdf(x) - low) / (high - low))
    assert within.pvalue > 0.01
    assert inner.sum() / 20_000 == pytest.approx(0.5 * (high - low), abs=0.01)
    assert sorted(drawn.partner.tolist()) == list(range(20_000))


def test_a_batch_is_mixed_the_same_from_the_same_generator() -> None:
    first, again = (mixco.draw(16, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.share, again.share)
    assert torch.equal(first.partner, again.partner)


def test_mixed_values_are_convex_combinations_of_a_row_and_its_partner() -> None:
    mixing = Mixing(torch.tensor([1.0, 0.25, 0.0]), torch.tensor([2, 0, 1]))
    values = torch.tensor([[[8.0, 0.0]], [[4.0, 4.0]], [[0.0, 2.0]]])
    assert mixing.mix(values).tolist() == [[[8, 0]], [[0.25 * 4 + 0.75 * 8, 1]], [[4, 4]]]


def test_bimixco_is_the_papers_double_sum() -> None:
    predicted, target, temperature = unit(5, 7, seed=1), unit(5, 7, seed=2), 0.1
    mixing = Mixing(torch.tensor([1.0, 0.3, 0.9, 1.0, 0.45]), torch.tensor([3, 0, 1, 4, 2]))
    similar = np.exp(predicted.numpy().astype(float) @ target.numpy().astype(float).T / temperature)
    total = 0.0
    for i in range(5):
        k, share = int(mixing.partner[i]), float(mixing.share[i])
        total += share * math.log(similar[i, i] / similar[i].sum()) + (1 - share) * math.log(similar[i, k] / similar[i].sum())
    for j in range(5):
        total += float(mixing.share[j]) * math.log(similar[j, j] / similar[:, j].sum())
        total += sum((1 - float(mixing.share[m])) * math.log(similar[m, j] / similar[:, j].sum()) for m in range(5) if int(mixing.partner[m]) == j)
    assert float(mixco.contrast(predicted, target, mixing, temperature)) == pytest.approx(-total / 10, rel=1e-5)


def test_bimixco_in_closed_form_for_two_orthogonal_pictures() -> None:
    """p_0 = t_0 alone and p_1 half of each, at temperature 1: the sums are over 1 and e."""
    target = torch.eye(2)
    predicted = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    mixing = Mixing(torch.tensor([1.0, 0.5]), torch.tensor([0, 0]))
    rows = (math.log((math.e + 1) / math.e) + math.log(2)) / 2
    first, second = math.e + math.exp(0.5), 1 + math.exp(0.5)
    columns = (math.log(first / math.e) + 0.5 * math.log(second / math.exp(0.5)) + 0.5 * math.log(first / math.exp(0.5))) / 2
    assert float(mixco.contrast(predicted, target, mixing, 1.0)) == pytest.approx((rows + columns) / 2, rel=1e-5)


def test_bimixco_without_mixing_is_plain_contrast_in_both_directions() -> None:
    predicted, target, rows = unit(6, 9, seed=3), unit(6, 9, seed=4), torch.arange(6)
    mixing = Mixing(torch.ones(6), rows.roll(1))
    logits = predicted @ target.T / 0.006
    plain = (functional.cross_entropy(logits, rows) + functional.cross_entropy(logits.T, rows)) / 2
    assert float(mixco.contrast(predicted, target, mixing)) == pytest.approx(float(plain), rel=1e-5)


def test_a_swapped_pair_is_asked_for_the_other_picture() -> None:
    target = unit(4, 12, seed=5)
    swapped = Mixing(torch.zeros(4), torch.tensor([1, 0, 3, 2]))
    assert mixco.contrast(target[swapped.partner], target, swapped, 0.1) < mixco.contrast(target, target, swapped, 0.1)


def test_the_token_loss_of_mixed_responses_mixes_the_squared_errors_target_too() -> None:
    predicted, target = unit(3, 4, 5, seed=6), unit(3, 4, 5, seed=7)
    mixing = Mixing(torch.tensor([1.0, 0.2, 0.6]), torch.tensor([1, 2, 0]))
    guessed, true = (functional.normalize(tokens.flatten(1), dim=1) for tokens in (predicted, target))
    wanted = torch.stack([true[0], 0.2 * true[1] + 0.8 * true[2], 0.6 * true[2] + 0.4 * true[0]])
    by_hand = 2 * mixco.contrast(guessed, true, mixing) + 3 * (guessed - wanted).square().mean()
    assert float(losses.token_loss(predicted, target, mse=3, contrast=2, mixing=mixing)) == pytest.approx(float(by_hand), rel=1e-5)
