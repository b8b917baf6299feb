"""The ways the literature scores reconstructions, one row a metric: how pictures are resized, which features are read, how they are compared.

Adding a metric is one function in ``compare`` or ``pixels``, one row here and one test against an independent computation.

Sources: MindEye2's ``final_evaluations`` notebook (MedARC-AI/MindEyeV2); Brain-Diffuser's ``eval_extract_features`` and
``evaluate_reconstruction`` scripts (ozcelikfu/brain-diffuser, scikit-image 0.17.2, Pillow 9.2). Numbers of different protocols do not compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt
from PIL.Image import Resampling

from havir_explorer.errors import RequestError, nearest
from havir_explorer.measure.compare import correlation_distance, cosine, two_way
from havir_explorer.measure.networks import NETWORKS
from havir_explorer.measure.pixels import SMALL, column_ssim, grey_ssim, pixcorr, pixel_r, ssim
from havir_explorer.measure.records import OWN_TOWER, Metric
from havir_explorer.measure.resize import as_is, pillow, tensors
from havir_explorer.records import FloatArray, UInt8Array

OWN_NETWORK = "own"
"""Stands for the generator's own tower, or the one the user names."""


@dataclass(frozen=True)
class Measure:
    """How one number is computed.

    Parameters
    ----------
    metric : Metric
    resize : callable
        Pictures, uint8 (n, H, W, 3), to what is compared or seen by the network.
    compare : callable
        What ``resize`` returns, or features (n, D), of pictures and of stimuli, to one number a pair, float32 (n,).
    network : str
        A name of :data:`~havir_explorer.measure.networks.NETWORKS`, :data:`OWN_NETWORK`, or empty for pixels.
    layer : str
        As :func:`~havir_explorer.measure.networks.features` takes it.
    """

    metric: Metric
    resize: Callable[[UInt8Array], npt.NDArray[Any]]
    compare: Callable[[npt.NDArray[Any], npt.NDArray[Any]], FloatArray]
    network: str = ""
    layer: str = ""


@dataclass(frozen=True)
class Protocol:
    """A set of measures that are reported together.

    Parameters
    ----------
    name : str
    source : str
        Whose it is.
    measures : tuple of Measure
    fitted : bool
        True where the stimuli are first brought to the pictures' size; otherwise they come as the data set has them.
    """

    name: str
    source: str
    measures: tuple[Measure, ...]
    fitted: bool = False


_TWO_WAY = "two-way identification against the other test stimuli, Pearson r of {}, ties are misses"
_DISTANCE = "one minus Pearson r of {}"
_SSIM = "SSIM of grey pictures, Gaussian window of sigma 1.5, no sample covariance, data range 1"
_OWN_SIZE = f"at the pictures' own size up to {SMALL} px; larger ones resized to 256, then 425 px, bilinear without antialias"


def own(tower: str = OWN_TOWER) -> Protocol:
    """Return the small set that needs no network but the generator's own, or the one called ``tower``."""
    pooled = f"pooled features of {tower}"
    return Protocol(
        "own",
        "havir_explorer",
        (
            Measure(Metric("PixCorr", None, True, f"Pearson r over all RGB values, {_OWN_SIZE}"), as_is, pixcorr),
            Measure(Metric("SSIM", None, True, f"{_SSIM}, {_OWN_SIZE}"), as_is, ssim),
            Measure(Metric("CLIP", 0.5, True, _TWO_WAY.format(pooled)), as_is, two_way, OWN_NETWORK),
            Measure(Metric("CLIP-cos", None, True, f"cosine of {pooled}"), as_is, cosine, OWN_NETWORK),
        ),
        fitted=True,
    )


def _identified(name: str, network: str, layer: str, side: int, resize: Callable[[UInt8Array], FloatArray], how: str) -> Measure:
    seen = f"{layer or 'the final embedding'} of {NETWORKS[network].words} at {side} px, {how}"
    return Measure(Metric(name, 0.5, True, _TWO_WAY.format(seen)), resize, two_way, network, layer)


def _distant(name: str, network: str, side: int, resize: Callable[[UInt8Array], FloatArray], how: str) -> Measure:
    seen = f"avgpool of {NETWORKS[network].words} at {side} px, {how}"
    return Measure(Metric(name, None, False, _DISTANCE.format(seen)), resize, correlation_distance, network, "avgpool")


def _through(side: int) -> Callable[[UInt8Array], FloatArray]:
    return partial(_me2_resized, side)


def _me2_resized(side: int, pictures: UInt8Array) -> FloatArray:
    return tensors(256, side, pictures=pictures)


_ME2 = "resized to 256 px first, bilinear without antialias"
ME2 = Protocol(
    "me2",
    "MindEye2",
    (
        Measure(Metric("PixCorr", None, True, f"Pearson r over all RGB values at 425 px, {_ME2}"), _through(425), pixel_r),
        Measure(Metric("SSIM", None, True, f"{_SSIM}, two-dimensional, at 425 px, {_ME2}"), _through(425), grey_ssim),
        _identified("AlexNet(2)", "alexnet", "features.4", 256, _through(256), _ME2),
        _identified("AlexNet(5)", "alexnet", "features.11", 256, _through(256), _ME2),
        _identified("Inception", "inception", "avgpool", 342, _through(342), _ME2),
        _identified("CLIP", "clip-vit-l-14", "", 224, _through(224), _ME2),
        _distant("EffNet-B", "efficientnet-v2", 255, _through(255), _ME2),
        _distant("SwAV", "swav", 224, _through(224), _ME2),
    ),
)

_BD = "resized by Pillow, bilinear"
_AT_224, _AT_425 = partial(pillow, 224, Resampling.BILINEAR), partial(pillow, 425, Resampling.BICUBIC)
BD = Protocol(
    "bd",
    "Brain-Diffuser",
    (
        Measure(Metric("PixCorr", None, True, "Pearson r over all RGB values at 425 px, resized by Pillow, bicubic"), _AT_425, pixel_r),
        Measure(Metric("SSIM", None, True, f"{_SSIM}, mean of one-dimensional SSIMs of columns, at 425 px, resized by Pillow, bicubic"), _AT_425, column_ssim),
        _identified("AlexNet(2)", "alexnet", "features.4", 224, _AT_224, _BD),
        _identified("AlexNet(5)", "alexnet", "features.11", 224, _AT_224, _BD),
        _identified("Inception", "inception", "avgpool", 224, _AT_224, _BD),
        _identified("CLIP", "clip-vit-l-14", "", 224, _AT_224, _BD),
        _distant("EffNet-B", "efficientnet-v1", 224, _AT_224, _BD),
        _distant("SwAV", "swav", 224, _AT_224, _BD),
    ),
)

_OURS = "resized by Pillow, bilinear; size and resizing are our reading, the authors' are not published"
_AT_512 = partial(pillow, 512, Resampling.BILINEAR)
MINDDIFFUSER = Protocol(
    "minddiffuser",
    "MindDiffuser",
    (
        Measure(
            Metric("CLIP-last", None, True, f"cosine of the final embedding of {NETWORKS['clip-vit-b-32'].words} at 224 px, ImageNet normalisation, {_OURS}"),
            _AT_224,
            cosine,
            "clip-vit-b-32",
        ),
        Measure(Metric("SSIM", None, True, f"{_SSIM}, at 512 px, {_OURS}"), _AT_512, grey_ssim),
        Measure(Metric("PCC", None, True, f"Pearson r over all RGB values at 512 px, {_OURS}"), _AT_512, pixel_r),
    ),
)

OWN = own()
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (OWN, ME2, BD, MINDDIFFUSER)}
"""Every protocol, by the name the command line takes."""


def protocol(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises
    ------
    RequestError
        There is none.
    """
    if name not in PROTOCOLS:
        msg = f"no protocol is called {name!r}; {nearest(name, PROTOCOLS, len(PROTOCOLS))}"
        raise RequestError(msg)
    return PROTOCOLS[name]
