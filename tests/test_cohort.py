"""Several subjects, one trunk; and a new subject that starts from another's."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import fit_branches
from small_world import TEST, TRAIN, SmallEncoder, SmallWorld

from havir_explorer.data.dataset import Atlas, Geometry, Roi
from havir_explorer.decode import branches, files, targets
from havir_explorer.decode.cohort import Start, fit_cohort
from havir_explorer.decode.enrol import Member
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.manifest import SemanticSizes, StructuralSizes
from havir_explorer.decode.options import Options
from havir_explorer.decode.trunk import is_own
from havir_explorer.errors import RequestError, WeightsInvalid

pytestmark = pytest.mark.slow
OPTIONS = Options(
    structural=StructuralSizes(width=24, blocks=1, dropout=0.1, block_dropout=0.1, maps=4, channels=8),
    semantic=SemanticSizes(width=24, blocks=1, dropout=0.1, block_dropout=0.1),
    batch=32,
    check_every=20,
    save_every=20,
    held_out=0.2,
)
WHOLE = 240


class OtherVoxels(SmallWorld):
    """The same pictures seen by a second brain: some voxels less, and each picture's responses to another presentation."""

    def __init__(self, less: int = 7) -> None:
        super().__init__(seed=0, noise=0.3)
        self._order = np.sort(np.random.default_rng(5).permutation(self._responses.shape[1])[less:])
        self._responses = np.roll(self._responses, 3, axis=0)[:, self._order]
        self._trials = self._trials.assign(nsd_id=np.roll(self._trials["nsd_id"], 3), shared=np.roll(self._trials["shared"], 3))

    def atlas(self, subject: str) -> Atlas:
        whole = super().atlas(subject)
        rois = tuple(Roi(roi.name, roi.file, roi.voxels[self._order]) for roi in whole.rois)
        return Atlas(rois, whole.right[self._order])

    def geometry(self, subject: str) -> Geometry:
        place = super().geometry(subject)
        return Geometry(place.flat_index[self._order], place.shape, place.affine)


@pytest.fixture(scope="module")
def source() -> targets.Targets:
    world = SmallWorld()
    return targets.build(world, np.arange(102), SmallEncoder())


def members(folder: Path) -> tuple[Member, ...]:
    return Member(SmallWorld(), "subj01", folder / "subj01"), Member(OtherVoxels(), "subj02", folder / "subj02")


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    fit_cohort(members(folder), source, folder, steps=WHOLE, options=OPTIONS)
    return folder


@pytest.fixture(scope="module")
def cohort(trained) -> tuple[Member, ...]:
    return members(trained)


def test_subjects_share_all_but_input_layer_and_repairs(trained):
    one, other = (files.read(trained / subject) for subject in ("subj01", "subj02"))
    assert one.tensors.keys() == other.tensors.keys()
    trunk = [name for name in one.tensors if not is_own(name.partition(".")[2])]
    assert {name.split(".")[1] for name in trunk} >= {"stem", "blocks", "to_maps", "upsample", "to_image", "to_text"}
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in trunk)
    inputs = [decoder.tensors["semantic_extractor.stem.0.weight"] for decoder in (one, other)]
    assert inputs[0].shape[1] == one.manifest.n_semantic != other.manifest.n_semantic == inputs[1].shape[1]


def test_each_decoder_runs_alone_and_knows_every_picture_the_trunk_has_seen(trained, cohort):
    for member in cohort:
        havir = Havir.load(trained / member.subject)
        havir.manifest.check(member.dataset, member.subject)
        decoded = havir.decode(member.dataset.responses(member.subject, np.arange(4)))
        assert decoded.latents.shape == (4, 4, 8, 8)
        seen = {int(n) for m in cohort for n in m.dataset.trials(m.subject).query("~shared")["nsd_id"]}
        assert set(havir.manifest.train_nsd_ids) == seen
        assert (trained / member.subject / "card.md").is_file()


def test_both_subjects_learn(trained, cohort, source):
    test = np.arange(TRAIN, TRAIN + TEST)
    for member in cohort:
        seen = member.dataset.trials(member.subject)["nsd_id"].to_numpy()
        responses = np.stack([member.dataset.responses(member.subject, np.flatnonzero(seen == n)).mean(0) for n in test])
        decoded = Havir.load(trained / member.subject).decode(responses)
        left = (decoded.latents - source.latents[test])[:, :3, :, :4].mean((2, 3))
        assert np.sqrt((left**2).mean()) < 0.4, member.subject  # the colours' own spread is 0.58
        image, true = (tokens - source.image_embeds.mean(0) for tokens in (decoded.image_embeds, source.image_embeds[test]))
        assert np.corrcoef(image.ravel(), true.ravel())[0, 1] > 0.8, member.subject


def test_an_interrupted_cohort_ends_at_the_same_weights(trained, source, tmp_path):
    def stop(share: float, line: str) -> None:
        if share > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_cohort(members(tmp_path), source, tmp_path, steps=WHOLE, options=OPTIONS, progress=stop)
    fit_cohort(members(tmp_path), source, tmp_path, steps=WHOLE, options=OPTIONS)
    for subject in ("subj01", "subj02"):
        one, other = files.read(trained / subject).tensors, files.read(tmp_path / subject).tensors
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_frozen_trunk_stays_and_a_free_one_moves(trained, source, tmp_path):
    there = files.read(trained / "subj01").tensors
    for freeze in (True, False):
        start = Start(trained / "subj01", freeze=freeze)
        fit_branches(OtherVoxels(11), "subj02", source, tmp_path / str(freeze), steps=20, options=OPTIONS, start=start)
        mine = files.read(tmp_path / str(freeze)).tensors
        same = [torch.equal(mine[name], there[name]) for name in mine if not is_own(name.partition(".")[2])]
        assert all(same) if freeze else sum(same) < len(same) / 2


def test_a_start_helps_a_subject_with_little_data(trained, source, tmp_path):
    few = OtherVoxels(11)
    few._trials = few._trials.assign(session=1 + (few._trials["nsd_id"] >= 30))
    losses = [
        fit_branches(few, "subj02", source, tmp_path / str(bool(start)), steps=20, options=replace(OPTIONS, sessions=1), start=start).record
        for start in (None, Start(trained / "subj01", freeze=True))
    ]
    assert losses[1].held_out_loss_structural < losses[0].held_out_loss_structural


def test_a_fine_tuned_decoder_has_seen_what_its_trunk_has_seen(trained, source, tmp_path):
    few = OtherVoxels(11)
    few._trials = few._trials.assign(session=1 + (few._trials["nsd_id"] >= 30))
    options = replace(OPTIONS, sessions=1)
    manifest = fit_branches(few, "subj02", source, tmp_path, steps=2, options=options, start=Start(trained / "subj01", freeze=False))
    assert set(files.read_manifest(trained / "subj01").train_nsd_ids) <= set(manifest.train_nsd_ids)
    assert manifest.record.training_images + manifest.record.held_out_images == few.trials("subj02").query("~shared & session == 1")["nsd_id"].nunique()
    assert "subj01" in manifest.record.started_from


def test_a_trunk_of_other_sizes_is_refused(trained, source, tmp_path):
    wider = replace(OPTIONS, structural=StructuralSizes(width=48, maps=4, channels=8))
    with pytest.raises(WeightsInvalid, match="structural branch of subj02 cannot start from the decoder of subj01, which differs in structural"):
        fit_branches(OtherVoxels(), "subj02", source, tmp_path, steps=2, options=wider, start=Start(trained / "subj01"))


def test_two_trunks_are_in_memory_at_most(source, tmp_path, monkeypatch):
    made, alive, plain, third = [], [], branches.fresh, OtherVoxels(11)
    third.root = Path("third")

    def fresh(*asked):
        module = plain(*asked)
        made.append(weakref.ref(module.get_submodule("blocks")))
        alive.append(sum(one() is not None for one in made))
        return module

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(branches, "fresh", fresh)
    monkeypatch.setattr(branches, "start", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_cohort((*members(tmp_path), Member(third, "subj02", tmp_path)), source, tmp_path, steps=2, options=OPTIONS)
    assert alive == [1, 2, 2]


def test_a_cohort_needs_two_different_subjects(source, cohort, tmp_path):
    with pytest.raises(RequestError, match="subj01 is named twice"):
        fit_cohort((cohort[0], cohort[0]), source, tmp_path, steps=2, options=OPTIONS)
