"""Edges in pixels: MindEye's Sobel term, which compares decoded pictures where the latent term compares latents.

L1 between the Sobel magnitudes of the decoded picture and of the stimulus behind a 3 x 3 median (Scotti et al. 2023, arXiv 2305.18274, and
its public code, which weighs it 16 beside the latents' L1 over the autoencoder's scaling factor). The median takes away texture that no
latent of a brain response could carry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from havir_explorer.decode.losses import sobel
from havir_explorer.errors import RequestError
from havir_explorer.records import IntArray

WEIGHT = 16 * 0.18215
"""MindEye's weight of the term, 16, in units of a term of latents that is not divided by the scaling factor."""


@dataclass(frozen=True, eq=False)
class PixelEdges:
    """What the term needs beyond latents.

    Parameters
    ----------
    decode : callable
        Scaled latents, float (n, 4, h, w), to pictures, float (n, 3, H, W) in [0, 1]; gradients pass. Its own weights must be frozen.
    stimuli : callable
        NSD ids, int64 (n,), to the pictures shown, float (n, 3, H, W) in [0, 1] at the decoder's side, on any device.
    needs : int
        Bytes on the device for one picture's gradient, about: more than all else that trains the branch.
    """

    decode: Callable[[Tensor], Tensor]
    stimuli: Callable[[IntArray], Tensor]
    needs: int = 0

    def loss(self, predicted: Tensor, nsd_ids: IntArray) -> Tensor:
        """Return the mean absolute difference of edges, float ().

        Pictures are decoded one at a time, and once more for the gradient, so that only one picture's activations are in memory.

        Parameters
        ----------
        predicted : float (n, 4, h, w)
        nsd_ids : int64 (n,)
            Which picture each row belongs to.

        Raises
        ------
        RequestError
            The stimuli are not of the decoder's size.
        """
        shown = self.stimuli(nsd_ids).to(predicted.device)
        parts = [self._one(latents[None], stimulus[None].float()) for latents, stimulus in zip(predicted, shown, strict=True)]
        return torch.stack(parts).mean()

    def _one(self, latents: Tensor, stimulus: Tensor) -> Tensor:
        drawn: Tensor = checkpoint(self.decode, latents, use_reentrant=False, preserve_rng_state=False)
        if drawn.shape != stimulus.shape:
            msg = f"decoded pictures are {tuple(drawn.shape[1:])} but stimuli {tuple(stimulus.shape[1:])}; give stimuli at the decoder's side"
            raise RequestError(msg)
        return functional.l1_loss(sobel(drawn.float()), sobel(median(stimulus)))


def median(pictures: Tensor) -> Tensor:
    """Return pictures, float (n, C, H, W), with every pixel replaced by the median of its 3 x 3 neighbourhood; borders are replicated."""
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    height, width = pictures.shape[-2:]
    shifted = [padded[..., row : row + height, column : column + width] for row in range(3) for column in range(3)]
    return torch.stack(shifted).median(0).values
