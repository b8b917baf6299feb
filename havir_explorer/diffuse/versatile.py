"""Versatile Diffusion's denoiser: one UNet, two flows, mixed inside every transformer block.

Source: Xu et al. 2023, "Versatile Diffusion" (arXiv 2211.08332), section 3; the residual-space mixing is diffusers' DualTransformer2DModel.
Here the mix is an argument of the call, one number a picture, never state of the module: two requests cannot disturb each other. So are the
keys and values of the conditions and the embedded times, which a request computes once and hands to every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name every torch reader knows

from havir_explorer.diffuse.blocks import KeysValues, join, read, residual, timed
from havir_explorer.diffuse.flows import Stacked, transform
from havir_explorer.errors import WeightsInvalid

_PLAIN = {"act_fn": "silu", "mid_block_type": "UNetMidBlock2DCrossAttn", "resnet_time_scale_shift": "default", "attention_type": "default"}
"""Options of a UNet2DConditionModel that Versatile Diffusion leaves alone, with the only value the walk below is right for."""
_ABSENT = (
    "addition_embed_type",
    "center_input_sample",
    "class_embed_type",
    "class_embeddings_concat",
    "cross_attention_norm",
    "dropout",
    "encoder_hid_dim",
    "only_cross_attention",
    "resnet_skip_time_act",
    "time_cond_proj_dim",
    "time_embedding_act_fn",
    "upcast_attention",
)
"""Options that are off."""


class Conditions(NamedTuple):
    """What guides the denoiser, one row a picture.

    ``image`` is (B, n_image_tokens, width), ``text`` (B, n_text_tokens, width), ``mix`` the text share (B,) in [0, 1]: 0 is image only,
    1 is text only. A flow whose condition is ``None`` is not run, and ``mix`` is then ignored.
    """

    image: Tensor | None
    text: Tensor | None
    mix: Tensor | None = None

    @classmethod
    def single(cls, context: Tensor, *, text: bool) -> Conditions:
        """Return conditions that run one flow alone."""
        return cls(None, context) if text else cls(context, None)

    @classmethod
    def mixed(cls, image: Tensor, text: Tensor, mix: Tensor) -> Conditions:
        """Return conditions for both flows, leaving out one whose weight is 0 in every row."""
        if bool((mix == 0).all()):
            return cls(image, None)
        if bool((mix == 1).all()):
            return cls(None, text)
        return cls(image, text, mix)


class Read(NamedTuple):
    """Conditions as the layers read them: for every :class:`DualFlowBlock` in the order of the walk, a layer's keys and values for each layer.

    ``mix`` is (B, 1, 1, 1). An empty list is a flow that is not run.
    """

    image: list[list[KeysValues]]
    text: list[list[KeysValues]]
    mix: Tensor | None

    def below(self, first: Read, rows: int) -> Read:
        """Return these conditions below ``rows`` rows of others, of which one row stands for all; the mix of both is this one's."""
        image, text = (_paired(above, own, rows) for above, own in zip(first[:2], self[:2], strict=True))
        return Read(image, text, None if self.mix is None else self.mix.repeat(2, 1, 1, 1))


class DualFlowBlock(nn.Module):
    """The same transformer block twice, for the image and for the text condition, mixed in residual space.

    h + m (T_text(h, c_text) - h) + (1 - m) (T_image(h, c_image) - h), which is m T_text + (1 - m) T_image.
    """

    def __init__(self, image: Transformer2DModel, text: Transformer2DModel) -> None:
        super().__init__()
        self.image, self.text = image, text
        self._settled: Stacked | None = None

    def forward(self, hidden: Tensor, image: list[KeysValues] | None, text: list[KeysValues] | None, mix: Tensor | None) -> Tensor:
        """Return the mixed block output, (B, C, h, w), of as many rows as the conditions have; a flow without keys and values is not run."""
        settled = Stacked.of((self.image, self.text)) if self._settled is None or torch.is_grad_enabled() else self._settled
        if text is None or image is None:
            return transform(self.image, settled.chosen(int(image is None)), hidden, [image or text or []], None)
        return transform(self.image, settled, hidden, [image, text], mix)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own, which do not lie side by side yet."""
        return {**super().__getstate__(), "_settled": None}  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DualFlowBlock:
        self._settled = None  # what moves or converts weights leaves these behind
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:  # noqa: ANN401 - as torch declares it
        self._settled = None
        super()._load_from_state_dict(*arguments)

    def settle(self) -> None:
        """Lay the weights of both flows side by side in memory, unless they lie so already."""
        flows = (self.image, self.text)
        if self._settled is None or not self._settled.shared_by(flows):
            with torch.no_grad():
                self._settled = Stacked.of(flows)
                self._settled.share(flows)


class VersatileUNet(nn.Module):
    """A UNet2DConditionModel whose transformer blocks are :class:`DualFlowBlock`.

    Parameters
    ----------
    config : dict
        The ``config.json`` of the checkpoint's ``image_unet``.

    Raises
    ------
    WeightsInvalid
        The configuration asks for a part that Versatile Diffusion has not.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        _check(config)
        self.unet = UNet2DConditionModel.from_config(config)
        twin = UNet2DConditionModel.from_config(config)
        for name, module in list(self.unet.named_modules()):
            if isinstance(module, Transformer2DModel):
                parent, _, index = name.rpartition(".")
                self.unet.get_submodule(parent)[int(index)] = DualFlowBlock(module, twin.get_submodule(name))
        self._flows = [module for module in self._walk() if isinstance(module, DualFlowBlock)]
        self._residuals = [module for module in self._walk() if isinstance(module, ResnetBlock2D)]

    def forward(self, latents: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the predicted noise, shaped like ``latents`` (B, 4, h, w); ``times`` is (B,) or a scalar in [0, 1000)."""
        return self.denoise(latents, self.embed(times), self.read(conditions))

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not compiled: what was compiled reads the weights of the original."""
        return {name: value for name, value in super().__getstate__().items() if name != "denoise"}  # type: ignore[no-untyped-call]

    def read(self, conditions: Conditions) -> Read:
        """Return the keys and values of the conditions in every cross-attention layer: constant over the steps of a request."""
        image = [] if conditions.image is None else [read(block.image, conditions.image) for block in self._flows]
        text = [] if conditions.text is None else [read(block.text, conditions.text) for block in self._flows]
        return Read(image, text, None if conditions.mix is None else conditions.mix[:, None, None, None])

    def embed(self, times: Tensor) -> list[Tensor]:
        """Return what every residual block adds at these times, scalar or (n,): one (n, C, 1, 1) a block, in the order of the walk."""
        embedded = F.silu(self.unet.time_embedding(self.unet.time_proj(times.reshape(-1)).to(self.unet.dtype)))
        return [timed(block, embedded) for block in self._residuals]

    def denoise(self, latents: Tensor, moments: Sequence[Tensor], known: Read) -> Tensor:
        """Return the predicted noise, from what :meth:`embed` and :meth:`read` have computed.

        Parameters
        ----------
        latents : Tensor
            (B, 4, h, w).
        moments : sequence of Tensor
            Of one time, or of one a row.
        known : Read
            Of n B rows: each latent under n conditions, the first B rows under the first. What does not depend on the condition, up to the
            first cross-attention, is then computed once for all n.

        Returns
        -------
        Tensor
            (n B, 4, h, w).
        """
        unet, moment = self.unet, iter(moments)
        flows = zip_longest(known.image, known.text)
        hidden = unet.conv_in(latents)
        skips = [hidden]
        for block in unet.down_blocks:
            for resnet, attention in zip_longest(block.resnets, _attentions(block)):
                hidden = residual(resnet, hidden, next(moment))
                if attention is not None:
                    hidden = attention(hidden, *next(flows), known.mix)
                skips.append(hidden)
            for shrink in block.downsamplers or ():
                hidden = shrink(hidden)
                skips.append(hidden)
        hidden = residual(unet.mid_block.resnets[0], hidden, next(moment))
        for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
            hidden = residual(resnet, attention(hidden, *next(flows), known.mix), next(moment))
        for block in unet.up_blocks:
            for resnet, attention in zip_longest(block.resnets, _attentions(block)):
                hidden = residual(resnet, join(hidden, skips.pop()), next(moment))
                if attention is not None:
                    hidden = attention(hidden, *next(flows), known.mix)
            for grow in block.upsamplers or ():
                hidden = grow(hidden, skips[-1].shape[2:])
        return unet.conv_out(F.silu(unet.conv_norm_out(hidden)))

    def settle(self) -> None:
        """Lay the weights out as a step reads them fastest: channels last, and both flows side by side; the second time this does nothing."""
        with torch.inference_mode(False):  # else they could not be trained any more
            if not self.unet.conv_out.weight.is_contiguous(memory_format=torch.channels_last):
                self.unet.to(memory_format=torch.channels_last)
            for block in self._flows:
                block.settle()

    def compile_steps(self, mode: str = "default", backend: str = "inductor") -> None:
        """Have :meth:`denoise` compiled by torch for each shape that it meets; it needs a C++ compiler, or Triton on a GPU.

        Parameters
        ----------
        mode, backend : str
            Of ``torch.compile``; the mode ``"reduce-overhead"`` replays CUDA graphs on a GPU.
        """
        self.settle()
        self.denoise = torch.compile(self.denoise, mode=mode, backend=backend)  # type: ignore[method-assign]

    def _walk(self) -> Iterator[nn.Module]:
        """Every module of the blocks, the blocks in the order in which they run."""
        for part in (self.unet.down_blocks, self.unet.mid_block, self.unet.up_blocks):
            yield from part.modules()

    def load_flows(self, image: dict[str, Tensor], text: dict[str, Tensor]) -> None:
        """Take the weights of a checkpoint's ``image_unet`` and the transformer blocks of its ``text_unet``, without copying them.

        Raises
        ------
        RuntimeError
            A key is missing, superfluous or of another shape (torch's own message names it).
        """
        twofold = {_renamed(key, "image"): value for key, value in image.items()}
        twofold |= {_renamed(key, "text"): value for key, value in text.items() if ".attentions." in key}
        self.unet.load_state_dict(twofold, assign=True)

    def flows(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weights as a checkpoint holds them: ``image_unet`` whole, of ``text_unet`` only the transformer blocks."""
        weights = self.unet.state_dict()
        text = {key.replace(".text.", ".", 1): value for key, value in weights.items() if _is_flow(key, "text")}
        image = {key.replace(".image.", ".", 1) if _is_flow(key, "image") else key: value for key, value in weights.items() if not _is_flow(key, "text")}
        return image, text


def _check(config: dict[str, Any]) -> None:
    odd = [name for name, value in _PLAIN.items() if config.get(name, value) != value] + [name for name in _ABSENT if config.get(name)]
    if odd:
        named = ", ".join(f"{name} = {config[name]!r}" for name in odd)
        msg = f"image_unet/config.json asks for {named}, which Versatile Diffusion has not; use the image_unet of a Versatile Diffusion"
        raise WeightsInvalid(msg)


def _attentions(block: nn.Module) -> Iterable[DualFlowBlock]:
    return getattr(block, "attentions", ())


def _paired(above: list[list[KeysValues]], own: list[list[KeysValues]], rows: int) -> list[list[KeysValues]]:
    return [[layer.below(first, rows) for first, layer in zip(*block, strict=True)] for block in zip(above, own, strict=True)]


def _is_flow(key: str, flow: str) -> bool:
    parts = key.split(".")
    return "attentions" in parts and parts[parts.index("attentions") + 2] == flow


def _renamed(key: str, flow: str) -> str:
    parts = key.split(".")
    if "attentions" in parts:
        parts.insert(parts.index("attentions") + 2, flow)
    return ".".join(parts)
