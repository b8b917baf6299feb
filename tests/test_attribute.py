"""Contributions per voxel and ROI, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from small_world import SEMANTIC, SPATIAL, VOXELS, SmallWorld

from havir_explorer import attribute
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.manifest import Manifest, Record, SemanticSizes, StructuralSizes
from havir_explorer.decode.split import default_split
from havir_explorer.errors import RequestError
from havir_explorer.records import Contribution

REPEATS = np.array([3])


@pytest.fixture
def havir() -> Havir:
    spatial, semantic = default_split(SmallWorld().atlas("subj01"))
    manifest = Manifest(
        subject="subj01",
        dataset="small",
        convention="",
        split="",
        voxel_hash="",
        n_voxels=VOXELS,
        n_spatial=SPATIAL,
        n_semantic=SEMANTIC,
        latent_shape=(4, 8, 8),
        image_shape=(5, 6),
        text_shape=(4, 6),
        structural=StructuralSizes(width=8),
        semantic=SemanticSizes(width=8),
        train_nsd_ids=(),
        record=Record(),
    )
    return Havir.fresh(manifest, spatial, semantic, torch.Generator().manual_seed(0))


def test_contribution_is_the_percentile_of_the_first_layers_column_norm(havir: Havir) -> None:
    weight = havir.structural_generator.stem[0].weight
    with torch.no_grad():
        weight.zero_()
        weight[0] = torch.arange(SPATIAL).float()
        weight[1, :2] = 0.5  # lifts voxel 0 above nothing, and no other's rank
    found = attribute.contribution(havir, "structural")
    assert (found.branch, found.method) == ("structural", "weights")
    assert np.allclose(found.values[:SPATIAL], np.arange(SPATIAL) / (SPATIAL - 1))
    assert np.isnan(found.values[SPATIAL:]).all()


def test_contribution_of_the_semantic_branch_has_its_own_voxels(havir: Havir) -> None:
    found = attribute.contribution(havir, "semantic").values
    assert np.flatnonzero(np.isfinite(found)).tolist() == list(range(SPATIAL, SPATIAL + SEMANTIC))
    assert (np.nanmin(found), np.nanmax(found)) == (0, 1)


def test_voxels_of_equal_weight_share_their_rank(havir: Havir) -> None:
    with torch.no_grad():
        havir.semantic_extractor.stem[0].weight.fill_(0.1)
    assert np.allclose(attribute.contribution(havir, "semantic").values[SPATIAL : SPATIAL + SEMANTIC], 0.5)


def test_an_unknown_branch_is_refused(havir: Havir) -> None:
    with pytest.raises(RequestError, match="got 'temporal'"):
        attribute.contribution(havir, "temporal")  # type: ignore[arg-type]


def test_noise_ceilings_are_those_of_the_repeats_averaged() -> None:
    world, found = SmallWorld(), Contribution("structural", "weights", np.zeros(VOXELS, np.float32))
    one, three = (attribute.roi_table(found, world.atlas("subj01"), np.ones(VOXELS, np.float32), np.array([k]))["noise_ceiling"] for k in (1, 3))
    assert np.allclose(one, 50)
    assert np.allclose(three, 75)


def test_roi_table_by_hand() -> None:
    world = SmallWorld()
    values = np.full(VOXELS, np.nan, np.float32)
    values[:SPATIAL] = np.linspace(0, 1, SPATIAL)
    table = attribute.roi_table(Contribution("structural", "weights", values), world.atlas("subj01"), world.ncsnr("subj01"), REPEATS)
    assert tuple(table.columns) == attribute.COLUMNS
    row = table[(table.roi == "V1d") & (table.hemisphere == "rh")].iloc[0]
    right = np.arange(11, 20, 2)
    assert (row.file, row.n_voxels, row.n_in_branch) == ("prf-visualrois", 5, 5)
    assert row["mean"] == pytest.approx(values[right].mean())
    assert row["sem"] == pytest.approx(stats.sem(values[right]))
    assert row["noise_ceiling"] == pytest.approx(attribute.noise_ceiling(world.ncsnr("subj01"), REPEATS)[right].mean(), rel=1e-5)
    face = table[(table.roi == "FFA-1") & (table.hemisphere == "both")].iloc[0]
    assert (face.n_voxels, face.n_in_branch) == (10, 0)
    assert np.isnan(face["mean"])
    whole = table[(table.roi == "nsdgeneral") & (table.hemisphere == "both")].iloc[0]
    assert (whole.n_voxels, whole.n_in_branch) == (SPATIAL + SEMANTIC - 5, SPATIAL)


def test_a_hemisphere_without_voxels_is_left_out() -> None:
    world = SmallWorld()
    atlas = world.atlas("subj01")
    left_only = type(atlas)(atlas.rois, np.zeros(VOXELS, np.bool_))
    table = attribute.roi_table(Contribution("structural", "weights", np.zeros(VOXELS, np.float32)), left_only, world.ncsnr("subj01"), REPEATS)
    assert set(table.hemisphere) == {"both", "lh"}


def test_arguments_of_different_subjects_are_refused() -> None:
    world = SmallWorld()
    with pytest.raises(RequestError, match="one voxel count"):
        attribute.roi_table(Contribution("structural", "weights", np.zeros(3, np.float32)), world.atlas("subj01"), world.ncsnr("subj01"), REPEATS)
