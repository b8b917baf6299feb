"""Every protocol's numbers against torchvision, Pillow, scikit-image and SciPy, with small networks in place of the published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.spatial import distance
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from torch import nn
from torchvision.transforms import Resize

from havir_explorer import measure
from havir_explorer.errors import RequestError
from havir_explorer.evaluate import scoring
from havir_explorer.evaluate.scoring import Gauge
from havir_explorer.measure import compare, networks, pixels, resize
from havir_explorer.measure.protocols import BD, ME2, MINDDIFFUSER, Protocol
from havir_explorer.records import FloatArray, UInt8Array

COUNT = 5
LITERATURE = (ME2, BD, MINDDIFFUSER)
EIGHT = ["PixCorr", "SSIM", "AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV"]


@pytest.fixture(scope="module")
def stimuli() -> UInt8Array:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 60, 60, 3), dtype=np.uint8).repeat(3, 1).repeat(3, 2)


@pytest.fixture(scope="module")
def pictures(stimuli: UInt8Array) -> UInt8Array:
    noise = np.random.default_rng(1).integers(0, 256, (COUNT, 210, 210, 3), dtype=np.uint8)
    shrunk = np.stack([np.asarray(Image.fromarray(s).resize((210, 210))) for s in stimuli])
    return (0.6 * shrunk + 0.4 * noise).astype(np.uint8)


class Projection(nn.Module):
    """A fixed random projection of the picture's 7 x 7 means, under every layer's name that the protocols read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * 49, 24, generator=torch.Generator().manual_seed(0)))
        self.avgpool = nn.Identity()
        self.features = nn.Sequential(*(nn.Identity() for _ in range(12)))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return self.avgpool(self.features(nn.functional.adaptive_avg_pool2d(seen, 7).flatten(1) @ self.weight))


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scoring, "_loaded", lambda name, folder, device: Projection().eval())


def of(protocol: Protocol, name: str) -> measure.Measure:
    return next(m for m in protocol.measures if m.metric.name == name)


def test_the_literatures_eight_are_there_in_its_order() -> None:
    assert [m.metric.name for m in ME2.measures] == [m.metric.name for m in BD.measures] == EIGHT
    for protocol in (ME2, BD):
        assert [m.metric.higher_is_better for m in protocol.measures] == [True] * 6 + [False] * 2
        assert [m.metric.chance for m in protocol.measures] == [None, None, 0.5, 0.5, 0.5, 0.5, None, None]
        assert [(m.network, m.layer) for m in protocol.measures[2:6]] == [
            ("alexnet", "features.4"),
            ("alexnet", "features.11"),
            ("inception", "avgpool"),
            ("clip-vit-l-14", ""),
        ]
    assert of(ME2, "EffNet-B").network == "efficientnet-v2"
    assert of(BD, "EffNet-B").network == "efficientnet-v1"


# Resizing


@pytest.mark.parametrize(
    ("name", "side"), [("PixCorr", 425), ("SSIM", 425), ("AlexNet(2)", 256), ("Inception", 342), ("CLIP", 224), ("EffNet-B", 255), ("SwAV", 224)]
)
def test_me2_resizes_as_torchvision_without_antialias(name: str, side: int, pictures: UInt8Array) -> None:
    through = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    for size in (256, side):
        through = Resize((size, size), antialias=False)(through)
    assert np.allclose(of(ME2, name).resize(pictures), through.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_antialias_would_change_what_me2_sees() -> None:
    large = np.random.default_rng(2).integers(0, 256, (1, 425, 425, 3), dtype=np.uint8)
    smoothed = Resize((256, 256), antialias=True)(torch.from_numpy(large).permute(0, 3, 1, 2) / 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(resize.tensors(256, pictures=large) - smoothed).mean() > 0.05


@pytest.mark.parametrize(("name", "side", "filter_"), [("PixCorr", 425, Image.BICUBIC), ("AlexNet(5)", 224, Image.BILINEAR), ("EffNet-B", 224, Image.BILINEAR)])
def test_bd_resizes_as_pillow(name: str, side: int, filter_: int, pictures: UInt8Array) -> None:
    expected = np.stack([np.asarray(Image.fromarray(p).resize((side, side), filter_)) / 255 for p in pictures])
    assert np.allclose(of(BD, name).resize(pictures), expected, atol=1e-6)


# Comparisons


def test_grey_ssim_is_two_dimensional_and_column_ssim_is_the_mean_over_columns() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.uniform(size=(2, 2, 40, 30, 3)).astype(np.float32)
    mixed = 0.5 * left + 0.5 * right
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    plain = [structural_similarity(rgb2gray(a), rgb2gray(b), **options) for a, b in zip(left, mixed, strict=True)]
    columns = [
        np.mean([structural_similarity(x, y, **options) for x, y in zip(rgb2gray(a).T, rgb2gray(b).T, strict=True)]) for a, b in zip(left, mixed, strict=True)
    ]
    assert np.allclose(pixels.grey_ssim(left, mixed), plain, atol=1e-6)
    assert np.allclose(pixels.column_ssim(left, mixed), columns, atol=1e-6)
    assert abs(plain[0] - columns[0]) > 0.01


def test_correlation_distance_is_scipys() -> None:
    left, right = np.random.default_rng(4).normal(size=(2, 6, 50)).astype(np.float32)
    assert np.allclose(measure.correlation_distance(left, right), [distance.correlation(a, b) for a, b in zip(left, right, strict=True)], atol=1e-6)


def test_two_way_in_blocks_is_two_way_at_once_and_reads_each_feature_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By blocks of pictures each would be standardised as often as there are blocks: AlexNet's features of 1,000 pictures took minutes."""
    left, right = (np.random.default_rng(5).normal(size=(2, 23, 40)) + 3).astype(np.float32)
    whole = measure.two_way(left, right)
    r = np.corrcoef(right, left)[:23, 23:]
    assert np.array_equal(whole, ((r < np.diag(r)).sum(0) / 22).astype(np.float32))

    class Counted(np.ndarray):
        def __getitem__(self, place):
            read.append(place)
            return np.asarray(self)[place]

    read: list[object] = []
    monkeypatch.setattr(compare, "BLOCK", 8 * 46 * 7)
    assert np.array_equal(measure.two_way(left.view(Counted), right), whole)
    assert read == [(slice(None), slice(start, start + 7)) for start in range(0, 40, 7)]


def test_a_flat_row_of_features_correlates_with_nothing() -> None:
    left, right = np.random.default_rng(7).normal(size=(2, 4, 30)).astype(np.float32)
    left[1] = 0.1
    assert measure.two_way(left, right)[1] == 0  # every comparison is a tie, and ties are misses


# Whole protocols


def gauges(protocol: Protocol, stimuli: UInt8Array) -> dict[str, Gauge]:
    return {g.measure.metric.name: g for g in scoring.gauges(protocol, protocol.measures, stimuli, side=210)}


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("protocol", LITERATURE, ids=lambda p: p.name)
def test_the_stimuli_themselves_score_perfectly(protocol: Protocol, stimuli: UInt8Array) -> None:
    scores = scoring.score(stimuli, list(gauges(protocol, stimuli).values())).mean()
    for m in protocol.measures:
        assert scores[m.metric.name] == pytest.approx(1 if m.metric.higher_is_better else 0, abs=1e-5)


@pytest.mark.usefixtures("small_networks")
def test_unrelated_pictures_score_chance() -> None:
    rng = np.random.default_rng(6)
    stimuli, pictures = rng.integers(0, 256, (2, 40, 14, 14, 3), dtype=np.uint8)
    clip, swav = scoring.gauges(ME2, [of(ME2, "CLIP"), of(ME2, "SwAV")], stimuli, side=14)
    scores = scoring.score(pictures, (clip, swav)).mean()
    assert clip.chance() == 0.5
    assert scores["CLIP"] == pytest.approx(0.5, abs=0.12)
    assert scores["SwAV"] == pytest.approx(swav.chance(), abs=0.1)


def seen(protocol: Protocol, name: str, shown: UInt8Array) -> FloatArray:
    """Features by torchvision's own transforms."""
    wanted = networks.NETWORKS[of(protocol, name).network]
    mean, std = (np.array(values, np.float32) for values in (wanted.mean, wanted.std))
    normalised = (of(protocol, name).resize(shown) - mean) / std
    with torch.no_grad():
        return Projection()(torch.from_numpy(normalised).permute(0, 3, 1, 2)).numpy()


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("protocol", [ME2, BD], ids=lambda p: p.name)
def test_features_are_compared_as_the_table_says(protocol: Protocol, pictures: UInt8Array, stimuli: UInt8Array) -> None:
    ready = gauges(protocol, stimuli)
    scores = scoring.score(pictures, list(ready.values()))
    for name in ("Inception", "CLIP"):
        r = np.corrcoef(seen(protocol, name, stimuli), seen(protocol, name, pictures))[:COUNT, COUNT:]
        assert np.allclose(scores[name], (r < np.diag(r)).sum(0) / (COUNT - 1))
    for name in ("EffNet-B", "SwAV"):
        pairs = zip(seen(protocol, name, stimuli), seen(protocol, name, pictures), strict=True)
        assert np.allclose(scores[name], [distance.correlation(a, b) for a, b in pairs], atol=1e-4)
    flat = (of(protocol, "PixCorr").resize(values).reshape(COUNT, -1) for values in (pictures, stimuli))
    assert np.allclose(scores["PixCorr"], [stats.pearsonr(a, b).statistic for a, b in zip(*flat, strict=True)], atol=1e-5)


@pytest.mark.usefixtures("small_networks")
def test_groups_do_not_change_the_scores(pictures: UInt8Array, stimuli: UInt8Array, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scoring.score(pictures, list(gauges(MINDDIFFUSER, stimuli).values()))
    monkeypatch.setattr(scoring, "GROUP", 2)
    assert np.allclose(scoring.score(pictures, list(gauges(MINDDIFFUSER, stimuli).values())), whole, atol=1e-6)


# What is not there


def test_metrics_without_weights_are_listed_with_the_command_that_brings_them(tmp_path: Path) -> None:
    present, missing = scoring.available(ME2, None, tmp_path)
    assert [m.metric.name for m in present] == ["PixCorr", "SSIM"]
    assert [m.metric for m in missing] == EIGHT[2:]
    assert missing[0].file == "alexnet-owt-7be5be79.pth"
    assert missing[0].get == f"havir networks fetch alexnet --to {tmp_path}"


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(RequestError, match="no protocol is called 'me3'; nearest: me2"):
        measure.protocol("me3")
