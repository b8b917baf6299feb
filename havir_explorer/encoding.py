"""What training is towards: a data set's pictures and captions, encoded by a generator on its device, in a store that is made once for all subjects."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from havir_explorer import paths
from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import target_making
from havir_explorer.decode.manifest import alike
from havir_explorer.decode.target_making import Plan, Progress, difference
from havir_explorer.decode.target_store import MANIFEST, Manifest, TargetStore, read_manifest
from havir_explorer.decode.targets import CaptionTarget, ImageSource, Rows, Shapes, encode
from havir_explorer.diffuse import device, weights
from havir_explorer.diffuse.fingerprint import fingerprint
from havir_explorer.diffuse.memory import Notice, enough, fitting, in_batches
from havir_explorer.diffuse.model import VersatileDiffusion
from havir_explorer.diffuse.paint import paint
from havir_explorer.diffuse.sampler import generate
from havir_explorer.errors import DataInvalid, DeviceOutOfMemory
from havir_explorer.records import Decoded, FloatArray, IntArray, Settings, UInt8Array

BATCH = 8
"""Pictures encoded together, or the largest power of two below that fits. It is small, so that it is the same on most machines: how many are
encoded together changes the last bits of the targets."""
DRAWING = Settings(strength=1.0, mix=1.0)
"""How a picture is drawn from its text target alone; its seed is the nsd_id."""
_QUICK = 2.0
"""Seconds below which one picture tells little about many: it also pays for what happens once."""


@dataclass(frozen=True, eq=False)
class Work:
    """What encoding will take.

    Parameters
    ----------
    plan : Plan
    encode : DeviceEncoder
    seconds : float
        Foretold from encoding a few of the pictures; 0 when nothing is left to encode.
    """

    plan: Plan
    encode: DeviceEncoder
    seconds: float

    def __str__(self) -> str:
        made, manifest = self.plan, self.plan.manifest
        kind = f"targets of {made.wanted:,} pictures of {manifest.dataset} (text: {manifest.caption_target} caption, images: {manifest.image_source})"
        if not made.todo:
            return f"{kind}: all are in {made.folder}"
        mended = f", {len(made.damaged)} files of them damaged or outdated" if made.damaged else ""
        disk = f"writes {_size(made.bytes_to_write)} to {made.folder} ({_size(made.bytes_free)} free)"
        return f"{kind}: {len(made.pictures):,} to encode{mended}\n{disk}, about {_duration(self.seconds)} on {self.encode.model.device}"


class DeviceEncoder:
    """Encodes pictures and captions with a generator, as many at once as its device holds, and fewer from then on when memory runs out.

    Parameters
    ----------
    dataset : Dataset
    model : VersatileDiffusion
        With its denoiser where ``images`` is ``synthesised``.
    captions : {'mean', 'first'}
    images : {'stimulus', 'synthesised'}
    on_notice : callable, optional
        Told in a sentence when memory ran out.
    """

    def __init__(self, dataset: Dataset, model: VersatileDiffusion, captions: CaptionTarget, images: ImageSource, on_notice: Notice | None = None) -> None:
        self.model = model
        self._dataset, self._captions, self._images, self._on_notice = dataset, captions, images, on_notice
        self._batch = 0

    def __call__(self, nsd_ids: IntArray) -> Iterator[tuple[range, Rows]]:
        """Encode, and yield which places of ``nsd_ids`` are done with their targets, float32.

        Raises
        ------
        DeviceOutOfMemory
            Not even one picture fits.
        DataMissing, DataInvalid
            A picture is not at hand.
        WeightsMissing
            The generator has no CLIP towers.
        """
        self._batch = self._batch or 1 << (fitting(self.model, BATCH).bit_length() - 1)
        return in_batches(len(nsd_ids), self._batch, lambda places: self._some(nsd_ids[places.start : places.stop]), self._on_notice)

    def seconds(self, nsd_ids: IntArray) -> float:
        """Return the seconds that encoding all of these should take, from encoding the first of them."""
        if not len(nsd_ids):
            return 0.0
        each = self._each(nsd_ids[:1])
        return len(nsd_ids) * (each if each > _QUICK else self._each(nsd_ids[:BATCH]))

    def _each(self, nsd_ids: IntArray) -> float:
        self.model.clip("image_encoder"), self.model.clip("text_encoder")  # their weights are read now, which happens once
        began = time.perf_counter()
        for _ in self(nsd_ids):
            pass
        return (time.perf_counter() - began) / len(nsd_ids)

    def _some(self, nsd_ids: IntArray) -> Rows:
        draw = self._drawn if self._images == "synthesised" else None
        try:
            with enough(self.model.device, len(nsd_ids)):
                return encode(self._dataset, nsd_ids, self.model, captions=self._captions, draw=draw)
        except DeviceOutOfMemory:
            self._batch = max(1, len(nsd_ids) // 2)  # for the pictures of later shards too
            raise

    def _drawn(self, texts: FloatArray, nsd_ids: IntArray) -> UInt8Array:
        blank = np.zeros((len(nsd_ids), *self.model.latent_shape), np.float32)
        ignored = np.zeros((len(nsd_ids), *self.model.empty_image.shape[1:]), np.float32)
        settings = [replace(DRAWING, seed=int(nsd_id)) for nsd_id in nsd_ids]
        return paint(self.model, generate(self.model, Decoded(blank, ignored, texts), settings).latents)


def prepare(
    dataset: Dataset,
    nsd_ids: IntArray,
    generator: str,
    *,
    captions: CaptionTarget | None = None,
    images: ImageSource = "stimulus",
    folder: Path | None = None,
    progress: Progress | None = None,
    on_notice: Notice | None = None,
) -> Work:
    """Load the generator, look at the store that is there, and foretell what the rest will take.

    Parameters
    ----------
    dataset : Dataset
    nsd_ids : int64 (n,)
        Pictures whose targets are needed.
    generator : str
        Folder or cached hub id of a Versatile Diffusion, or ``demo``.
    captions : {'mean', 'first'}, optional
        Left out, the mean over a picture's captions, as in Brain-Diffuser; in the teaching world the first, because its small generator was
        trained on single ones.
    images : {'stimulus', 'synthesised'}
    folder : Path, optional
        Of the store; by default under the cache folder, by data set, generator and rule.
    progress : callable, optional
        Called while checksums are compared.
    on_notice : callable, optional
        Told in a sentence when memory ran out.

    Raises
    ------
    RequestError
        The folder's store is of another generator, rule or data set.
    DataMissing, DataInvalid
        A picture has no caption or is not at hand; the store's manifest is damaged.
    WeightsMissing, WeightsInvalid
        The generator is incomplete or damaged.
    OutputError
        The folder cannot be written, or has no room.
    """
    model = weights.load(generator, device=device.device(), dtype=device.dtype(), denoiser=images == "synthesised")
    rule: CaptionTarget = captions or ("first" if dataset.synthetic else "mean")
    blank = _blank(dataset, model, generator, rule, images)
    made = target_making.plan(dataset, nsd_ids, folder or default_folder(dataset, blank), blank, progress=progress)
    encoder = DeviceEncoder(dataset, model, rule, images, on_notice)
    return Work(made, encoder, encoder.seconds(made.pictures))


def make(work: Work, *, progress: Callable[[float, str], None] | None = None) -> TargetStore:
    """Encode what is left, and open the store; parameters and errors as :func:`target_making.make`."""
    return target_making.make(work.plan, work.encode, progress=progress)


def default_folder(dataset: Dataset, blank: Manifest) -> Path:
    """Return where a store of this kind lies under the cache folder, or would lie."""
    shelf = _shelf(dataset)
    for file in sorted(shelf.glob(f"*/{MANIFEST}")):
        with suppress(DataInvalid):  # a damaged store is not what is looked for
            found = read_manifest(file.parent)
            if found is not None and not difference(found, blank):
                return file.parent
    return shelf / f"{_short(str(blank.generator))}-{blank.caption_target}-{blank.image_source}"


def stored_images(dataset: Dataset, model: VersatileDiffusion, nsd_ids: IntArray) -> TargetStore | None:
    """Return a store under the cache folder that holds the image tokens of all these pictures as the model's CLIP gives them; None where there is none."""
    for file in sorted(_shelf(dataset).glob(f"*/{MANIFEST}")):
        with suppress(DataInvalid):
            found = read_manifest(file.parent)
            whole = found is not None and found.image_source == "stimulus" and bool(np.isin(nsd_ids, found.nsd_ids).all())
            if found is not None and whole and found.dataset == dataset.name and alike(found.generator, fingerprint(model)):
                return TargetStore(file.parent, found)
    return None


def _shelf(dataset: Dataset) -> Path:
    return paths.cache_folder() / "targets" / f"{dataset.name}-{_short(str(dataset.root.resolve()))}"


def _blank(dataset: Dataset, model: VersatileDiffusion, generator: str, captions: CaptionTarget, images: ImageSource) -> Manifest:
    tokens = (tuple(int(size) for size in empty.shape[1:]) for empty in (model.empty_image, model.empty_text))
    drawn = f"{DRAWING.steps} {DRAWING.scheduler} steps from the text target alone, guidance {DRAWING.guidance}, seed nsd_id"
    return Manifest(
        dataset=dataset.name,
        generator=fingerprint(model),
        generator_name=generator,
        caption_target=captions,
        image_source=images,
        drawing=drawn if images == "synthesised" else "",
        shapes=Shapes(model.latent_shape, *tokens),
    )


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{max(seconds, 1):.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
