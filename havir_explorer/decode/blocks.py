"""Building blocks whose every random number comes from a generator that is handed in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional


class Dropout(nn.Module):
    """Dropout that can draw from a generator of its own, so that a resumed training repeats itself whatever else runs.

    Parameters
    ----------
    rate : float
        Share of values set to zero in training, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values`` with a random share zeroed and the rest scaled up (training), or unchanged."""
        if not self.training or self.rate == 0:
            return values
        kept = torch.empty_like(values).bernoulli_(1 - self.rate, generator=self.generator)
        return values * kept / (1 - self.rate)


class ResidualMLP(nn.Module):
    """Linear, LayerNorm, activation, Dropout, plus the input."""

    def __init__(self, width: int, activation: type[nn.Module], dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width), activation(), Dropout(dropout))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return float (B, width)."""
        added: Tensor = self.body(hidden)
        return hidden + added


class _Stage(nn.Module):
    """GroupNorm, SiLU and convolution, twice, plus the input through a 1x1 convolution; then twice the side."""

    def __init__(self, inner: int, outer: int, *, double: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(math.gcd(8, inner), inner),
            nn.SiLU(),
            nn.Conv2d(inner, outer, 3, padding=1),
            nn.GroupNorm(math.gcd(8, outer), outer),
            nn.SiLU(),
            nn.Conv2d(outer, outer, 3, padding=1),
        )
        self.past = nn.Conv2d(inner, outer, 1)
        self.doubles = double

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.past(maps) + self.body(maps)
        return functional.interpolate(maps, scale_factor=2.0, mode="nearest") if self.doubles else maps


class Upsampler(nn.Sequential):
    """Low-resolution maps to latents: a convolution, ``doublings`` + 1 residual stages (all but the last double the side), GroupNorm, SiLU, a convolution.

    The shape of a KL-VAE's decoder, as in MindEye's low-level branch, without its attention.
    """

    def __init__(self, inner: int, channels: int, outer: int, doublings: int) -> None:
        stages = [_Stage(channels, channels, double=index < doublings) for index in range(doublings + 1)]
        ending = (nn.GroupNorm(math.gcd(8, channels), channels), nn.SiLU(), nn.Conv2d(channels, outer, 3, padding=1))
        super().__init__(nn.Conv2d(inner, channels, 3, padding=1), *stages, *ending)


class Repair(nn.Module):
    """Give predictions back the mean and the spread that regression took from them.

    A regression's predictions shrink towards the mean, and a generator reads small embeddings as weak ones. Brain-Diffuser z-scores
    predictions over the test set and applies the training mean and spread, which one live trial cannot do; here both come from training
    images and are stored with the weights, and no test image is looked at.

    How much a prediction has shrunk shows only on images that the weights have not learnt by heart, so the gain is the ratio of spreads over
    the held-out training images alone: out-of-sample predictions, of one fold. The same images have chosen the best step, which favours them
    a little. More folds would mean as many trainings; new heads fitted in folds on the finished trunk would not be out of sample, because
    the trunk has seen every image.

    Parameters
    ----------
    shape : tuple of int
        Of one prediction.
    gain_shape : tuple of int
        Broadcasts against ``shape``.
    normalise : bool
        Bring every prediction to the targets' mean length first, for predictions trained by a loss that does not see their length.
    """

    length: Tensor
    predicted_mean: Tensor
    target_mean: Tensor
    gain: Tensor

    def __init__(self, shape: tuple[int, ...], gain_shape: tuple[int, ...], *, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.register_buffer("length", torch.ones(()))
        self.register_buffer("predicted_mean", torch.zeros(shape))
        self.register_buffer("target_mean", torch.zeros(shape))
        self.register_buffer("gain", torch.ones(gain_shape))

    def forward(self, predicted: Tensor) -> Tensor:
        """Return ``target_mean + gain * (predicted - predicted_mean)``."""
        return self.target_mean + self.gain * (self._at_length(predicted) - self.predicted_mean)

    def _at_length(self, predicted: Tensor) -> Tensor:
        if not self.normalise:
            return predicted
        return functional.normalize(predicted.flatten(1), dim=1).view_as(predicted) * self.length

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]], strength: float) -> Self:
        """Set both means from all pairs and the gain from the held-out ones; one batch of pairs is in memory at a time.

        Parameters
        ----------
        batches : iterable of (predicted, target, held out)
            float (n, *shape) twice, of training images, and bool (n,): pairs that the weights have not seen. A mean is hardly overfitted,
            a spread is: what the weights have seen does not enter the gain.
        strength : float
            0 keeps the predictions' spread, 1 restores the targets' fully; in between, the ratio to this power.

        Returns
        -------
        Repair
            Itself.
        """
        lengths, guessed, true = _Moments(), _Moments(), _Moments()
        for predicted, target, held_out in batches:
            lengths.add(target.flatten(1).norm(dim=1), held_out)
            guessed.add(self._at_length(predicted), held_out)  # at length 1 where this repair normalises
            true.add(target, held_out)
        length = lengths.mean if self.normalise else torch.ones((), dtype=torch.float64)
        self.length.copy_(lengths.mean)
        self.predicted_mean.copy_(guessed.mean * length)
        self.target_mean.copy_(true.mean)
        reduced = [axis for axis, size in enumerate(self.gain.shape) if size == 1]
        narrow = guessed.held_variance.mean(reduced, keepdim=True) * length**2
        wide = true.held_variance.mean(reduced, keepdim=True)
        ratio = (wide / narrow.clamp_min(1e-12)).sqrt()
        # A token that never varies (a caption's first) has no spread to restore; 4 bounds what noise can be blown up to.
        self.gain.copy_(torch.where(wide > 1e-10, ratio.clamp(0.25, 4) ** strength, torch.ones_like(ratio)))
        return self


class _Moments:
    """The mean of all rows, and the variance of the held-out ones alone, gathered batch by batch in float64 on the CPU."""

    def __init__(self) -> None:
        self.count = self.held_count = 0
        self.sum = self.held_sum = self.held_squares = torch.zeros((), dtype=torch.float64)

    def add(self, rows: Tensor, held_out: Tensor) -> None:
        rows, held_out = rows.cpu(), held_out.cpu()
        held = rows[held_out].double()
        self.count, self.held_count = self.count + len(rows), self.held_count + len(held)
        self.sum = self.sum + rows.sum(0, dtype=torch.float64)
        self.held_sum, self.held_squares = self.held_sum + held.sum(0), self.held_squares + held.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count

    @property
    def held_variance(self) -> Tensor:
        return (self.held_squares / self.held_count - (self.held_sum / self.held_count).square()).clamp_min(0)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter afresh from ``generator``: uniform in ± 1/sqrt(fan in) for linear layers and convolutions, identity for norms."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(part.weight[0].numel())
            part.weight.uniform_(-bound, bound, generator=generator)
            if part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, nn.LayerNorm | nn.GroupNorm):
            part.weight.fill_(1)
            part.bias.zero_()
        elif isinstance(part, Repair):
            part.length.fill_(1)
            part.predicted_mean.zero_()
            part.target_mean.zero_()
            part.gain.fill_(1)


def use_generator(module: nn.Module, generator: torch.Generator | None) -> None:
    """Let every dropout inside ``module`` draw from ``generator``."""
    for part in module.modules():
        if isinstance(part, Dropout):
            part.generator = generator
