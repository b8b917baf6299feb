"""What a denoiser's blocks compute, as functions of diffusers' modules: the residual block, and what is made once of the conditions and times.

The modules hold the weights and give them the checkpoint's names. The functions differ from the modules' own forward passes in what is handed
in: the keys and values of the condition and the projected times stay the same over many calls and are computed by whoever calls (:func:`read`,
:func:`timed`); and a condition may have more rows than the latents, which are then repeated only where the condition is first read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name every torch reader knows

_SMALL_MAP = 256
"""Pixels of a batch up to which the convolution's own preparations take longer than its arithmetic."""


class KeysValues(NamedTuple):
    """What one cross-attention layer makes of a condition: both (rows, heads, n_tokens, width of a head)."""

    keys: Tensor
    values: Tensor

    def below(self, first: KeysValues, rows: int) -> KeysValues:
        """Return these under ``rows`` rows of ``first``, whose single row is repeated when it has but one."""
        above = (value.expand(rows, -1, -1, -1) for value in first)
        return KeysValues(*(torch.cat(pair) for pair in zip(above, self, strict=True)))


def read(flow: Transformer2DModel, tokens: Tensor) -> list[KeysValues]:
    """Return the keys and values that each layer of a flow makes of a condition, (rows, n_tokens, width)."""
    layers = [block.attn2 for block in flow.transformer_blocks]
    return [KeysValues(_heads(layer, layer.to_k(tokens)), _heads(layer, layer.to_v(tokens))) for layer in layers]


def timed(block: ResnetBlock2D, embedded: Tensor) -> Tensor:
    """Return what a residual block's first convolution adds at a time, (n_times, C, 1, 1), from the activated time embedding (n_times, width)."""
    return (block.time_emb_proj(embedded) + block.conv1.bias)[:, :, None, None]


def residual(block: ResnetBlock2D, hidden: Tensor, moment: Tensor) -> Tensor:
    """Return the output of a residual block, (B, C, h, w); ``moment`` is :func:`timed`'s, of one row or of B."""
    inner = F.silu(block.norm1(hidden), inplace=True)
    if len(moment) == 1:
        inner = _convolved(inner, block.conv1.weight, moment.flatten())
    else:
        inner = _convolved(inner, block.conv1.weight, None).add_(at_rows(moment, len(hidden)))
    inner = _convolved(F.silu(block.norm2(inner), inplace=True), block.conv2.weight, block.conv2.bias)
    return inner.add_(hidden if block.conv_shortcut is None else _pixelwise(block.conv_shortcut, hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def join(hidden: Tensor, skipped: Tensor) -> Tensor:
    """Return both feature maps one after the other, (B, C + D, h, w), channels last; ``skipped`` may have fewer rows."""
    both = (value.permute(0, 2, 3, 1) for value in (hidden, at_rows(skipped, len(hidden))))
    return torch.cat(tuple(both), dim=-1).permute(0, 3, 1, 2)


def at_rows(value: Tensor, rows: int) -> Tensor:
    """Return the value repeated to ``rows`` rows, without a copy where it has but one."""
    rest = value.ndim - 1
    return value.expand(rows, *(-1,) * rest) if len(value) in (1, rows) else value.repeat(rows // len(value), *(1,) * rest)


def _convolved(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a convolution of 3x3 pixels; on the CPU a small map as one matrix product of its patches, in half the time."""
    rows, channels, height, width = values.shape
    if values.device.type != "cpu" or rows * height * width > _SMALL_MAP:
        return F.conv2d(values, weight, bias, padding=1)
    padded = F.pad(values.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3).reshape(rows, height, width, 9 * channels)
    return F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def _pixelwise(layer: nn.Conv2d, values: Tensor) -> Tensor:
    """Apply a convolution of one pixel to (..., C): the same, and in this layout faster than the convolution."""
    return F.linear(values, layer.weight.flatten(1), layer.bias)


def _heads(layer: Attention, values: Tensor) -> Tensor:
    return values.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
