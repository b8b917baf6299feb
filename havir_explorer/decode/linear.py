"""A linear decoder: ridge regression from spatial voxels to latents and from semantic voxels to image and text tokens, the field's baseline.

What is regressed are the principal components of each of the three targets, because they are uncorrelated: every component gets a
regularisation of its own, and those that cross-validation cannot predict are left out. Predictions are too narrow, as every regression's
are; as in Brain-Diffuser each feature is brought back to its mean and spread over the training pictures, but by what cross-validation
predicted for these rather than by the test pictures (method: Ozcelik & VanRullen 2023, Scientific Reports 13:15666).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from havir_explorer.decode import files
from havir_explorer.decode.contribution import of_branch, percentiles
from havir_explorer.decode.files import Parts
from havir_explorer.decode.manifest import Manifest
from havir_explorer.errors import WeightsInvalid
from havir_explorer.records import BoolArray, Branch, Contribution, Decoded, FloatArray

HEADS = ("latents", "image", "text")
_FIELDS = ("weights", "offset", "basis", "mean", "gain")


@dataclass(frozen=True, eq=False)
class Head:
    """Voxels to one target, by way of its components.

    Parameters
    ----------
    weights : float (n_voxels, r)
        Of each component, which so predicted has a standard deviation of about 1; a voxel's mean over the training pictures is in ``offset``.
    offset : float (r,)
    basis : float (r, n_features)
        Orthogonal rows: what a component adds to the target.
    mean, gain : float (n_features,)
        Mean over the training pictures, and what restores the spread.
    """

    weights: Tensor
    offset: Tensor
    basis: Tensor
    mean: Tensor
    gain: Tensor

    def __call__(self, voxels: Tensor) -> Tensor:
        """Return the target, float (B, n_features), of responses (B, n_voxels)."""
        return self.mean + self.gain * ((voxels @ self.weights + self.offset) @ self.basis)

    def power(self) -> Tensor:
        """Return each voxel's squared weights summed over all features before the gain, float (n_voxels,)."""
        return (self.weights * self.basis.norm(dim=1)).square().sum(1)

    def to(self, device: str) -> Head:
        """Return it on a device as float32."""
        return Head(*(getattr(self, name).to(device, torch.float32) for name in _FIELDS))

    def fits(self, voxels: int, features: int) -> bool:
        """Whether the sizes fit each other and these."""
        r = self.weights.shape[-1]
        wanted = ((voxels, r), (r,), (r, features), (features,), (features,))
        return all(getattr(self, name).shape == shape for name, shape in zip(_FIELDS, wanted, strict=True))


class LinearDecoder:
    """A subject's linear decoder.

    Parameters
    ----------
    manifest : Manifest
        Of kind ``"linear"``.
    spatial, semantic : bool (n_voxels,)
        Which columns of the responses each branch reads.
    latents, image, text : Head
    """

    def __init__(self, manifest: Manifest, spatial: BoolArray, semantic: BoolArray, heads: tuple[Head, Head, Head]) -> None:
        self.manifest = manifest
        self.spatial, self.semantic = spatial, semantic
        self.latents, self.image, self.text = heads

    @torch.inference_mode()
    def decode(self, responses: FloatArray) -> Decoded:
        """Decode responses, as :meth:`Decoder.decode <havir_explorer.decode.decoders.Decoder.decode>`."""
        self.manifest.check_responses(responses)
        device = self.latents.mean.device
        spatial, semantic = (torch.from_numpy(responses[:, mask].astype(np.float32)).to(device) for mask in (self.spatial, self.semantic))
        shapes = (self.manifest.latent_shape, self.manifest.image_shape, self.manifest.text_shape)
        pairs = ((self.latents, spatial), (self.image, semantic), (self.text, semantic))
        latents, image, text = (head(voxels).view(-1, *shape) for (head, voxels), shape in zip(pairs, shapes, strict=True))
        image = image / image[:, :1].norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return Decoded(latents.cpu().numpy(), image.cpu().numpy(), text.cpu().numpy())

    def contribution(self, branch: Branch) -> Contribution:
        """Return how much each voxel feeds a branch, as :meth:`Decoder.contribution <havir_explorer.decode.decoders.Decoder.contribution>`.

        Percentile, among the branch's voxels, of the L2 norm of the voxel's weights over all latents, or over all image and text tokens.
        """
        heads = of_branch(branch, (self.latents,), (self.image, self.text))
        sizes = torch.stack([head.power() for head in heads]).sum(0).cpu().numpy()
        return percentiles(branch, sizes, of_branch(branch, self.spatial, self.semantic))

    def save(self, folder: Path) -> None:
        """Write it into a folder, as :meth:`Decoder.save <havir_explorer.decode.decoders.Decoder.save>`."""
        heads = zip(HEADS, (self.latents, self.image, self.text), strict=True)
        tensors = {f"{name}.{field}": getattr(head, field) for name, head in heads for field in _FIELDS}
        files.write(folder, Parts(self.manifest, self.spatial, self.semantic, tensors))

    @staticmethod
    def load(folder: Path, *, device: str = "cpu") -> LinearDecoder:
        """Read a linear decoder back; arguments and errors as :func:`~havir_explorer.decode.decoders.load`."""
        found = files.read(folder)
        manifest = found.manifest
        wanted = zip(
            HEADS,
            (manifest.n_spatial, manifest.n_semantic, manifest.n_semantic),
            (manifest.latent_shape, manifest.image_shape, manifest.text_shape),
            strict=True,
        )
        latents, image, text = (_head(found.tensors, name, voxels, int(np.prod(shape)), folder).to(device) for name, voxels, shape in wanted)
        return LinearDecoder(manifest, found.spatial, found.semantic, (latents, image, text))


def _head(tensors: dict[str, Tensor], name: str, voxels: int, features: int, folder: Path) -> Head:
    found = [tensors.get(f"{name}.{field}", torch.empty(0, 0, 0)) for field in _FIELDS]
    head = Head(*found)
    if not head.fits(voxels, features):
        sizes = f"{voxels} voxels and {features} features"
        msg = f"the weights of {name} in {folder / files.WEIGHTS} do not fit the {sizes} of {files.MANIFEST} beside them; {files.AGAIN} --method linear"
        raise WeightsInvalid(msg)
    return head
