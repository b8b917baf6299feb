"""What a denoiser's blocks compute, as functions of diffusers' modules: a transformer block, and the residual block before it.

The modules hold the weights and give them the checkpoint's names. The functions differ from the modules' own forward passes in what is handed
in: the keys and values of the condition and the projected times stay the same over many calls and are computed by whoever calls (:func:`read`,
:func:`timed`); and a condition may have more rows than the latents, which are then repeated only where the condition is first read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name every torch reader knows


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
    """Return what a residual block adds for a time, (n_times, C, 1, 1), from the activated time embedding (n_times, width)."""
    return block.time_emb_proj(embedded)[:, :, None, None]


def residual(block: ResnetBlock2D, hidden: Tensor, moment: Tensor) -> Tensor:
    """Return the output of a residual block, (B, C, h, w); ``moment`` is :func:`timed`'s, of one row or of B."""
    inner = block.conv1(F.silu(block.norm1(hidden))) + at_rows(moment, len(hidden))
    inner = block.conv2(F.silu(block.norm2(inner)))
    return inner + (hidden if block.conv_shortcut is None else _pixelwise(block.conv_shortcut, hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def transform(flow: Transformer2DModel, hidden: Tensor, known: list[KeysValues]) -> Tensor:
    """Return what a flow makes of (B, C, h, w): as many rows as the condition has."""
    _, _, height, width = hidden.shape
    tokens = _pixelwise(flow.proj_in, flow.norm(hidden).permute(0, 2, 3, 1).flatten(1, 2))
    for block, keys_values in zip(flow.transformer_blocks, known, strict=True):
        tokens = _block(block, tokens, keys_values)
    tokens = _pixelwise(flow.proj_out, tokens)
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2) + at_rows(hidden, len(tokens))


def join(hidden: Tensor, skipped: Tensor) -> Tensor:
    """Return both feature maps one after the other, (B, C + D, h, w), channels last; ``skipped`` may have fewer rows."""
    both = (value.permute(0, 2, 3, 1) for value in (hidden, at_rows(skipped, len(hidden))))
    return torch.cat(tuple(both), dim=-1).permute(0, 3, 1, 2)


def at_rows(value: Tensor, rows: int) -> Tensor:
    """Return the value repeated to ``rows`` rows, without a copy where it has but one."""
    rest = value.ndim - 1
    return value.expand(rows, *(-1,) * rest) if len(value) in (1, rows) else value.repeat(rows // len(value), *(1,) * rest)


def _pixelwise(layer: nn.Conv2d | nn.Linear, values: Tensor) -> Tensor:
    """Apply a convolution of one pixel, or a linear layer, to (..., C): the same, and in this layout faster than the convolution."""
    return F.linear(values, layer.weight.flatten(1), layer.bias)


def _block(block: BasicTransformerBlock, tokens: Tensor, known: KeysValues) -> Tensor:
    normed = block.norm1(tokens)
    keys, values = (_heads(block.attn1, project(normed)) for project in (block.attn1.to_k, block.attn1.to_v))
    tokens = tokens + _attend(block.attn1, normed, KeysValues(keys, values))
    tokens = at_rows(tokens, len(known.keys)) + _attend(block.attn2, block.norm2(tokens), known)
    return tokens + _feed(block, block.norm3(tokens))


def _feed(block: BasicTransformerBlock, tokens: Tensor) -> Tensor:
    """Apply the gated layer in halves: one matrix of twice the width leaves both interleaved in memory, which costs more than it saves."""
    gated, out = block.ff.net[0].proj, block.ff.net[2]
    (weight, gate_weight), (bias, gate_bias) = gated.weight.chunk(2), gated.bias.chunk(2)
    return out(F.linear(tokens, weight, bias) * F.gelu(F.linear(tokens, gate_weight, gate_bias)))


def _attend(layer: Attention, tokens: Tensor, known: KeysValues) -> Tensor:
    queries = at_rows(_heads(layer, layer.to_q(tokens)), len(known.keys))
    found = F.scaled_dot_product_attention(queries, known.keys, known.values)
    return layer.to_out[0](found.transpose(1, 2).flatten(2))


def _heads(layer: Attention, values: Tensor) -> Tensor:
    return values.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
