"""Where the parts of a Versatile Diffusion come from: a folder in the published layout, the hub's cache, or the shipped demo."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from havir_explorer import paths
from havir_explorer.errors import WeightsInvalid, WeightsMissing

DEMO = "demo"
PUBLISHED = "shi-labs/versatile-diffusion"
"""Hub id of the published checkpoint (Xu et al. 2023)."""
EXTRAS = "havir_extras.safetensors"
"""Encoded unconditional embeddings and the preview map, beside the parts."""
RECORD = "havir_record.json"
"""Checksums, and the command that made the folder."""
VARIANTS = ("", ".fp16")
"""What the names of weight files may carry before their ending."""


@dataclass(frozen=True)
class Part:
    """Names of one part's files.

    Parameters
    ----------
    config : str
        Its configuration; empty where another part's says it.
    safetensors, legacy : str
        Weight files' names without ending; empty where a part has no weights.
    use : str
        What it is needed for.
    """

    config: str
    safetensors: str = ""
    legacy: str = ""
    use: str = "every picture"

    def weight_files(self, variant: str | None) -> tuple[str, ...]:
        """Return the names its weights may have, the preferred first."""
        kinds = VARIANTS if variant is None else (f".{variant}",)
        return tuple(f"{stem}{kind}{end}" for kind in kinds for stem, end in ((self.safetensors, ".safetensors"), (self.legacy, ".bin")))


_DIFFUSERS, _TRANSFORMERS = ("diffusion_pytorch_model", "diffusion_pytorch_model"), ("model", "pytorch_model")
_IMAGES = "CLIP scores, training targets and the unconditional embeddings"
_TEXTS = "training targets and the unconditional embeddings"
PARTS = {
    "image_unet": Part("config.json", *_DIFFUSERS),
    "text_unet": Part("", *_DIFFUSERS),
    "vae": Part("config.json", *_DIFFUSERS),
    "scheduler": Part("scheduler_config.json"),
    "image_encoder": Part("config.json", *_TRANSFORMERS, use=_IMAGES),
    "image_feature_extractor": Part("preprocessor_config.json", use=_IMAGES),
    "text_encoder": Part("config.json", *_TRANSFORMERS, use=_TEXTS),
    "tokenizer": Part("tokenizer_config.json", use=_TEXTS),
}
DRAWING = ("image_unet", "text_unet", "vae", "scheduler")
"""Parts without which nothing can be drawn; the others make the CLIP towers."""


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Parameters
    ----------
    name : str
        As it was asked for.
    root : Path
        The folder of the parts.
    variant : str, optional
        Read only weight files with this in their names, e.g. ``fp16``; when left out, plain files are preferred.
    """

    name: str
    root: Path
    variant: str | None = None

    def __str__(self) -> str:
        return f"Versatile Diffusion at {self.root}"

    @property
    def remedy(self) -> str:
        """What brings a damaged or missing file back, as the end of a sentence."""
        if self.root == demo_folder():
            return "install the package again: pip install --force-reinstall havir_explorer"
        again = record(self.root).get("made_by")
        if self.name != str(self.root) and is_hub_id(self.name):
            fetch = f"havir weights fetch {self.name}"  # an uploaded folder may say how it was made elsewhere
            return f"mend it with: {again if isinstance(again, str) and again.startswith(fetch) else fetch}"
        if isinstance(again, str):
            return f"make it again with: {again}"
        fetch = f"havir weights fetch {PUBLISHED} --to {shlex.quote(str(self.root))}"
        return f"copy that file from the checkpoint the folder came from, or, for the published weights: {fetch}"

    def has(self, part: str) -> bool:
        """True when the part's folder holds its configuration or its weights."""
        about = PARTS[part]
        names = (*((about.config,) if about.config else ()), *(about.weight_files(self.variant) if about.safetensors else ()))
        return any((self.root / part / name).is_file() for name in names)

    def file(self, part: str, name: str) -> Path:
        """Return one file of a part.

        Raises
        ------
        WeightsMissing
            It is not there; names the part, the file, what is there instead and what mends it.
        """
        return self._first(part, (name,))

    def weights(self, part: str) -> Path:
        """Return a part's weight file.

        Raises
        ------
        WeightsMissing
            As :meth:`file`.
        """
        return self._first(part, PARTS[part].weight_files(self.variant))

    def config(self, part: str) -> dict[str, Any]:
        """Return a part's configuration.

        Raises
        ------
        WeightsMissing
            As :meth:`file`.
        WeightsInvalid
            It is not JSON, or not an object.
        """
        file = self.file(part, PARTS[part].config)
        try:
            return dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as fault:
            msg = f"part {part} of the {self}: {part}/{file.name} is not a JSON object ({fault}); {self.remedy}"
            raise WeightsInvalid(msg) from fault

    def _first(self, part: str, names: tuple[str, ...]) -> Path:
        folder = self.root / part
        for name in names:
            if (folder / name).is_file():
                return folder / name
        seen = sorted(_seen(path) for path in (folder if folder.is_dir() else self.root).iterdir() if not path.name.startswith("."))
        there = f"{folder.name if folder.is_dir() else 'the folder'} holds {', '.join(seen[:8]) or 'nothing'}"
        expected = " or ".join(f"{part}/{name}" for name in names[:2])
        msg = f"{self} lacks its part {part}: expected {expected}, but {there}; {self.remedy}"
        raise WeightsMissing(msg)


def demo_folder() -> Path:
    """Return the folder of the shipped small Versatile Diffusion."""
    return paths.shipped_weights() / "versatile-diffusion"


def is_hub_id(name: str) -> bool:
    """True for ``owner/name``, with ``@revision`` or without."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", name) is not None


def locate(asked: str | Path, variant: str | None = None) -> Source:
    """Find a checkpoint on this machine; nothing is downloaded.

    Parameters
    ----------
    asked : str or Path
        ``"demo"``, a folder, or a hub id ``owner/name``, optionally with ``@revision``: fetched by ``havir weights``, or in the hub's cache.
    variant : str, optional
        As in :class:`Source`.

    Raises
    ------
    WeightsMissing
        It is not there; says what downloads it, and which files to put where without a network.
    """
    name = str(asked)
    if name == DEMO:
        return Source(name, demo_folder(), variant)
    if Path(name).expanduser().is_dir():
        return Source(name, Path(name).expanduser(), variant)
    if not is_hub_id(name):
        msg = f"no Versatile Diffusion at {name}: the folder does not exist; give 'demo', a hub id such as {PUBLISHED}, or a folder with {files_to_copy()}"
        raise WeightsMissing(msg)
    snapshot = fetched_folder(name) if fetched_folder(name).is_dir() else _snapshot(name)
    if snapshot is None:
        msg = (
            f"no Versatile Diffusion for {name!r}: there is no such folder, it was not fetched, and the hub's cache at {constants.HF_HUB_CACHE} lacks it; "
            f"download it with havir weights fetch {name}, or, without a network, copy its files into a folder of yours and name that folder: {files_to_copy()}"
        )
        raise WeightsMissing(msg)
    return Source(name, snapshot, variant)


def fetched_folder(name: str) -> Path:
    """Return where ``havir weights fetch`` puts a hub id unless told otherwise."""
    return paths.cache_folder() / "weights" / name.replace("/", "--")


def files_to_copy() -> str:
    """Return which files a checkpoint folder needs, as part of a sentence."""
    names = ((part, name) for part, about in PARTS.items() for name in (about.config, about.safetensors and f"{about.safetensors}.safetensors"))
    return ", ".join([*(f"{part}/{name}" for part, name in names if name), "tokenizer/vocab.json", "tokenizer/merges.txt"])


def record(root: Path) -> dict[str, Any]:
    """Return what is recorded beside the parts; empty where nothing is or where it cannot be read."""
    try:
        return dict(json.loads((root / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _seen(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"{path.name} (a link to a file that is gone)"  # a hub's cache that was tidied by hand
    if re.search(r"-\d+-of-\d+\.", path.name):
        return f"{path.name} (a piece: save the part again in one file)"
    return path.name


def _snapshot(name: str) -> Path | None:
    """The hub cache's folder of an id's revision: ``models--owner--name/snapshots/<commit>``, where ``refs/<revision>`` names the commit."""
    repository, _, revision = name.partition("@")
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None
