"""How the synthetic subjects respond: receptive fields, category tuning, semantic mixtures and noise.

Methods. A voxel's response to a presentation of picture *i* in session *s* is, in percent signal change,

    beta = mean + gain(s) * sd * signal(i) + offset(s) + noise,    noise ~ Normal(0, noise sd)

with ``signal`` of unit variance over the subject's pictures and independent noise for every trial. V1v to hV4 voxels pool luminance,
colour-opponent and orientation-energy channels of the picture through a Gaussian receptive field whose centre follows the retinotopy of
their area and whose size grows with eccentricity and from V1 to hV4. floc voxels answer to the things of their category, scaled by size
and by a wide contralateral field, and modulated by colour. All other voxels are sparse mixtures of semantic features in proportions set
by their stream. Planted noise ceilings are ``100 n^2 / (n^2 + 1/3)`` percent for means of three trials, n = sd / noise sd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from havir_explorer.data.demo.anatomy import ROI_NAMES, Anatomy
from havir_explorer.data.demo.features import CHANNELS, COLOUR_CHANNELS, EXTENT_DEG, GRID, GROUPS, ORIENTATIONS_DEG, SEMANTIC, degrees
from havir_explorer.data.demo.scenes import COLOURS, KINDS, SIZES, Scene
from havir_explorer.records import BoolArray, FloatArray, IntArray

ECCENTRICITY_EDGES_DEG = (0.5, 1.0, 2.0, 4.0)  # between the five labels of prf-eccrois
_FIELD_SIZE = {"V1": (0.35, 0.08), "V2": (0.40, 0.12), "V3": (0.50, 0.18), "hV4": (0.70, 0.28)}  # sigma = a + b * eccentricity, degrees
_COLOUR_SHARE = {"V1": 1.0, "V2": 1.0, "V3": 0.9, "hV4": 1.3}
_TUNING: dict[str, dict[str, float]] = {  # response to a thing of each kind, by floc file
    "floc-faces": {"face": 1.0, "person": 0.30, "dog": 0.12},
    "floc-bodies": {"person": 1.0, "dog": 0.75, "face": 0.12},
    "floc-places": {"house": 1.0, "tree": 0.30, "car": 0.15},
    "floc-words": {"sign": 1.0, "face": 0.08},
}
_STREAM_EMPHASIS: dict[int, dict[str, float]] = {  # shares of the semantic groups, by streams code; 0 is the rest of nsdgeneral
    0: {"kind": 1, "kind x colour": 1, "background": 1, "kind x place": 1},
    1: {"colour": 1, "background": 1, "place": 1},
    2: {"colour": 3, "kind x colour": 4, "kind": 1, "background": 2},
    3: {"kind": 4, "kind x place": 3, "size": 2, "kind x colour": 2},
    4: {"place": 3, "count": 2, "kind x place": 3, "size": 2},
    5: {"kind": 3, "kind x colour": 5, "background": 3},
    6: {"kind": 3, "kind x place": 4, "kind x colour": 3},
    7: {"place": 2, "count": 2, "kind x place": 4, "size": 2},
}
_ELSEWHERE = {"face": 0.2, "sign": 0.35, "person": 0.5, "house": 0.5}  # what has areas of its own is weak outside them
_MIXED = 6


@dataclass(frozen=True)
class Individual:
    """What sets one subject apart.

    Parameters
    ----------
    name : str
    seed : int
        Of its wiring, sizes and noise.
    scale : float
        Size of its regions.
    best, shape : float, (float, float)
        Noise ceilings are ``best`` percent times a Beta(``shape``) draw per voxel.
    """

    name: str
    seed: int
    scale: float
    best: float
    shape: tuple[float, float]


INDIVIDUALS = (
    Individual("subj01", 101, 0.90, 78.0, (1.8, 2.7)),
    Individual("subj02", 202, 0.88, 75.0, (1.7, 2.9)),
)


@dataclass(frozen=True, eq=False)
class Wiring:
    """One subject's ground truth, voxel by voxel (its active voxels, in flat-index order).

    Parameters
    ----------
    flat_index : int64 (V,)
    right, spatial : bool (V,)
    rf_x, rf_y, rf_sigma : float32 (V,)
        Degrees right of and above fixation, and the field's standard deviation; spatial and floc voxels, else NaN.
    channels : float32 (V, 11)
        Weights over ``features.CHANNELS``; 0 outside spatial voxels.
    kinds : float32 (V, 8)
        Category tuning over ``scenes.KINDS``; 0 outside floc voxels.
    colours : float32 (V, 7)
        Modulation of a floc voxel's answer by the thing's colour.
    semantic : float32 (V, 110)
        Weights over ``features.SEMANTIC``; 0 in spatial voxels.
    ncsnr, noise_sd, mean : float32 (V,)
        Planted signal-to-noise ratio; noise and mean in percent signal change.
    """

    flat_index: IntArray
    right: BoolArray
    spatial: BoolArray
    rf_x: FloatArray
    rf_y: FloatArray
    rf_sigma: FloatArray
    channels: FloatArray
    kinds: FloatArray
    colours: FloatArray
    semantic: FloatArray
    ncsnr: FloatArray
    noise_sd: FloatArray
    mean: FloatArray


def wire(body: Anatomy, who: Individual) -> Wiring:
    """Draw a subject's wiring from its anatomy; the same for the same individual."""
    rng = np.random.default_rng([who.seed, 1])
    active = body.active
    codes = {file: code[active] for file, code in body.codes.items()}
    right, count = body.cortex.right[active], int(active.sum())
    visual = codes["prf-visualrois"]
    x, y, sigma = _retinotopy(visual, right, body.along[active], body.across[active], rng)
    kinds, colours = _category_tuning(codes, rng)
    wide = (visual == 0) & kinds.any(1)
    x[wide] = np.where(right, -1.0, 1.0)[wide] * np.abs(rng.normal(1.5, 1.0, count))[wide]
    y[wide], sigma[wide] = rng.normal(0.0, 1.5, count)[wide], rng.uniform(3.5, 6.0, count)[wide]
    ceiling = who.best * rng.beta(*who.shape, count)
    return Wiring(
        flat_index=body.cortex.flat_index[active],
        right=right,
        spatial=visual > 0,
        rf_x=x.astype(np.float32),
        rf_y=y.astype(np.float32),
        rf_sigma=sigma.astype(np.float32),
        channels=_channel_weights(visual, rng),
        kinds=np.where(visual[:, None] == 0, kinds, 0).astype(np.float32),
        colours=colours.astype(np.float32),
        semantic=_semantic_weights(codes, rng),
        ncsnr=np.sqrt(ceiling / (3.0 * (100.0 - ceiling))).astype(np.float32),
        noise_sd=(1.4 * np.exp(rng.normal(0.0, 0.25, count))).astype(np.float32),
        mean=rng.normal(0.8, 0.5, count).astype(np.float32),
    )


def eccentricity_codes(wiring: Wiring) -> IntArray:
    """Return prf-eccrois codes 1 to 5 from the receptive fields of spatial voxels, 0 elsewhere; int64 (V,)."""
    code = 1 + np.digitize(np.hypot(wiring.rf_x, wiring.rf_y), ECCENTRICITY_EDGES_DEG)
    return np.asarray(np.where(wiring.spatial, code, 0), np.int64)


def signals(wiring: Wiring, maps: FloatArray, semantic: FloatArray, seen: Sequence[Scene]) -> FloatArray:
    """Return noise-free responses of unit variance over the pictures.

    Parameters
    ----------
    wiring : Wiring
    maps : float32 (n, 11, 256)
        From :func:`~havir_explorer.data.demo.features.channel_maps`.
    semantic : float32 (n, 110)
        From :func:`~havir_explorer.data.demo.features.semantic_features`.
    seen : sequence of n Scene

    Returns
    -------
    float32 (n, V)
        Mean 0, standard deviation 1 in every column.
    """
    drive = np.empty((len(seen), len(wiring.flat_index)), np.float32)
    spatial, category = wiring.spatial, np.asarray(wiring.kinds.any(1))
    drive[:, spatial] = _pool(wiring, maps)
    mixture = _standard(_standard(semantic) @ wiring.semantic[~spatial].T)
    drive[:, ~spatial] = mixture
    drive[:, category] = _standard(_things(wiring, seen, category)) + 0.35 * mixture[:, category[~spatial]]
    return _standard(drive)


def session(wiring: Wiring, signal: FloatArray, seed: Sequence[int]) -> npt.NDArray[np.int16]:
    """Return one session's betas.

    Parameters
    ----------
    wiring : Wiring
    signal : float32 (n_trials, V)
        Rows of :func:`signals`, in the session's order.
    seed : sequence of int
        Of this session's noise, gains and offsets.

    Returns
    -------
    int16 (n_trials, V)
        Percent signal change times 300.
    """
    rng = np.random.default_rng(list(seed))
    count = (signal.shape[1],)
    gain = rng.lognormal(0.0, 0.08, count).astype(np.float32)
    offset = rng.normal(0.0, 0.3, count).astype(np.float32)
    percent = rng.standard_normal(signal.shape, np.float32)
    percent += signal * (gain * wiring.ncsnr)
    percent *= wiring.noise_sd
    percent += wiring.mean + offset
    percent *= 300.0
    return np.clip(np.rint(percent, out=percent), -32768, 32767, out=percent).astype(np.int16)


def _standard(values: npt.NDArray[np.float32]) -> FloatArray:
    spread = values.std(0)
    return np.asarray((values - values.mean(0)) / np.where(spread > 0, spread, 1.0), np.float32)


def _retinotopy(
    visual: IntArray, right: BoolArray, along: npt.NDArray[np.float64], across: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Receptive fields: eccentricity grows along the calcarine; polar angle runs between the meridians and turns back at each border.

    Ranks within an area stand for distances, so that every area covers its part of the field evenly. Cortical magnification is milder than
    in life (eccentricity ~ rank ** 1.3), because the picture must be covered with few voxels.
    """
    x, y, sigma = (np.full(len(visual), np.nan) for _ in range(3))
    for code, name in enumerate(ROI_NAMES["prf-visualrois"], start=1):
        for side in (False, True):
            mine = np.flatnonzero((visual == code) & (right == side))
            if not mine.size:
                continue
            far, out = _rank(along[mine]), _rank(np.abs(across[mine]))
            eccentricity = 0.2 + 6.6 * far**1.3
            elevation = {"V1": out, "V2": 1.0 - out, "V3": out, "hV4": 2.0 * out - 1.0}[name.rstrip("vd")]  # 0 horizontal, 1 vertical meridian
            angle = 0.5 * np.pi * np.clip(elevation + rng.normal(0.0, 0.06, mine.size), -0.98, 0.98)
            vertical = np.sin(angle) * (-1.0 if name.endswith("d") else 1.0)
            x[mine] = eccentricity * np.abs(np.cos(angle)) * (-1.0 if side else 1.0)
            y[mine] = eccentricity * (vertical if name == "hV4" else np.copysign(np.abs(vertical), 1.0 if name.endswith("v") else -1.0))
            base, slope = _FIELD_SIZE[name.rstrip("vd")]
            sigma[mine] = (base + slope * eccentricity) * np.exp(rng.normal(0.0, 0.12, mine.size))
    return x, y, sigma


def _rank(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray((values.argsort(kind="stable").argsort(kind="stable") + 0.5) / len(values))


def _channel_weights(visual: IntArray, rng: np.random.Generator) -> FloatArray:
    """Signed weights of luminance and colour; energy weights peak at a preferred orientation and scale and are never negative."""
    count, angles = len(visual), np.deg2rad(ORIENTATIONS_DEG)
    share = np.array([0.0, *(_COLOUR_SHARE[n.rstrip("vd")] for n in ROI_NAMES["prf-visualrois"])])[visual]
    colour = rng.normal(0.0, 1.0, (count, len(COLOUR_CHANNELS))) * share[:, None]
    preferred, scale = rng.uniform(0.0, np.pi, count), rng.uniform(0.2, 0.8, count)
    tuned = np.exp(np.cos(2.0 * (angles - preferred[:, None])) - 1.0)
    energy = np.concatenate([tuned * scale[:, None], tuned * (1.0 - scale[:, None])], axis=1)
    return np.where(visual[:, None] > 0, np.concatenate([colour, 0.7 * energy], axis=1), 0.0).astype(np.float32)


def _category_tuning(codes: dict[str, IntArray], rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Tuning to kinds, summed over the floc files a voxel belongs to, and modulation by colour (none on average)."""
    count = len(codes["streams"])
    kinds = np.zeros((count, len(KINDS)))
    for file, tuning in _TUNING.items():
        preference = np.array([tuning.get(kind, 0.0) for kind in KINDS])
        kinds += (codes[file] > 0)[:, None] * preference * rng.uniform(0.7, 1.3, (count, len(KINDS)))
    return kinds, np.clip(rng.normal(0.0, 0.45, (count, len(COLOURS))), -0.9, 0.9)


def _semantic_weights(codes: dict[str, IntArray], rng: np.random.Generator) -> FloatArray:
    streams, visual = codes["streams"], codes["prf-visualrois"]
    groups, first = list(GROUPS), np.cumsum([0, *(len(names) for names in GROUPS.values())])
    weights = np.zeros((len(streams), len(SEMANTIC)))
    for code, emphasis in _STREAM_EMPHASIS.items():
        mine = np.flatnonzero((streams == code) & (visual == 0))
        share = np.array([emphasis.get(group, 0.0) for group in groups])
        for _ in range(_MIXED):
            group = rng.choice(len(groups), mine.size, p=share / share.sum())
            feature = first[group] + (rng.random(mine.size) * np.diff(first)[group]).astype(int)
            weights[mine, feature] += rng.normal(0.0, 1.0, mine.size)
    weak = np.array([np.prod([_ELSEWHERE.get(word, 1.0) for word in name.split()]) for name in SEMANTIC])
    return (weights * weak).astype(np.float32)


def _pool(wiring: Wiring, maps: FloatArray) -> FloatArray:
    """Pool channel maps through the receptive fields: (n, n_spatial)."""
    spatial = wiring.spatial
    edges = np.linspace(-EXTENT_DEG, EXTENT_DEG, GRID + 1)
    sigma = wiring.rf_sigma[spatial, None] * np.sqrt(2.0)
    columns = np.diff(erf((edges - wiring.rf_x[spatial, None]) / sigma), axis=1)
    rows = np.diff(erf((edges + wiring.rf_y[spatial, None]) / sigma), axis=1)  # rows run from the top, y upwards
    fields = (rows[:, :, None] * columns[:, None, :]).reshape(-1, GRID * GRID)
    fields = (fields / fields.sum(1, keepdims=True)).astype(np.float32).T
    total = np.zeros((len(maps), fields.shape[1]), np.float32)
    for channel in range(len(CHANNELS)):
        plane = maps[:, channel] - maps[:, channel].mean(0)
        total += (plane / plane.std()) @ fields * wiring.channels[spatial, channel]
    return total


def _things(wiring: Wiring, seen: Sequence[Scene], category: BoolArray) -> FloatArray:
    """Category drive of floc voxels: kind, colour, size and place of every thing, summed over things; (n, n_category)."""
    rows = np.array([i for i, one in enumerate(seen) for _ in one.things])
    things = [thing for one in seen for thing in one.things]
    kind = np.array([KINDS.index(t.kind) for t in things])
    colour = np.array([list(COLOURS).index(t.colour) for t in things])
    size = np.array([SIZES[t.size] for t in things], np.float32)
    place = np.array([degrees(t) for t in things], np.float32)
    gap = np.square(place[:, :1] - wiring.rf_x[category]) + np.square(place[:, 1:] - wiring.rf_y[category])
    field = np.exp(-0.5 * gap / np.square(wiring.rf_sigma[category]))
    answer = wiring.kinds[category][:, kind].T * (1.0 + wiring.colours[category][:, colour].T) * field * np.sqrt(size)[:, None]
    total = np.zeros((len(seen), answer.shape[1]), np.float32)
    np.add.at(total, rows, answer.astype(np.float32))
    return total
