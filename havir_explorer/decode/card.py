"""The model card: what a decoder is, how it came about and what it is not for, in words beside its weights."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from havir_explorer.decode.files import MANIFEST, WEIGHTS, read_manifest, whole
from havir_explorer.decode.manifest import Manifest
from havir_explorer.errors import WeightsMissing

CARD = "card.md"
_UNKNOWN = "not recorded"
_Rows = Iterable[tuple[str, object]]


def write(folder: Path) -> Path:
    """Write the card of the decoder in ``folder`` beside its weights, whole or not at all.

    Parameters
    ----------
    folder : Path
        Holds the manifest and the weights.

    Returns
    -------
    Path
        The card.

    Raises
    ------
    WeightsMissing
        One of the two files is absent.
    WeightsInvalid
        The manifest cannot be read.
    OutputError
        The disk is full or the folder cannot be written.
    """
    manifest = read_manifest(folder)
    if not (folder / WEIGHTS).is_file():
        msg = f"a card needs the decoder's {WEIGHTS}, but {folder} has none; train it with: havir train"
        raise WeightsMissing(msg)
    with (folder / WEIGHTS).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    with whole(folder / CARD) as (part,):
        part.write_text(text(manifest, digest), encoding="utf-8")
    return folder / CARD


def versions() -> tuple[tuple[str, str], ...]:
    """Return names and versions of what a training runs on: the language, PyTorch and this package."""
    return ("python", platform.python_version()), ("torch", metadata.version("torch")), ("havir_explorer", metadata.version("havir_explorer"))


def text(manifest: Manifest, weights: str) -> str:
    """Return a card as Markdown.

    Parameters
    ----------
    manifest : Manifest
    weights : str
        SHA-256 hex digest of the weights' file.
    """
    m = manifest
    kind = "Linear" if m.kind == "linear" else "HAVIR"
    title = f"# {kind} decoder of {m.subject}, {m.dataset}\n\nVoxel responses to latents and to CLIP image and text tokens of a Versatile Diffusion.\n"
    parts = [title, _table("Data and voxels", _data(m)), _table("Shapes and sizes", _sizes(m)), _table("Training", _training(m))]
    if m.record.hyper_parameters:
        parts.append(_table("Hyper-parameters", m.record.hyper_parameters))
    files = (("weights, SHA-256", weights), ("voxels, SHA-256 of their indices", m.voxel_hash), ("generator's fingerprint", _fingerprint(m)))
    parts += [_table("Versions and hashes", [*m.record.versions, *files] if m.record.versions else [("versions", _UNKNOWN), *files]), _limits(m)]
    return "\n".join(parts)


def _data(m: Manifest) -> _Rows:
    return (
        ("subject", m.subject),
        ("data set", m.dataset),
        ("responses", m.convention),
        ("split", f"{m.choice.name}: {m.split}"),
        ("voxels", f"{m.n_voxels:,}"),
        ("voxels of the Structural Generator", f"{m.n_spatial:,}"),
        ("voxels of the Semantic Extractor", f"{m.n_semantic:,}"),
    )


def _sizes(m: Manifest) -> _Rows:
    return (
        ("latents", " x ".join(map(str, m.latent_shape))),
        ("image tokens", " x ".join(map(str, m.image_shape))),
        ("text tokens", " x ".join(map(str, m.text_shape))),
        *((f"Structural Generator, {_plain(name)}", value) for name, value in m.structural or ()),
        *((f"Semantic Extractor, {_plain(name)}", value) for name, value in m.semantic or ()),
        *((f"Ridge, {_plain(name)}", _words(value)) for name, value in m.ridge or ()),
    )


def _training(m: Manifest) -> _Rows:
    left_out = ("versions", "hyper_parameters", "run_", *(("steps", "held_out", "best_step") if m.kind == "linear" else ()))
    none = [name for name in ("started_from", "trunk_of") if not getattr(m.record, name)]  # most decoders: said by silence
    shown = ((name, value) for name, value in m.record if not name.startswith((*left_out, *none)))
    return ((_plain(name), _shown(value)) for name, value in shown)


def _limits(m: Manifest) -> str:
    reach = (
        "Both branches read the same voxels: a lesion can move layout and content alike, so this decoder is a control and shows no dissociation by itself."
        if m.choice.name == "all"
        else "The branches read different voxels: that a lesion in one leaves the other's output alone is so by construction, not a finding."
    )
    seen = (
        f"Scores on the {len(m.train_nsd_ids):,} pictures that the weights or their calibration have seen (`train_nsd_ids` in {MANIFEST}). Shared test "
        "pictures are left out in training; an evaluation refuses pictures that were seen, and single reconstructions of them are marked."
    )
    lines = (
        f"Other subjects, other voxels, or responses normalised otherwise: it is fitted to {m.subject} and is refused elsewhere.",
        seen,
        "Another autoencoder or CLIP than the one whose fingerprint it carries: the pictures would be noise.",
        reach,
        "Reading what somebody thinks or sees outside such an experiment, and decisions about a person: sharp pictures come from the generator's prior.",
        *(["Anything about a brain: the responses of this data set are simulated."] if m.dataset == "demo" else []),
        "Passing on beyond the terms of the data set that it was trained on.",
    )
    return "## Not for\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def _fingerprint(m: Manifest) -> str:
    return hashlib.sha256(repr(m.generator).encode()).hexdigest()[:16] if m.generator else _UNKNOWN


def _table(title: str, rows: _Rows) -> str:
    return f"## {title}\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows) + "\n"


def _words(value: object) -> object:
    """Numbers of latents, image tokens and text tokens on one line."""
    return ", ".join(f"{part:.3g}" for part in value) if isinstance(value, tuple) else value


def _shown(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.5g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else _UNKNOWN if value == "" else value


def _plain(name: str) -> str:
    return name.replace("_", " ")
