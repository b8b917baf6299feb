"""MixCo: two brain responses mixed into one, and a contrastive loss that asks for both pictures in their shares.

BiMixCo of MindEye (Scotti et al. 2023, arXiv 2305.18274), after MixCo (Kim et al. 2020, arXiv 2010.06300). Of a batch of N responses x,
half are replaced by λ_i x_i + (1 − λ_i) x_k(i), with k a permutation of the batch and λ_i ~ Beta(0.15, 0.15); the others keep λ_i = 1. With
predictions p, targets t (unit vectors) and temperature τ, the loss of both directions is

    − 1/2N Σ_i Σ_j y_ij [ log softmax_j(p_i · t_j / τ) + log softmax_i(p_i · t_j / τ) ],   y_ij = λ_i [j = i] + (1 − λ_i) [j = k(i)].

MindEye trains with it for the first third of the run, then with SoftCLIP.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

CONCENTRATION, HALF, TEMPERATURE, SHARE = 0.15, 0.5, 0.006, 1 / 3
"""Both parameters of the Beta distribution, the probability of being mixed, τ, and the share of the run: MindEye's."""


@dataclass(frozen=True, eq=False)
class Mixing:
    """How a batch is mixed.

    Parameters
    ----------
    share : float32 (B,)
        λ in [0, 1]: how much of a row stays its own.
    partner : int64 (B,)
        Row that gives the rest; a permutation.
    """

    share: Tensor
    partner: Tensor

    def mix(self, values: Tensor) -> Tensor:
        """Return ``share * values + (1 - share) * values[partner]``, float (B, ...)."""
        share = self.share.to(values).reshape(-1, *[1] * (values.ndim - 1))
        return torch.lerp(values[self.partner.to(values.device)], values, share)

    def labels(self) -> Tensor:
        """Return y of the module's formula, float32 (B, B); every row sums to 1."""
        rows = torch.arange(len(self.share), device=self.share.device)
        labels = torch.diag(self.share)
        labels[rows, self.partner] += 1 - self.share
        return labels


def draw(count: int, generator: torch.Generator) -> Mixing:
    """Draw how a batch of ``count`` is mixed from a CPU ``generator``: Beta variates are the inverse distribution at uniform ones."""
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    share = torch.from_numpy(special.betaincinv(CONCENTRATION, CONCENTRATION, uniform.numpy())).float()
    mixed = torch.rand(count, generator=generator) < HALF
    return Mixing(torch.where(mixed, share, torch.ones_like(share)), torch.randperm(count, generator=generator))


def contrast(predicted: Tensor, target: Tensor, mixing: Mixing, temperature: float = TEMPERATURE) -> Tensor:
    """Return BiMixCo of predictions from mixed responses.

    Parameters
    ----------
    predicted : float (B, n)
        Unit vectors, of responses that ``mixing`` mixed.
    target : float (B, n)
        Unit vectors, not mixed.
    mixing : Mixing
    temperature : float
        Above 0.

    Returns
    -------
    float ()
    """
    labels = mixing.labels().to(predicted)
    logits = predicted @ target.T / temperature
    forward = -(labels * logits.log_softmax(1)).sum(1).mean()
    backward = -(labels * logits.log_softmax(0)).sum(0).mean()
    return (forward + backward) / 2
