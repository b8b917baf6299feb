"""What the two branches are trained to make small."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from havir_explorer.decode import mixco
from havir_explorer.decode.mixco import Mixing

_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
_SMOOTH = 1e-6


def sobel(maps: Tensor) -> Tensor:
    """Return the Sobel magnitude of every channel.

    Parameters
    ----------
    maps : float (B, C, h, w)

    Returns
    -------
    float (B, C, h, w)
        sqrt(gx² + gy² + 1e-6), kernels divided by 8 so that a ramp of slope 1 a pixel gives 1, borders replicated.
    """
    kernel = maps.new_tensor(_SOBEL) / 8
    both = torch.stack((kernel, kernel.T))[:, None]
    batch, channels, height, width = maps.shape
    padded = functional.pad(maps, (1, 1, 1, 1), mode="replicate").reshape(batch * channels, 1, height + 2, width + 2)
    squares = functional.conv2d(padded, both).square().sum(1)
    return (squares + _SMOOTH).sqrt().reshape(batch, channels, height, width)


def structural_loss(predicted: Tensor, target: Tensor, edges: float = 0.1) -> Tensor:
    """Mean squared error of latents plus ``edges`` times that of their Sobel magnitudes.

    HAVIR names both terms (MSE for the whole, Sobel for edges); the weight, and that Sobel is applied to the latents, are our reading.

    Parameters
    ----------
    predicted, target : float (B, 4, h, w)
    edges : float
        Weight of the Sobel term, 0 or more.

    Returns
    -------
    float ()
    """
    whole = functional.mse_loss(predicted, target)
    return whole + edges * functional.mse_loss(sobel(predicted), sobel(target))


def soft_clip(predicted: Tensor, target: Tensor, temperature: float = 0.005) -> Tensor:
    """Contrastive loss whose labels are the targets' own similarities (SoftCLIP of MindEye, Scotti et al. 2023).

    Parameters
    ----------
    predicted, target : float (B, n)
        Unit vectors; row i belongs to row i.
    temperature : float
        Above 0.

    Returns
    -------
    float ()
        Cross-entropy from softmax(T Tᵀ / τ) to softmax(P Tᵀ / τ), averaged over both directions.
    """
    labels = (target @ target.T / temperature).softmax(-1)
    logits = predicted @ target.T / temperature
    forward = -(labels * logits.log_softmax(-1)).sum(-1).mean()
    backward = -(labels * logits.T.log_softmax(-1)).sum(-1).mean()
    return (forward + backward) / 2


def token_loss(
    predicted: Tensor, target: Tensor, *, temperature: float = 0.005, mse: float = 1e4, contrast: float = 1.0, mixing: Mixing | None = None
) -> Tensor:
    """Loss of one head: SoftCLIP plus MSE, both on flattened vectors of unit length (MindBridge's, which HAVIR's wording fits).

    Where the responses were mixed, the contrast is BiMixCo at its own temperature, and the squared error is to the targets mixed likewise
    (our reading: MindEye trains its squared error elsewhere, in the diffusion prior).

    Parameters
    ----------
    predicted, target : float (B, n_tokens, width)
    temperature : float
        Of the SoftCLIP term.
    mse, contrast : float
        Weights of the two terms.
    mixing : Mixing, optional
        How the responses behind ``predicted`` were mixed.

    Returns
    -------
    float ()
    """
    guessed, true = (functional.normalize(tokens.flatten(1), dim=-1) for tokens in (predicted, target))
    if mixing is None:
        return contrast * soft_clip(guessed, true, temperature) + mse * functional.mse_loss(guessed, true)
    return contrast * mixco.contrast(guessed, true, mixing) + mse * functional.mse_loss(guessed, mixing.mix(true))
