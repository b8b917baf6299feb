"""A decoder's two files: weights with masks, and the manifest; each whole or absent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydantic
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from havir_explorer.decode.manifest import Manifest
from havir_explorer.errors import OutputError, WeightsInvalid, WeightsMissing
from havir_explorer.records import BoolArray, Branch

WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"
AGAIN = "train again with: havir train"
PREFIXES: Mapping[Branch, str] = {"structural": "structural_generator.", "semantic": "semantic_extractor."}
"""What the names of a branch's tensors begin with."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a decoder's folder holds: one branch or both.

    Parameters
    ----------
    manifest : Manifest
    spatial, semantic : bool (n_voxels,)
        Which columns of the responses each branch reads.
    tensors : dict of str to Tensor
        Parameters and buffers by the names they have in a decoder.
    """

    manifest: Manifest
    spatial: BoolArray
    semantic: BoolArray
    tensors: dict[str, Tensor]

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches that are there."""
        return tuple(branch for branch, prefix in PREFIXES.items() if any(name.startswith(prefix) for name in self.tensors))


def write(folder: Path, parts: Parts) -> None:
    """Write float16 weights, both masks and the manifest into ``folder``, each file whole or not at all.

    Raises
    ------
    OutputError
        The disk is full or the folder cannot be written.
    """
    tensors = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in parts.tensors.items()}
    masks = {"mask.spatial": parts.spatial, "mask.semantic": parts.semantic}
    tensors |= {name: torch.from_numpy(mask.astype(np.uint8)) for name, mask in masks.items()}
    with whole(folder / WEIGHTS, folder / MANIFEST) as (weights, manifest):
        save_file(tensors, weights)
        manifest.write_text(parts.manifest.model_dump_json(), encoding="utf-8")


def read(folder: Path) -> Parts:
    """Read what a decoder's folder holds, one branch or both; weights as float16.

    Raises
    ------
    WeightsMissing
        The folder or one of its files is absent.
    WeightsInvalid
        A file cannot be read, or the two do not fit together.
    """
    manifest = read_manifest(folder)
    _require(folder, WEIGHTS)
    tensors = _read_weights(folder / WEIGHTS)
    spatial, semantic = (_mask(tensors, name, manifest, folder) for name in ("spatial", "semantic"))
    return Parts(manifest, spatial, semantic, tensors)


def read_manifest(folder: Path) -> Manifest:
    """Read what a decoder's folder says of it, without its weights.

    Raises
    ------
    WeightsMissing
        The folder or its manifest is absent.
    WeightsInvalid
        The file is no manifest.
    """
    _require(folder, MANIFEST)
    file = folder / MANIFEST
    try:
        return Manifest.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, pydantic.ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else error
        msg = f"{file} is not the manifest of a decoder ({reason}); {AGAIN}"
        raise WeightsInvalid(msg) from error


@contextmanager
def whole(*files: Path) -> Iterator[tuple[Path, ...]]:
    """Yield temporary names for files of one folder; afterwards they get their own names, or after a failure none is left.

    Raises
    ------
    OutputError
        What is done inside cannot write: safetensors and torch have errors of their own for a full disk.
    """
    parts = tuple(file.with_name(f"{file.name}.part") for file in files)
    try:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        yield parts
        for part, file in zip(parts, files, strict=True):
            part.replace(file)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        for part in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:200]
        msg = f"cannot write {files[0].name} in {files[0].parent}: the disk is full or it is not allowed there ({reason}); make room or choose another folder"
        raise OutputError(msg) from error


def _require(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        msg = f"the decoder in {folder} lacks {name}; copy the whole folder, or train it again with: havir train"
        raise WeightsMissing(msg)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (safetensors.SafetensorError, ValueError) as error:
        msg = f"the decoder's weights in {file} cannot be read ({error}); the file is truncated or not safetensors: copy it anew, or {AGAIN}"
        raise WeightsInvalid(msg) from error


def _mask(tensors: dict[str, Tensor], name: str, manifest: Manifest, folder: Path) -> BoolArray:
    count = {"spatial": manifest.n_spatial, "semantic": manifest.n_semantic}[name]
    found = tensors.pop(f"mask.{name}", None)
    if found is None or found.shape != (manifest.n_voxels,) or int(found.bool().sum()) != count:
        wanted = f"{count} of {manifest.n_voxels} voxels"
        msg = f"the {name} mask in {folder / WEIGHTS} does not choose {wanted} as {MANIFEST} says; the files are of two decoders: {AGAIN}"
        raise WeightsInvalid(msg)
    mask: BoolArray = found.bool().numpy()
    return mask
