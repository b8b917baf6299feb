"""The norm repair is fitted to training images alone, and its spread to those that the weights have not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import TEST, TRAIN, SmallEncoder, SmallWorld
from torch.nn import functional

from havir_explorer.decode.blocks import Repair
from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes
from havir_explorer.decode.options import Options
from havir_explorer.decode.targets import Targets, build
from havir_explorer.decode.train import fit
from havir_explorer.records import FloatArray, IntArray

OPTIONS = Options(
    structural=StructuralSizes(width=12, maps=4, channels=8),
    semantic=SemanticSizes(width=12),
    batch=16,
    check_every=5,
    held_out=0.2,
    repair_latents=1.0,
)


class BlindToTest(SmallWorld):
    """The small world, but whoever reads a test image's response gets nothing that could be computed with."""

    def responses(self, subject: str, trials: IntArray) -> FloatArray:
        found = super().responses(subject, trials).copy()
        found[self.trials(subject).loc[trials, "shared"].to_numpy()] = np.nan
        return found


@pytest.fixture(scope="module")
def targets() -> Targets:
    return build(SmallWorld(), np.arange(TRAIN + TEST), SmallEncoder())


def test_the_gain_comes_from_unseen_pairs_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    target, held = torch.randn(400, 3, 2, generator=rng), torch.arange(400) % 4 == 0
    predicted = 0.5 * target
    honest = Repair((3, 2), (3, 1)).fit([(predicted, target, held)], 1.0)
    learnt_by_heart = torch.where(held[:, None, None], predicted, 7 * target - 3)
    boasting = Repair((3, 2), (3, 1)).fit([(learnt_by_heart, target, held)], 1.0)
    assert torch.equal(boasting.gain, honest.gain)
    assert honest.gain.flatten().tolist() == pytest.approx([2, 2, 2], rel=1e-4)
    assert not torch.allclose(boasting.predicted_mean, honest.predicted_mean)


def test_the_gain_is_of_the_spread_whatever_the_unseen_pairs_mean() -> None:
    rng = torch.Generator().manual_seed(1)
    target, held = torch.randn(400, 2, 2, generator=rng), torch.arange(400) < 100
    target[held] += 5
    repair = Repair((2, 2), (2, 1)).fit([(0.25 * target + 1, target, held)], 1.0)
    assert repair.gain.flatten().tolist() == pytest.approx([4, 4], rel=1e-4)


def test_in_batches_it_is_the_same_repair() -> None:
    rng = torch.Generator().manual_seed(2)
    predicted, target, held = torch.randn(50, 3, 2, generator=rng), torch.randn(50, 3, 2, generator=rng), torch.arange(50) % 3 == 0
    whole = Repair((3, 2), (3, 1), normalise=True).fit([(predicted, target, held)], 1.0)
    parts = Repair((3, 2), (3, 1), normalise=True).fit(zip(predicted.split(7), target.split(7), held.split(7), strict=True), 1.0)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_no_test_image_enters_weights_or_repair(targets: Targets, tmp_path: Path) -> None:
    test = targets.nsd_ids >= TRAIN
    hollow = replace(targets, **{name: getattr(targets, name).copy() for name in ("latents", "image_embeds", "text_embeds")})
    for values in (hollow.latents, hollow.image_embeds, hollow.text_embeds):
        values[test] = np.nan
    full = fit(SmallWorld(), "subj01", targets, tmp_path / "full", steps=10, options=OPTIONS).state_dict()
    blind = fit(BlindToTest(), "subj01", hollow, tmp_path / "blind", steps=10, options=OPTIONS).state_dict()
    assert np.isnan(BlindToTest().responses("subj01", np.array([TRAIN]))).all()
    assert all(torch.equal(full[name], blind[name]) for name in full)
    repaired = [name for name in full if "repair" in name and name.endswith("gain")]
    assert len(repaired) == 3
    assert all(not torch.equal(full[name], torch.ones_like(full[name])) for name in repaired[:2])


def test_repair_takes_out_a_length_that_training_did_not_see() -> None:
    rng = torch.Generator().manual_seed(5)
    target = torch.randn(500, 3, 2, generator=rng) + 4
    lengths = torch.rand(500, 1, 1, generator=rng) + 0.5
    repair = Repair((3, 2), (3, 1), normalise=True).fit([(lengths * target, target, torch.arange(500) < 100)], 1.0)
    assert torch.allclose(repair(7 * target), repair(target), atol=1e-4)
    assert float(functional.cosine_similarity(repair(lengths * target).flatten(1), target.flatten(1)).min()) > 0.99
