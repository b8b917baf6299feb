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
        """Decode responses, each row for itself.

        Parameters
        ----------
        responses : float32 (B, n_voxels)
            All voxels of the data set, z-scored; each branch picks its own columns.

        Returns
        -------
        Decoded
            float32 arrays in the CPU's memory; the image's first token has unit length, as the generator's own embeddings have it.

        Raises
        ------
        RequestError
            Another number of voxels, or a value that is not finite.
        """

    def contribution(self, branch: Branch) -> Contribution:
        """Return how much each voxel feeds a branch, read from the weights; weight is not information: correlated voxels share it.

        Parameters
        ----------
        branch : {'structural', 'semantic'}

        Returns
        -------
        Contribution
            In [0, 1] (ties share their mean rank), NaN where the branch does not read the voxel.

        Raises
        ------
        RequestError
            Unknown branch.
        """

    def save(self, folder: Path) -> None:
        """Write float16 weights, both masks and the manifest into ``folder``, each file whole or not at all.

        Raises
        ------
        OutputError
            The disk is full or the folder cannot be written.
        """


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
        The folder or one of its files is absent, or HAVIR's lacks one of its branches.
    WeightsInvalid
        A file cannot be read, or the two do not fit together.
    """
    if read_manifest(folder).kind == "linear":
        return LinearDecoder.load(folder, device=device)
    return Havir.load(folder, device=device)
