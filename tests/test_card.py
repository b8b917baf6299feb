"""The model card says what the manifest says, and what the files are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from small_world import SmallWorld

from havir_explorer.decode import card
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.manifest import Manifest, Record, SemanticSizes, StructuralSizes, voxel_hash
from havir_explorer.decode.options import Options
from havir_explorer.decode.split import Choice, choose
from havir_explorer.errors import OutputError, WeightsMissing
from havir_explorer.paths import shipped_weights

RECORD = Record(
    steps=400,
    seed=7,
    seconds=61.5,
    date="2026-01-02",
    device="cpu",
    training_images=72,
    held_out_images=18,
    held_out_loss_structural=0.24681,
    held_out_loss_semantic=150.75,
    best_step_structural=300,
    best_step_semantic=350,
    caption_target="first",
    hyper_parameters=Options(batch=48, mixco=0.25).listed(),
    versions=card.versions(),
)


def saved(folder: Path, choice: Choice | None = None, record: Record = RECORD) -> Manifest:
    world = SmallWorld()
    split = choose(world.atlas("subj01"), choice)
    manifest = Manifest(
        subject="subj01",
        dataset=world.name,
        convention=world.convention,
        split=split.words,
        choice=split.choice,
        voxel_hash=voxel_hash(world.geometry("subj01").flat_index),
        n_voxels=len(split.spatial),
        n_spatial=int(split.spatial.sum()),
        n_semantic=int(split.semantic.sum()),
        latent_shape=(4, 8, 8),
        image_shape=(5, 6),
        text_shape=(4, 6),
        structural=StructuralSizes(width=24, maps=4, channels=8),
        semantic=SemanticSizes(width=20),
        train_nsd_ids=tuple(range(90)),
        generator=(1.0, 2.0, 3.0),
        record=record,
    )
    Havir.fresh(manifest, split.spatial, split.semantic, torch.Generator().manual_seed(0)).save(folder)
    return manifest


def test_the_card_says_what_the_manifest_says(tmp_path: Path) -> None:
    manifest = saved(tmp_path)
    said = card.write(tmp_path).read_text()
    assert said.startswith("# HAVIR decoder of subj01, small\n")
    for row in (
        "| responses | z-scored |",
        f"| split | default: {manifest.split} |",
        "| voxels of the Structural Generator | 40 |",
        "| voxels of the Semantic Extractor | 50 |",
        "| latents | 4 x 8 x 8 |",
        "| Structural Generator, width | 24 |",
        "| Semantic Extractor, width | 20 |",
        "| steps | 400 |",
        "| seconds | 61.5 |",
        "| device | cpu |",
        "| training images | 72 |",
        "| held out images | 18 |",
        "| held out loss structural | 0.24681 |",
        "| best step semantic | 350 |",
        "| caption target | first |",
        "| batch | 48 |",
        "| mixco | 0.25 |",
        f"| torch | {torch.__version__.split('+')[0]}",
        f"| voxels, SHA-256 of their indices | {manifest.voxel_hash} |",
    ):
        assert row in said, row
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() in said


def test_the_card_says_what_the_decoder_is_not_for(tmp_path: Path) -> None:
    saved(tmp_path)
    limits = card.write(tmp_path).read_text().split("## Not for")[1]
    for words in ("Other subjects", "the 90 pictures", "Another autoencoder", "so by construction", "terms of the data set"):
        assert words in limits
    assert "simulated" not in limits


def test_the_control_models_card_calls_it_one(tmp_path: Path) -> None:
    saved(tmp_path, Choice(name="all"))
    said = card.write(tmp_path).read_text()
    assert "| voxels of the Semantic Extractor | 90 |" in said
    assert "this decoder is a control" in said
    assert "by construction" not in said


def test_chosen_rois_are_named(tmp_path: Path) -> None:
    saved(tmp_path, Choice(rois=("V1", "FFA-1")))
    assert "of these only V1, FFA-1 |" in card.write(tmp_path).read_text()


def test_what_was_not_recorded_is_said_to_be_missing(tmp_path: Path) -> None:
    saved(tmp_path, record=Record())
    said = card.write(tmp_path).read_text()
    assert "| versions | not recorded |" in said
    assert "| date | not recorded |" in said
    assert "Hyper-parameters" not in said


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_card_needs_both_files(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(WeightsMissing, match=name.replace(".", r"\.")):
        card.write(tmp_path)


def test_a_card_that_cannot_be_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match=r"cannot write card\.md .* No space left"):
        card.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.safetensors"]


def test_where_a_training_started_is_said_when_it_started_elsewhere(tmp_path: Path) -> None:
    saved(tmp_path)
    alone = card.write(tmp_path).read_text()
    assert "started from" not in alone
    assert "trunk of" not in alone
    assert "| image source | stimulus |" in alone
    saved(tmp_path, record=RECORD.model_copy(update={"started_from": "subj02 of small, trunk frozen", "trunk_of": ("subj01", "subj03")}))
    said = card.write(tmp_path).read_text()
    assert "| started from | subj02 of small, trunk frozen |" in said
    assert "| trunk of | subj01, subj03 |" in said


@pytest.mark.parametrize("subject", ["subj01", "subj02"])
@pytest.mark.parametrize("method", ["havir", "linear"])
def test_the_shipped_decoders_cards_are_of_their_files(method: str, subject: str) -> None:
    folder = shipped_weights() / method / subject
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (folder / "card.md").read_text(encoding="utf-8") == card.text(manifest, digest)
    assert "responses of this data set are simulated" in card.text(manifest, digest)
