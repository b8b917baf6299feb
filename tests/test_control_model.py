"""A decoder both of whose branches read all voxels: trained, stored, and true to it in everything that reads its masks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import OTHER, SPATIAL, TEST, TRAIN, VOXELS, SmallEncoder, SmallWorld

from havir_explorer import attribute, masks
from havir_explorer.app.world import World
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes
from havir_explorer.decode.options import Options
from havir_explorer.decode.split import Choice
from havir_explorer.decode.targets import Targets, build
from havir_explorer.decode.train import fit
from havir_explorer.errors import Cancelled, WeightsInvalid
from havir_explorer.records import Mask

OPTIONS = Options(
    structural=StructuralSizes(width=12, maps=4, channels=8),
    semantic=SemanticSizes(width=12),
    batch=16,
    check_every=10,
    save_every=5,
    held_out=0.2,
    choice=Choice(name="all"),
    mixco=0.5,
)
READ = VOXELS - OTHER


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return SmallWorld()


@pytest.fixture(scope="module")
def targets(world: SmallWorld) -> Targets:
    return build(world, np.arange(TRAIN + TEST), SmallEncoder())


@pytest.fixture(scope="module")
def trained(world: SmallWorld, targets: Targets, tmp_path_factory: pytest.TempPathFactory) -> tuple[Havir, Path]:
    folder = tmp_path_factory.mktemp("all")
    return fit(world, "subj01", targets, folder, steps=20, seed=3, options=OPTIONS), folder


def test_a_lesion_moves_both_branches(world: SmallWorld, trained: tuple[Havir, Path]) -> None:
    responses, atlas = world.responses("subj01", np.arange(4)), world.atlas("subj01")
    whole = trained[0].decode(responses)
    for name in ("V1", "FFA-1"):
        lesioned = trained[0].decode(masks.apply(responses, Mask(mute=(name,)), atlas))
        assert not np.allclose(lesioned.latents, whole.latents, atol=1e-5)
        assert not np.allclose(lesioned.image_embeds, whole.image_embeds, atol=1e-5)
        assert masks.reach(Mask(mute=(name,)), atlas, trained[0].spatial, trained[0].semantic) == ("structural", "semantic")


def test_voxels_that_neither_branch_reads_change_nothing(world: SmallWorld, trained: tuple[Havir, Path]) -> None:
    responses = world.responses("subj01", np.arange(4))
    without = responses.copy()
    without[:, READ:] = 9
    assert np.array_equal(trained[0].decode(without).latents, trained[0].decode(responses).latents)
    assert np.array_equal(trained[0].decode(without).text_embeds, trained[0].decode(responses).text_embeds)


def test_both_branches_have_a_contribution_of_every_voxel_they_read(world: SmallWorld, trained: tuple[Havir, Path]) -> None:
    for branch in ("structural", "semantic"):
        found = attribute.contribution(trained[0], branch)
        assert np.flatnonzero(np.isfinite(found.values)).tolist() == list(range(READ))
        table = attribute.roi_table(found, world.atlas("subj01"), world.ncsnr("subj01"), np.array([3]))
        both = table[table["hemisphere"] == "both"].set_index("roi")
        assert both["n_in_branch"].to_dict() == {"V1v": 10, "V1d": 10, "hV4": 20, "FFA-1": 10, "nsdgeneral": 85}


def test_a_control_is_drawn_from_all_voxels_of_the_branch(world: SmallWorld, trained: tuple[Havir, Path]) -> None:
    atlas, reached = world.atlas("subj01"), np.zeros(VOXELS, np.bool_)
    for seed in range(60):
        drawn = masks.control("FFA-1", atlas, trained[0].spatial, seed)
        assert int(drawn.sum()) == 10
        assert not (drawn & atlas.voxels("FFA-1")).any()
        reached |= drawn
    assert np.array_equal(reached, trained[0].spatial & ~atlas.voxels("FFA-1"))


def test_the_choice_is_stored_and_read_back(trained: tuple[Havir, Path]) -> None:
    havir, folder = trained
    again = Havir.load(folder)
    assert "| mixco | 0.5 |" in (folder / "card.md").read_text()
    assert again.manifest.record.versions[0][0] == "python"
    assert again.manifest.choice == Choice(name="all")
    assert again.manifest.split.startswith("both branches: nsdgeneral")
    assert (again.manifest.n_spatial, again.manifest.n_semantic) == (READ, READ)
    assert np.array_equal(again.spatial, havir.spatial)
    assert np.array_equal(again.semantic, again.spatial)


def test_weights_of_another_split_are_refused(world: SmallWorld, targets: Targets, trained: tuple[Havir, Path], tmp_path: Path) -> None:
    fit(world, "subj01", targets, tmp_path, steps=1, options=replace(OPTIONS, choice=Choice()))
    (tmp_path / "manifest.json").write_bytes((trained[1] / "manifest.json").read_bytes())
    with pytest.raises(WeightsInvalid, match=f"spatial mask .* does not choose {READ} of {VOXELS} voxels as manifest.json says; the files are of two decoders"):
        Havir.load(tmp_path)
    assert SPATIAL != READ


def test_a_run_with_mixing_resumes_to_the_same_weights(world: SmallWorld, targets: Targets, trained: tuple[Havir, Path], tmp_path: Path) -> None:
    def stop(share: float, text: str) -> None:
        if share >= 0.35:  # within the mixed half, past a checkpoint
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(world, "subj01", targets, tmp_path, steps=20, seed=3, options=OPTIONS, progress=stop)
    resumed = fit(world, "subj01", targets, tmp_path, steps=20, seed=3, options=OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(trained[0].state_dict().values(), resumed.state_dict().values(), strict=True))


def test_mixing_changes_what_is_learnt(world: SmallWorld, targets: Targets, trained: tuple[Havir, Path], tmp_path: Path) -> None:
    plain = fit(world, "subj01", targets, tmp_path, steps=20, seed=3, options=replace(OPTIONS, mixco=0.0))
    assert not torch.equal(plain.semantic_extractor.to_image.weight, trained[0].semantic_extractor.to_image.weight)


def test_a_checkpoint_of_another_choice_is_not_resumed(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    def stop(share: float, text: str) -> None:
        if share >= 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(world, "subj01", targets, tmp_path, steps=20, options=OPTIONS, progress=stop)
    with pytest.raises(WeightsInvalid, match="of a run with other options"):
        fit(world, "subj01", targets, tmp_path, steps=20, options=replace(OPTIONS, choice=Choice(name="all", rois=("V1", "FFA-1"))))


def test_the_app_goes_by_the_manifest_before_the_weights_are_loaded(trained: tuple[Havir, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Measured(SmallWorld):
        synthetic = False

    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path))
    shutil.copytree(trained[1], tmp_path / "havir" / "small" / "subj01")
    (tmp_path / "havir" / "small" / "subj01" / "model.safetensors").unlink()
    shown = World(Measured())
    assert all(np.array_equal(voxels, trained[0].spatial) for voxels in shown.split("subj01"))
    spatial, semantic = shown.split("subj02")  # which has no decoder: the default
    assert not (spatial & semantic).any()
    (tmp_path / "havir" / "small" / "subj01" / "manifest.json").write_text("{half")
    assert not np.logical_and(*shown.split("subj01")).any()
