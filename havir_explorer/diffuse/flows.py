"""The transformer flows of one block, run side by side: their weights stacked, each product one batched product for all flows.

Two flows read the same feature map with weights of the same shapes. One after the other they cost twice the calls, which at small sizes take
as long as the arithmetic; together every layer is one call over (flows, rows, width), and queries, keys and values are one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name every torch reader knows

from havir_explorer.diffuse.blocks import KeysValues, at_rows


class Affine(NamedTuple):
    """The weights of one layer in every flow: (flows, out, in) of a product, (flows, width) of a norm; ``bias`` is (flows, out) or None."""

    weight: Tensor
    bias: Tensor | None


class Layer(NamedTuple):
    """One transformer layer in every flow, in the order in which it runs."""

    norm_self: Affine
    queries_keys_values: Affine
    out_self: Affine
    norm_cross: Affine
    queries: Affine
    out_cross: Affine
    norm_feed: Affine
    gated: Affine
    out_feed: Affine


class Stacked(NamedTuple):
    """Several flows' weights, each tensor with a first axis of flows."""

    norm: Affine
    proj_in: Affine
    layers: list[Layer]
    proj_out: Affine

    @classmethod
    def of(cls, flows: Sequence[Transformer2DModel]) -> Stacked:
        """Return a copy of the flows' weights; gradients pass through it."""
        return cls._from([_affine(alike) for alike in _alike(flows)])

    @classmethod
    def _from(cls, affines: list[Affine]) -> Stacked:
        size = len(Layer._fields)
        layers = [Layer(*affines[start : start + size]) for start in range(2, len(affines) - 1, size)]
        return cls(affines[0], affines[1], layers, affines[-1])

    def affines(self) -> list[Affine]:
        """Every layer, in the order of the walk."""
        return [self.norm, self.proj_in, *(affine for layer in self.layers for affine in layer), self.proj_out]

    def chosen(self, flow: int) -> Stacked:
        """Return one flow's weights alone, first axis kept, nothing copied."""
        some = slice(flow, flow + 1)
        return Stacked._from([Affine(weight[some], None if bias is None else bias[some]) for weight, bias in self.affines()])

    def share(self, flows: Sequence[Transformer2DModel]) -> None:
        """Make the flows' own parameters views of these tensors, so that they take no memory of their own and stay one with them."""
        for (weight, bias), alike in zip(self.affines(), _alike(flows), strict=True):
            for flow, group in enumerate(alike):
                rows = [len(module.weight) for module in group]
                for module, own in zip(group, weight[flow].split(rows), strict=True):
                    module.weight.data = own.view(module.weight.shape)
                for module, own in zip(group, () if bias is None else bias[flow].split(rows), strict=bias is not None):
                    module.bias.data = own

    def shared_by(self, flows: Sequence[Transformer2DModel]) -> bool:
        """True when the flows' parameters are views of these tensors still: replaced, moved or converted weights are not."""
        own = ((affine.weight[flow], group[0].weight) for affine, alike in zip(self.affines(), _alike(flows), strict=True) for flow, group in enumerate(alike))
        return all(mine.data_ptr() == theirs.data_ptr() and mine.dtype == theirs.dtype for mine, theirs in own)


def transform(flow: Transformer2DModel, weights: Stacked, hidden: Tensor, known: Sequence[Sequence[KeysValues]], mix: Tensor | None) -> Tensor:
    """Return what the flows make of a feature map, mixed.

    Parameters
    ----------
    flow : Transformer2DModel
        Any of them, for its numbers of heads and groups.
    weights : Stacked
        Of one or two flows.
    hidden : Tensor
        (B, C, h, w).
    known : sequence of sequence of KeysValues
        For each flow, for each layer: of n B rows.
    mix : Tensor or None
        Share of the second flow, (n B, 1, 1, 1); the half of each when left out.

    Returns
    -------
    Tensor
        (n B, C, h, w).
    """
    _, channels, height, width = hidden.shape
    normed = F.group_norm(hidden, flow.norm.num_groups, eps=flow.norm.eps).permute(0, 2, 3, 1).reshape(1, -1, channels)
    tokens = _apply(weights.proj_in, _scale(weights.norm, normed)).unflatten(1, (len(hidden), height * width))
    heads = flow.transformer_blocks[0].attn1.heads
    for layer, *of_flows in zip(weights.layers, *known, strict=True):
        tokens = _cross(layer, heads, _attend_self(layer, heads, tokens), of_flows)
        normed = _norm(layer.norm_feed, tokens.flatten(1, 2))
        tokens = _apply(layer.out_feed, _gate(layer.gated, normed)).view(tokens.shape).add_(tokens)
    mixed = _mixed(_apply(weights.proj_out, tokens.flatten(1, 2)).view(tokens.shape), mix)
    return mixed.unflatten(1, (height, width)).permute(0, 3, 1, 2).add_(at_rows(hidden, len(mixed)))


def _mixed(tokens: Tensor, mix: Tensor | None) -> Tensor:
    """Return (flows, rows, n_tokens, width) as (rows, n_tokens, width)."""
    if len(tokens) == 1:
        return tokens[0]
    share = 0.5 if mix is None else mix[:, :, 0].to(tokens.dtype)
    return torch.lerp(tokens[0], tokens[1], share)


def _attend_self(layer: Layer, heads: int, tokens: Tensor) -> Tensor:
    flows, rows, count, width = tokens.shape
    flat = tokens.flatten(1, 2)
    triple = _apply(layer.queries_keys_values, _norm(layer.norm_self, flat)).view(flows * rows, count, 3, heads, width // heads)
    queries, keys, values = triple.permute(2, 0, 3, 1, 4)
    found = F.scaled_dot_product_attention(queries, keys, values)
    return _apply(layer.out_self, found.transpose(1, 2).reshape(flat.shape)).add_(flat).view(tokens.shape)


def _cross(layer: Layer, heads: int, tokens: Tensor, known: Sequence[KeysValues]) -> Tensor:
    flows, rows, count, width = tokens.shape
    queries = _apply(layer.queries, _norm(layer.norm_cross, tokens.flatten(1, 2))).view(flows, rows, count, heads, width // heads).transpose(2, 3)
    wanted = len(known[0].keys)
    found = [F.scaled_dot_product_attention(at_rows(own, wanted), *pair).transpose(1, 2) for own, pair in zip(queries, known, strict=True)]
    added = _apply(layer.out_cross, torch.stack(found).view(flows, wanted * count, width)).view(flows, wanted // rows, rows, count, width)
    return added.add_(tokens[:, None]).view(flows, wanted, count, width)


def _gate(layer: Affine, tokens: Tensor) -> Tensor:
    """Apply the gated layer in halves: one matrix of twice the width leaves both interleaved in memory, which costs more than it saves."""
    bias = (None, None) if layer.bias is None else layer.bias.chunk(2, dim=1)
    plain, gate = (_apply(Affine(weight, own), tokens) for weight, own in zip(layer.weight.chunk(2, dim=1), bias, strict=True))
    return plain.mul_(F.gelu(gate))


def _apply(layer: Affine, tokens: Tensor) -> Tensor:
    """Return the product (flows, rows, out) of (flows, rows, in)."""
    if len(tokens) == 1:
        return F.linear(tokens, layer.weight[0], None if layer.bias is None else layer.bias[0])
    turned = layer.weight.transpose(1, 2)
    return torch.bmm(tokens, turned) if layer.bias is None else torch.baddbmm(layer.bias[:, None], tokens, turned)


def _norm(layer: Affine, tokens: Tensor) -> Tensor:
    return _scale(layer, F.layer_norm(tokens, tokens.shape[-1:]))


def _scale(layer: Affine, values: Tensor) -> Tensor:
    return torch.addcmul(layer.bias[:, None], values, layer.weight[:, None])  # type: ignore[index]


def _affine(alike: Sequence[Sequence[Any]]) -> Affine:
    """Return a layer's weights over all flows; modules of one flow that read the same input lie below each other."""
    weight = torch.stack([torch.cat([_flat(module.weight) for module in group]) for group in alike])
    if alike[0][0].bias is None:
        return Affine(weight, None)
    return Affine(weight, torch.stack([torch.cat([module.bias for module in group]) for group in alike]))


def _flat(weight: Tensor) -> Tensor:
    return weight.flatten(1) if weight.ndim > 1 else weight


def _alike(flows: Sequence[Transformer2DModel]) -> list[tuple[list[Any], ...]]:
    """Return, in the order of the walk, what lies at the same place of each flow."""
    return list(zip(*[_modules(flow) for flow in flows], strict=True))


def _modules(flow: Transformer2DModel) -> list[list[Any]]:
    found: list[list[Any]] = [[flow.norm], [flow.proj_in]]
    for block in flow.transformer_blocks:
        own, cross, feed = block.attn1, block.attn2, block.ff.net
        found += [[block.norm1], [own.to_q, own.to_k, own.to_v], [own.to_out[0]]]
        found += [[block.norm2], [cross.to_q], [cross.to_out[0]]]
        found += [[block.norm3], [feed[0].proj], [feed[2]]]
    return [*found, [flow.proj_out]]
