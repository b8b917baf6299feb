"""HAVIR's two branches: spatial voxels to latents, semantic voxels to CLIP image and text tokens (arXiv 2510.03122).

What is fact: the two branches and their inputs, the block names of the Structural Generator (linear projection, LayerNorm, SiLU, Dropout,
residual MLP blocks, GroupNorm, upsampling) and its losses (MSE and Sobel). What is our reading: every width, the order of the blocks
(MindEye's low-level branch fits the wording) and the Semantic Extractor's inside (MindBridge's shared trunk with two heads). No code of
HAVIR's authors could be found; see :mod:`~havir_explorer.decode.split` for the voxel split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from havir_explorer.decode import files
from havir_explorer.decode.blocks import Dropout, Repair, ResidualMLP, Upsampler, initialise
from havir_explorer.decode.contribution import of_branch, percentiles
from havir_explorer.decode.files import Parts
from havir_explorer.decode.manifest import Manifest, SemanticSizes, StructuralSizes
from havir_explorer.errors import WeightsInvalid, WeightsMissing
from havir_explorer.records import BoolArray, Branch, Contribution, Decoded, FloatArray


class StructuralGenerator(nn.Module):
    """Spatial voxels to latents.

    Linear (no bias), LayerNorm, SiLU, Dropout; residual MLP blocks; Linear (no bias) to low-resolution maps; GroupNorm; a convolutional
    upsampler to the latents. Widths, and the upsampler's inside, are our reading.

    Parameters
    ----------
    n_voxels : int
    latent_shape : (int, int, int)
        Channels, height and width; height and width divisible by 2 ** ``sizes.doublings``.
    sizes : StructuralSizes
    """

    def __init__(self, n_voxels: int, latent_shape: tuple[int, int, int], sizes: StructuralSizes) -> None:
        super().__init__()
        channels, height, width = latent_shape
        factor = 2**sizes.doublings
        if height % factor or width % factor:
            msg = f"{sizes.doublings} doublings cannot end at latents of {height} x {width}; choose fewer"
            raise WeightsInvalid(msg)
        self.low = (sizes.maps, height // factor, width // factor)
        self.stem = nn.Sequential(nn.Linear(n_voxels, sizes.width, bias=False), nn.LayerNorm(sizes.width), nn.SiLU(), Dropout(sizes.dropout))
        self.blocks = nn.Sequential(*(ResidualMLP(sizes.width, nn.SiLU, sizes.block_dropout) for _ in range(sizes.blocks)))
        self.to_maps = nn.Linear(sizes.width, int(np.prod(self.low)), bias=False)
        self.norm = nn.GroupNorm(1, sizes.maps)
        self.upsample = Upsampler(sizes.maps, sizes.channels, channels, sizes.doublings)
        self.repair = Repair(latent_shape, (channels, 1, 1))

    def forward(self, voxels: Tensor) -> Tensor:
        """Return the latents as trained, before :attr:`repair`.

        Parameters
        ----------
        voxels : float (B, n_voxels)

        Returns
        -------
        float (B, channels, height, width)
            Already times the autoencoder's scaling factor.
        """
        maps: Tensor = self.to_maps(self.blocks(self.stem(voxels)))
        latents: Tensor = self.upsample(self.norm(maps.view(-1, *self.low)))
        return latents


class SemanticExtractor(nn.Module):
    """Semantic voxels to CLIP image and text tokens: a shared trunk, two linear heads.

    Linear, LayerNorm, GELU, Dropout; residual MLP blocks; Linear to all image tokens and Linear to all text tokens. Read from MindBridge,
    which the wording fits; its adapter on the voxels, there to let subjects share a width, is left out because a model here has one subject.

    Parameters
    ----------
    n_voxels : int
    image_shape, text_shape : (int, int)
        Token count and width.
    sizes : SemanticSizes
    """

    def __init__(self, n_voxels: int, image_shape: tuple[int, int], text_shape: tuple[int, int], sizes: SemanticSizes) -> None:
        super().__init__()
        self.image_shape, self.text_shape = image_shape, text_shape
        self.stem = nn.Sequential(nn.Linear(n_voxels, sizes.width), nn.LayerNorm(sizes.width), nn.GELU(), Dropout(sizes.dropout))
        self.blocks = nn.Sequential(*(ResidualMLP(sizes.width, nn.GELU, sizes.block_dropout) for _ in range(sizes.blocks)))
        self.to_image = nn.Linear(sizes.width, int(np.prod(image_shape)))
        self.to_text = nn.Linear(sizes.width, int(np.prod(text_shape)))
        self.repair_image = Repair(image_shape, (image_shape[0], 1), normalise=True)
        self.repair_text = Repair(text_shape, (text_shape[0], 1), normalise=True)

    def forward(self, voxels: Tensor) -> tuple[Tensor, Tensor]:
        """Return image and text tokens as trained, before the repairs.

        Parameters
        ----------
        voxels : float (B, n_voxels)

        Returns
        -------
        image : float (B, n_image_tokens, width)
        text : float (B, n_text_tokens, width)
        """
        trunk = self.blocks(self.stem(voxels))
        return self.to_image(trunk).view(-1, *self.image_shape), self.to_text(trunk).view(-1, *self.text_shape)

    def repaired(self, voxels: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens with mean and spread restored; the image's first token of unit length, as the generator's own embeddings have it."""
        image, text = self(voxels)
        image = self.repair_image(image)
        return image / image[:, :1].norm(dim=-1, keepdim=True).clamp_min(1e-6), self.repair_text(text)


def structural_generator(manifest: Manifest) -> StructuralGenerator:
    """Return a Structural Generator of the manifest's sizes."""
    return StructuralGenerator(manifest.n_spatial, manifest.latent_shape, manifest.sizes()[0])


def semantic_extractor(manifest: Manifest) -> SemanticExtractor:
    """Return a Semantic Extractor of the manifest's sizes."""
    return SemanticExtractor(manifest.n_semantic, manifest.image_shape, manifest.text_shape, manifest.sizes()[1])


class Havir(nn.Module):
    """A subject's trained decoder.

    Parameters
    ----------
    manifest : Manifest
    spatial, semantic : bool (n_voxels,)
        Which columns of the responses each branch reads.
    """

    def __init__(self, manifest: Manifest, spatial: BoolArray, semantic: BoolArray) -> None:
        super().__init__()
        self.manifest = manifest
        self.spatial, self.semantic = spatial, semantic
        self.structural_generator = structural_generator(manifest)
        self.semantic_extractor = semantic_extractor(manifest)

    @classmethod
    def fresh(cls, manifest: Manifest, spatial: BoolArray, semantic: BoolArray, generator: torch.Generator) -> Havir:
        """Return an untrained decoder whose parameters are drawn from a CPU ``generator`` and from nowhere else."""
        with torch.device("meta"):
            havir = cls(manifest, spatial, semantic)
        havir.to_empty(device="cpu")
        initialise(havir, generator)
        return havir

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.structural_generator.to_maps.weight.device

    @torch.inference_mode()
    def decode(self, responses: FloatArray) -> Decoded:
        """Decode responses, as :meth:`Decoder.decode <havir_explorer.decode.decoders.Decoder.decode>`."""
        self.manifest.check_responses(responses)
        self.eval()
        spatial, semantic = (torch.from_numpy(responses[:, mask].astype(np.float32)).to(self.device) for mask in (self.spatial, self.semantic))
        latents = self.structural_generator.repair(self.structural_generator(spatial))
        image, text = self.semantic_extractor.repaired(semantic)
        return Decoded(latents.float().cpu().numpy(), image.float().cpu().numpy(), text.float().cpu().numpy())

    def contribution(self, branch: Branch) -> Contribution:
        """Return how much each voxel feeds a branch, as :meth:`Decoder.contribution <havir_explorer.decode.decoders.Decoder.contribution>`.

        Percentile, among the branch's voxels, of the L2 norm of the voxel's column in the first linear layer. HAVIR shows such maps without
        a readable method; its sibling paper speaks of interpretable adapter weights.
        """
        stem = of_branch(branch, self.structural_generator, self.semantic_extractor).stem
        sizes = stem.get_parameter("0.weight").detach().norm(dim=0).cpu().numpy()
        return percentiles(branch, sizes, of_branch(branch, self.spatial, self.semantic))

    def save(self, folder: Path) -> None:
        """Write it into a folder, as :meth:`Decoder.save <havir_explorer.decode.decoders.Decoder.save>`."""
        files.write(folder, Parts(self.manifest, self.spatial, self.semantic, dict(self.state_dict())))

    @staticmethod
    def load(folder: Path, *, device: str = "cpu") -> Havir:
        """Read a HAVIR back, in evaluation mode; arguments and errors as :func:`~havir_explorer.decode.decoders.load`."""
        parts = files.read(folder)
        parts.manifest.sizes()  # another kind of decoder is refused here
        for branch in files.PREFIXES:
            if branch not in parts.branches:
                again = f"havir train --subject {parts.manifest.subject} --branch {branch} --out {folder}"
                msg = f"the decoder in {folder} has no {branch} branch yet, and both are needed to decode; train it with: {again}"
                raise WeightsMissing(msg)
        with torch.device("meta"):
            havir = Havir(parts.manifest, parts.spatial, parts.semantic)
        try:
            havir.load_state_dict({name: value.float() for name, value in parts.tensors.items()}, assign=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            msg = f"the weights in {folder / files.WEIGHTS} do not fit the sizes in {files.MANIFEST} beside them ({reason}); {files.AGAIN}"
            raise WeightsInvalid(msg) from error
        return havir.to(device).eval()
