"""The values that pass between rooms: frozen records with shapes, units and ranges in one place."""

from __future__ import annotations

import hashlib
import json
import math
import operator
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from havir_explorer.errors import MaskError, RequestError, nearest

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Branch = Literal["structural", "semantic"]
Fill = Literal["mean", "trial", "noise"]
Repeats = Literal["mean", "single"]
Scheduler = Literal["karras", "ddim", "unipc", "dpmsolver++"]
Convention = Literal["havir", "brain-diffuser", "mindeye"]
Kind = Literal["measured", "decoded", "generated", "synthetic", "retrieved"]

SCORES_VERSION = 1
"""Raised whenever a change alters scores or pictures; part of every request's key."""


def _whole(name: str, value: object, low: int, high: float = math.inf) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        msg = f"{name} must be a whole number; got {value!r}"
        raise RequestError(msg) from None
    return int(_real(name, number, low, high))


def _real(name: str, value: object, low: float, high: float) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        msg = f"{name} must be a number; got {value!r}"
        raise RequestError(msg) from None
    if isinstance(value, str) or not low <= number <= high:
        allowed = f"lie in [{low}, {high}]" if high < math.inf else f"be {low} or more"
        msg = f"{name} must {allowed}; got {value!r}"
        raise RequestError(msg)
    return number


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        msg = f"{name} must be one of {', '.join(known)}; got {value!r}; {nearest(str(value), known, 1)}"
        raise RequestError(msg)


@dataclass(frozen=True)
class Settings:
    """How a picture is drawn from decoded conditions.

    Parameters
    ----------
    seed : int
        Of the picture's own noise generator, 0 to 2**32 - 1.
    steps : int
        Scheduler steps N for the full schedule, 1 to 1000; ``int(N * strength)`` of them run.
    strength : float
        In [0, 1]: 0 returns the decoded latents, 1 starts from pure noise and ignores them.
    guidance : float
        Classifier-free guidance scale, 1 (off) to 30.
    mix : float
        Text share in [0, 1] ("text-to-image strength"): 0 image embedding only, 1 text embedding only.
    scheduler : {'karras', 'ddim', 'unipc', 'dpmsolver++'}
        Which of diffusers' solvers takes the steps. ``karras`` is DPM-Solver++ on the noise levels of Karras et al. 2022 (arXiv 2206.00364):
        140 steps at most, of which 20 come as near to the exact picture as 50 of ``ddim``, which adds no noise of its own (eta 0).
    guidance_start, guidance_stop : float
        Fractions of the N steps in [0, 1]: step i, counted from 0 over the full schedule, is guided when start <= i / N < stop; the others run
        the conditional prediction alone, at half the cost (Kynkäänniemi et al. 2024, arXiv 2404.07724).
    convention : {'havir', 'brain-diffuser', 'mindeye'}
        Whose habits fill in what the numbers leave open: to which time the latents are noised, what stands for "no condition"
        (:data:`havir_explorer.diffuse.conventions.CONVENTIONS`).
    """

    seed: int = 0
    steps: int = 20
    strength: float = 0.75
    guidance: float = 3.0
    mix: float = 0.4
    scheduler: Scheduler = "karras"
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    convention: Convention = "havir"

    def __post_init__(self) -> None:
        for name, low, high in (("seed", 0, 2**32 - 1), ("steps", 1, 1000)):
            object.__setattr__(self, name, _whole(name, getattr(self, name), low, high))
        for name, low, high in (("strength", 0, 1), ("guidance", 1, 30), ("mix", 0, 1), ("guidance_start", 0, 1), ("guidance_stop", 0, 1)):
            object.__setattr__(self, name, _real(name, getattr(self, name), low, high))
        _one_of("scheduler", self.scheduler, get_args(Scheduler))
        _one_of("convention", self.convention, get_args(Convention))
        if self.guidance_start > self.guidance_stop:
            msg = f"guidance_start must not lie after guidance_stop; got {self.guidance_start} and {self.guidance_stop}"
            raise RequestError(msg)


@dataclass(frozen=True)
class Mask:
    """What is done to the voxels before they are decoded.

    Names are ROI names of the subject's atlas (``FFA-1``, ``V1`` for V1v + V1d, ``floc-faces`` for a whole file), optionally of one
    hemisphere (``rh.V1``).

    Parameters
    ----------
    mute : tuple of str
        ROIs whose voxels are replaced by ``fill`` (a lesion).
    keep : tuple of str
        When not empty, every voxel outside these ROIs is replaced by ``fill`` (keep-only; "solo").
    gains : tuple of (str, float)
        Factors in [0, 4] applied to an ROI's z-scored responses.
    fill : {'mean', 'trial', 'noise'}
        Replacement values: the training mean (0), the same voxels of trial ``fill_trial``, or unit normal noise of ``fill_seed``.
    fill_trial, fill_seed : int
        Used by the fill they are named after.
    """

    mute: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    gains: tuple[tuple[str, float], ...] = ()
    fill: Fill = "mean"
    fill_trial: int = 0
    fill_seed: int = 0

    def __post_init__(self) -> None:
        if self.fill not in ("mean", "trial", "noise"):
            msg = f"fill must be 'mean', 'trial' or 'noise'; got {self.fill!r}"
            raise MaskError(msg)
        for part in ("mute", "keep"):
            names = getattr(self, part)
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                msg = f"{part} takes a tuple of ROI names, such as ('FFA-1',); got {names!r}"
                raise MaskError(msg)
            object.__setattr__(self, part, tuple(names))
        object.__setattr__(self, "gains", tuple((name, _real(f"the gain of {name}", gain, 0, 4)) for name, gain in self.gains))
        object.__setattr__(self, "fill_trial", _whole("fill_trial", self.fill_trial, 0))
        object.__setattr__(self, "fill_seed", _whole("fill_seed", self.fill_seed, 0, 2**32 - 1))

    @property
    def is_empty(self) -> bool:
        """True when every voxel passes unchanged."""
        return not (self.mute or self.keep or self.gains)


@dataclass(frozen=True)
class Request:
    """One reconstruction, as data: what the cache keys on, a recipe stores, the command line fills in.

    Parameters
    ----------
    dataset : str
        ``"demo"`` or the folder of an NSD tree.
    subject : str
        ``"subj01"`` and so on.
    trial : int
        0-based over the whole experiment.
    repeats : {'mean', 'single'}
        Average all presentations of the trial's image, or use this trial alone.
    mask : Mask
    settings : Settings
    generator, decoder : str
        Folders of the Versatile Diffusion and of the trained decoder; ``"demo"`` and ``""`` are the shipped ones, ``"linear"`` the linear decoder.
    """

    dataset: str = "demo"
    subject: str = "subj01"
    trial: int = 0
    repeats: Repeats = "mean"
    mask: Mask = field(default_factory=Mask)
    settings: Settings = field(default_factory=Settings)
    generator: str = "demo"
    decoder: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "trial", _whole("trial", self.trial, 0))
        if self.repeats not in ("mean", "single"):
            msg = f"repeats must be 'mean' or 'single'; got {self.repeats!r}"
            raise RequestError(msg)

    @property
    def key(self) -> str:
        """Hex digest of everything that decides the picture; 32 characters."""
        text = json.dumps({"scores_version": SCORES_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the voxels say, ready for the generator; a batch of B.

    Parameters
    ----------
    latents : float32 (B, 4, h, w)
        Already times the autoencoder's scaling factor.
    image_embeds : float32 (B, n_image_tokens, width)
    text_embeds : float32 (B, n_text_tokens, width)
    """

    latents: FloatArray
    image_embeds: FloatArray
    text_embeds: FloatArray

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class Score:
    """A number and what is needed to read it.

    Parameters
    ----------
    name : str
    value : float
    chance : float or None
        What a picture unrelated to the stimulus scores: 0.5 for two-way identification, otherwise measured over the test stimuli.
    higher_is_better : bool
    protocol : str
        Resolution, feature network and comparison set, in words.
    """

    name: str
    value: float
    chance: float | None
    higher_is_better: bool
    protocol: str


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A finished request.

    Parameters
    ----------
    request : Request
    picture : uint8 (H, W, 3)
        The redrawn picture; RGB.
    structure : uint8 (H, W, 3)
        The decoded latents through the autoencoder, before any diffusion.
    stimulus : uint8 (H, W, 3)
        What the subject saw, at the picture's size.
    kind : str
        ``"generated"`` (diffusion ran) or ``"decoded"`` (strength 0).
    synthetic : bool
        True when the data set is the teaching world.
    trained_on : bool
        True when the decoder saw this stimulus in training: such a picture flatters and must be badged.
    scores : tuple of Score
    seconds : tuple of (str, float)
        Stage names and wall time.
    steps_run : int
        k of the N steps.
    signal : float
        sqrt of alpha-bar where the diffusion started: how much of the decoded latents survived (0 at strength 1, 1 at strength 0).
    """

    request: Request
    picture: UInt8Array
    structure: UInt8Array
    stimulus: UInt8Array
    kind: Kind
    synthetic: bool
    trained_on: bool
    scores: tuple[Score, ...]
    seconds: tuple[tuple[str, float], ...]
    steps_run: int
    signal: float


@dataclass(frozen=True, eq=False)
class Step:
    """Where a run stands.

    Parameters
    ----------
    stage : {'wait', 'load', 'decode', 'diffuse', 'measure'}
        ``wait``: another run has the device.
    index, count : int
        Step ``index`` of ``count`` is done; both 0 where a stage has no steps.
    preview : uint8 (h, w, 3) or None
        A cheap picture of the predicted clean latents.
    """

    stage: str
    index: int = 0
    count: int = 0
    preview: UInt8Array | None = None


@dataclass(frozen=True, eq=False)
class Contribution:
    """How much each voxel feeds one branch.

    Parameters
    ----------
    branch : {'structural', 'semantic'}
    method : str
        ``"weights"``: percentile of the L2 norm of the first layer's column (method 1.8 a).
    values : float32 (n_voxels,)
        In [0, 1]; NaN where the branch does not read the voxel.
    """

    branch: Branch
    method: str
    values: FloatArray
