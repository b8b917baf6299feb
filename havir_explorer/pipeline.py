"""START HERE. One request, one reconstruction: data → masks → decode → diffuse → measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from havir_explorer import masks, measure
from havir_explorer.data import open_dataset
from havir_explorer.data.dataset import Dataset
from havir_explorer.decode import decoders
from havir_explorer.decode.decoders import Decoder
from havir_explorer.diffuse import cost as costs
from havir_explorer.diffuse import device, source, weights
from havir_explorer.diffuse.fingerprint import fingerprint
from havir_explorer.diffuse.memory import enough
from havir_explorer.diffuse.model import VersatileDiffusion, resized, to_uint8
from havir_explorer.diffuse.paint import paint
from havir_explorer.diffuse.parts import Place
from havir_explorer.diffuse.sampler import Drawn, generate
from havir_explorer.errors import WeightsMissing
from havir_explorer.loaded import Loaded
from havir_explorer.paths import cache_folder, shipped_weights
from havir_explorer.records import FloatArray, IntArray, Reconstruction, Request, Score, Step, UInt8Array

LINEAR = "linear"
"""What a request names as its decoder for the linear baseline."""
OnStep = Callable[[Step], None]
DISTRACTORS = 100
"""At most so many of the shared stimuli are what a picture is told apart from: all thousand would take 0.8 GB at the published size."""
_Shared = tuple[IntArray, UInt8Array, FloatArray | None]
_LOADING = Lock()  # the app prepares in one thread while its worker runs in another
_GENERATORS: Loaded[VersatileDiffusion] = Loaded(2)
_DECODERS: Loaded[Decoder] = Loaded(8)
_SHARED: WeakKeyDictionary[VersatileDiffusion, dict[tuple[Dataset, str], _Shared]] = WeakKeyDictionary()


def run(request: Request, *, on_step: OnStep | None = None) -> Reconstruction:
    """Redraw what a subject saw from the measured response.

    Parameters
    ----------
    request : Request
        Subject, trial, mask and settings.
    on_step : callable, optional
        Called with a :class:`~havir_explorer.records.Step` at every stage and denoising step; raising (``Cancelled``) stops the run.

    Returns
    -------
    Reconstruction
        The same bytes for the same request on the same machine.

    Raises
    ------
    HavirError
        The request names something that does not exist, or data or weights are missing or do not fit.
    """
    clock = Clock(on_step or _ignore)
    with clock.stage("load"):
        responses = measured(open_dataset(request.dataset), request)
        dataset, decoder, generator = models(request)
    with clock.stage("decode"):
        decoded = decoder.decode(masked(dataset, request, responses))
        structure = paint(generator, decoded.latents)[0]
    with clock.stage("diffuse"):
        drawn = generate(generator, decoded, [request.settings], on_step=lambda done, count, clean: clock.step(done, count, generator.preview(clean[0])))
        picture = paint(generator, drawn.latents)[0] if drawn.steps_run else structure
    with clock.stage("measure"):
        stimulus, (scores,) = scored(dataset, generator, request, picture[None])
    return finished(request, dataset, decoder, Pictures(picture, structure, stimulus), scores, tuple(clock.seconds), drawn)


class Pictures(NamedTuple):
    """What was redrawn, its structure and what was seen: uint8 (H, W, 3) each, as in :class:`~havir_explorer.records.Reconstruction`."""

    picture: UInt8Array
    structure: UInt8Array
    stimulus: UInt8Array


def masked(dataset: Dataset, request: Request, responses: FloatArray) -> FloatArray:
    """Return the responses, float32 (1, n_voxels), under the request's mask."""
    return masks.apply(responses, request.mask, dataset.atlas(request.subject), other=_filling(dataset, request))


def scored(dataset: Dataset, generator: VersatileDiffusion, request: Request, pictures: UInt8Array) -> tuple[UInt8Array, list[tuple[Score, ...]]]:
    """Return the request's stimulus at the pictures' size, and the scores of pictures (n, H, W, 3) against it."""
    nsd_id = shown(dataset, request)
    stimulus = at_side(dataset.stimuli(np.array([nsd_id])), generator.side)[0]
    with enough(generator.device, len(pictures)):  # the CLIP image tower is loaded here when it was not yet
        others, features = distractors(dataset, request.subject, generator, nsd_id)
        return stimulus, measure.score(pictures, stimulus, generator.image_features if generator.sees() else None, others, other_features=features)


def finished(
    request: Request,
    dataset: Dataset,
    decoder: Decoder,
    pictures: Pictures,
    scores: tuple[Score, ...],
    seconds: tuple[tuple[str, float], ...],
    drawn: Drawn,
) -> Reconstruction:
    """Return the record of what was done."""
    return Reconstruction(
        request=request,
        **pictures._asdict(),
        kind="generated" if drawn.steps_run else "decoded",
        synthetic=dataset.synthetic,
        trained_on=decoder.manifest.saw(shown(dataset, request)),
        scores=scores,
        seconds=seconds,
        steps_run=drawn.steps_run,
        signal=drawn.signal,
    )


def shown(dataset: Dataset, request: Request) -> int:
    """Return the NSD id of the picture that a request's trial showed."""
    return int(dataset.trials(request.subject).loc[request.trial, "nsd_id"])


def models(request: Request) -> tuple[Dataset, Decoder, VersatileDiffusion]:
    """Return the data set, the subject's decoder (checked against it) and the generator of a request.

    Each is loaded once a process, and anew when its files have been replaced; runs that have begun keep the copy they have.
    """
    dataset = open_dataset(request.dataset)
    dataset.trials(request.subject)  # for a subject there is none of, the reader's own sentence
    with _LOADING:
        decoder = _decoder(decoder_folder(dataset, request.subject, request.decoder))
        decoder.manifest.check(dataset, request.subject)
        generator = _generator(request.generator)
        generator.sees()  # half a CLIP tower is said now, not after the picture
        decoder.manifest.check_generator(fingerprint(generator), request.generator)
        return dataset, decoder, generator


def cost(request: Request) -> costs.Cost:
    """Return what drawing a request will cost on this machine, without loading anything.

    Raises
    ------
    HavirError
        The generator is absent or damaged, or the device asked for is not there.
    """
    return costs.estimate(source.locate(request.generator), request.settings, Place(device.device(), device.dtype()))


def decoder_folder(dataset: Dataset, subject: str, named: str = "") -> Path:
    """Return where the decoder lives that a request names.

    Parameters
    ----------
    dataset : Dataset
    subject : str
    named : str
        ``""`` is the subject's HAVIR and ``"linear"`` its linear decoder, the baseline: those of the teaching world are shipped, others lie where
        ``havir train`` puts them, in the cache folder. Anything else is a folder.
    """
    if named not in ("", LINEAR):
        return Path(named)
    method = named or "havir"
    return (shipped_weights() / method if dataset.synthetic else cache_folder() / method / dataset.name) / subject


def measured(dataset: Dataset, request: Request) -> FloatArray:
    """Return the z-scored response to decode, float32 (1, n_voxels): one trial, or the mean over all presentations of its image."""
    return dataset.responses(request.subject, presentations(dataset, request)).mean(axis=0, keepdims=True)


def presentations(dataset: Dataset, request: Request) -> IntArray:
    """Return the trials a request reads: its own, or all that showed the same image."""
    table = dataset.trials(request.subject)
    if request.repeats == "single" or request.trial not in table.index:
        return np.array([request.trial], dtype=np.int64)  # a trial there is none of: the reader says which there are
    return table.index[table["nsd_id"] == table.loc[request.trial, "nsd_id"]].to_numpy(dtype=np.int64)


def at_side(pictures: UInt8Array, side: int) -> UInt8Array:
    """Return stimuli at the generator's side length, uint8 (n, side, side, 3)."""
    return to_uint8(resized(pictures, side))


def distractors(dataset: Dataset, subject: str, generator: VersatileDiffusion, nsd_id: int) -> tuple[UInt8Array, FloatArray | None]:
    """Return the other shared stimuli the subject saw, uint8 (n, side, side, 3), and their features: what two-way identification compares with.

    The features are None where the generator has no CLIP image tower.
    """
    known = _SHARED.setdefault(generator, {})
    if (dataset, subject) not in known:
        known[dataset, subject] = _shared_stimuli(dataset, subject, generator)
    ids, pictures, features = known[dataset, subject]
    others = ids != nsd_id
    return pictures[others], None if features is None else features[others]


def _shared_stimuli(dataset: Dataset, subject: str, generator: VersatileDiffusion) -> _Shared:
    table = dataset.trials(subject)
    every = np.unique(table.loc[table["shared"], "nsd_id"].to_numpy(dtype=np.int64))
    ids = every[np.linspace(0, len(every) - 1, min(len(every), DISTRACTORS)).round().astype(int)]
    pictures = np.concatenate([at_side(dataset.stimuli(some), generator.side) for some in np.array_split(ids, max(1, len(ids) // 10))])
    return ids, pictures, generator.image_features(pictures) if generator.sees() else None


def _decoder(folder: Path) -> Decoder:
    if not folder.is_dir():
        msg = f"no trained decoder at {folder}; train one with `havir train` (`--method linear` for the baseline) or name its folder as the decoder"
        raise WeightsMissing(msg)
    return _DECODERS.get(str(folder), folder, lambda: decoders.load(folder))


def _generator(name: str) -> VersatileDiffusion:
    place, dtype = device.device(), device.dtype()
    found = source.locate(name)
    return _GENERATORS.get(f"{name} {place} {dtype}", found.root, lambda: weights.load(name, device=place, dtype=dtype))


def _filling(dataset: Dataset, request: Request) -> FloatArray | None:
    if request.mask.fill != "trial":
        return None
    other = Request(dataset=request.dataset, subject=request.subject, trial=request.mask.fill_trial, repeats=request.repeats)
    return measured(dataset, other)


def _ignore(_step: Step) -> None:
    pass


class Clock:
    """Announces stages and steps, and keeps the wall time of each stage."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step
        self.seconds: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and keep its wall time."""
        self._on_step(Step(name))
        began = time.perf_counter()
        yield
        self.seconds.append((name, time.perf_counter() - began))

    def step(self, done: int, count: int, preview: UInt8Array) -> None:
        """Announce a denoising step."""
        self._on_step(Step("diffuse", done, count, preview))
