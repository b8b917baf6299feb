"""Decoders of every kind, by one name: a method is a class that can do this, read back by the kind its manifest names."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from havir_explorer.decode.files import read_manifest
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.linear import LinearDecoder
from havir_explorer.decode.manifest import Manifest
from havir_explorer.records import BoolArray, Branch, Contribution, Decoded, FloatArray


class Decoder(Protocol):
    """A subject's trained way from voxels to what the generator reads.

    Attributes
    ----------
    manifest : Manifest
    spatial, semantic : bool (n_voxels,)
        Which columns of the responses reach the latents, and which the tokens.
    """

    manifest: Manifest
    spatial: BoolArray
    semantic: BoolArray

    def decode(self, responses: FloatArray) -> Decoded:
        """Decode responses to all the voxels of the data set, float32 (B, n_voxels), z-scored; each row for itself.

        Raises
        ------
        RequestError
            Another number of voxels, or a value that is not finite.
        """

    def contribution(self, branch: Branch) -> Contribution:
        """Return how much each voxel feeds a branch: in [0, 1], NaN where the branch does not read the voxel."""

    def save(self, folder: Path) -> None:
        """Write it into a folder, whole or not at all."""


def load(folder: Path, *, device: str = "cpu") -> Decoder:
    """Read a decoder of whichever kind back.

    Parameters
    ----------
    folder : Path
        Holds ``manifest.json`` and ``model.safetensors``.
    device : str
        Where the weights go, as float32.

    Raises
    ------
    WeightsMissing
        The folder or one of its files is absent.
    WeightsInvalid
        A file cannot be read, or the two do not fit together.
    """
    if read_manifest(folder).kind == "linear":
        return LinearDecoder.load(folder, device=device)
    return Havir.load(folder, device=device)
