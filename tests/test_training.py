"""The training loop: what stops it, what it survives, and that it ends where it would have ended."""

from __future__ import annotations

import dataclasses
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_training
import torch
from safetensors.torch import load_file
from small_training import OPTIONS, STEPS, fit_branches, small_targets
from small_world import SPATIAL, TEST, TRAIN, VOXELS, SmallWorld

from havir_explorer.decode import branches, cost, files
from havir_explorer.decode.curve import TENSORBOARD, curve
from havir_explorer.decode.enrol import BOTH
from havir_explorer.decode.havir import Havir
from havir_explorer.decode.machine import Machine
from havir_explorer.decode.objectives import OBJECTIVES, Structural
from havir_explorer.decode.pairs import Learner, Lesson, draw, pair
from havir_explorer.decode.run import Plan, Run, checkpoint
from havir_explorer.decode.samples import collect
from havir_explorer.decode.targets import Targets
from havir_explorer.decode.train import fit
from havir_explorer.errors import DataInvalid, OutputError, RequestError, TrainingDiverged, WeightsInvalid, WeightsMissing


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return SmallWorld()


@pytest.fixture(scope="module")
def targets(world: SmallWorld) -> Targets:
    return small_targets(world)


@pytest.fixture(scope="module")
def whole(world: SmallWorld, targets: Targets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    fit_branches(world, "subj01", targets, folder, steps=STEPS, seed=5, options=OPTIONS)
    return folder


def same(one: Path, other: Path) -> None:
    """Weights and curves are equal bit for bit."""
    for branch in BOTH:
        assert curve(one, branch).read_bytes() == curve(other, branch).read_bytes()
    a, b = (load_file(folder / files.WEIGHTS) for folder in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# stopped and taken up


@pytest.mark.slow
def test_a_training_killed_twice_ends_at_the_same_weights_and_curve(whole: Path, tmp_path: Path) -> None:
    """Processes of their own, at steps drawn afresh each time: the first kill in the structural branch, the second in the semantic one."""
    first, second = random.Random().randint(1, STEPS), random.Random().randint(1, STEPS - 1)
    saved = first if first == STEPS else first - first % OPTIONS.save_every
    kills = [str(first), str(STEPS - saved + second), "0"]
    done = subprocess.run([sys.executable, Path(__file__).with_name("small_training.py"), tmp_path, *kills], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{kills}: {done.stderr}"
    same(whole, tmp_path)
    assert not checkpoint(tmp_path, "structural").exists()


def test_the_curve_holds_every_look(whole: Path) -> None:
    lines = curve(whole, "semantic").read_text().splitlines()
    assert lines[0] == "step,training_loss,held_out_loss,learning_rate"
    assert [int(line.split(",")[0]) for line in lines[1:]] == [4, 8, 12, 14]
    best = min(float(line.split(",")[2]) for line in lines[1:])
    assert best == files.read_manifest(whole).record.held_out_loss_semantic


def test_no_better_look_stops_a_branch_at_its_best_weights(world: SmallWorld, targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([5.0, 3.0, 4.0, 3.5, 0.0])
    monkeypatch.setattr(Run, "held_out_loss", lambda _: next(looks))
    options = replace(OPTIONS, patience=2, check_every=2)
    manifest = fit_branches(world, "subj01", targets, tmp_path, branches=("structural",), steps=100, options=options)
    assert manifest.record.best_step_structural == 4
    assert len(curve(tmp_path, "structural").read_text().splitlines()) == 1 + 4


# one branch


def test_a_branch_trained_alone_has_the_weights_it_has_in_company(world: SmallWorld, targets: Targets, whole: Path, tmp_path: Path) -> None:
    for branch in BOTH:
        fit_branches(world, "subj01", targets, tmp_path, branches=(branch,), steps=STEPS, seed=5, options=OPTIONS)
    same(whole, tmp_path)
    one, other = (files.read_manifest(folder) for folder in (whole, tmp_path))
    changing = {"seconds": 0.0}
    assert one.record.model_copy(update=changing) == other.record.model_copy(update=changing)


def test_branches_trained_at_the_same_time_into_one_folder_are_both_there(world: SmallWorld, targets: Targets, whole: Path, tmp_path: Path) -> None:
    """As on two GPUs: the other one begins later and ends earlier."""

    def meanwhile(share: float, line: str) -> None:
        if line.startswith("structural step 2 "):
            fit_branches(world, "subj01", targets, tmp_path, branches=("semantic",), steps=STEPS, seed=5, options=OPTIONS)

    fit_branches(world, "subj01", targets, tmp_path, branches=("structural",), steps=STEPS, seed=5, options=OPTIONS, progress=meanwhile)
    same(whole, tmp_path)
    assert files.read_manifest(tmp_path).record.held_out_loss_semantic == files.read_manifest(whole).record.held_out_loss_semantic


def test_a_second_training_of_a_branch_is_kept_out_of_its_folder(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    asked = {"branches": ("structural",), "steps": 4, "options": OPTIONS}

    def again(share: float, line: str) -> None:
        with pytest.raises(OutputError, match=r"another havir train is training the structural branch in .*; wait for it to end, or give another folder"):
            fit_branches(world, "subj01", targets, tmp_path, **asked)

    fit_branches(world, "subj01", targets, tmp_path, **asked, progress=again)
    assert not list(tmp_path.glob(".*"))


def test_a_decoder_with_one_branch_is_not_loaded(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    fit_branches(world, "subj01", targets, tmp_path, branches=("structural",), steps=2, options=OPTIONS)
    with pytest.raises(WeightsMissing, match=r"has no semantic branch yet.*havir train --subject subj01 --branch semantic"):
        Havir.load(tmp_path)


def test_training_one_branch_leaves_the_other_as_it_was(world: SmallWorld, targets: Targets, whole: Path, tmp_path: Path) -> None:
    parts = files.read(whole)
    files.write(tmp_path, parts)
    wider = OPTIONS.structural.model_copy(update={"width": 20})
    fit_branches(world, "subj01", targets, tmp_path, branches=("structural",), steps=3, options=replace(OPTIONS, structural=wider))
    before, after = (load_file(folder / files.WEIGHTS) for folder in (whole, tmp_path))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("semantic_extractor."))
    assert Havir.load(tmp_path).manifest.structural.width == 20


def test_a_branch_does_not_join_that_of_another_decoder(world: SmallWorld, targets: Targets, whole: Path, tmp_path: Path) -> None:
    files.write(tmp_path, dataclasses.replace(files.read(whole), manifest=files.read_manifest(whole).model_copy(update={"convention": "raw"})))
    with pytest.raises(WeightsInvalid, match=r"the semantic branch in .* is of another decoder \(convention differ"):
        fit_branches(world, "subj01", targets, tmp_path, branches=("structural",), steps=2, options=OPTIONS)


# what goes wrong


class Spoilt(SmallWorld):
    """One trial of picture 11 holds a value that is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self._responses[11, 3] = math.nan


def test_responses_that_are_no_numbers_stop_training_by_name(targets: Targets, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"structural branch of subj01 stopped at step \d+.* the responses to nsd_id 11 hold values that are not finite"):
        fit_branches(Spoilt(), "subj01", targets, tmp_path, steps=200, options=OPTIONS)


def test_a_picture_with_fewer_repeats_reads_its_own_alone() -> None:
    """The first trial is of picture 0; what it holds is nobody else's."""
    world = SmallWorld()
    world._trials = world.trials("subj01").drop(index=[5, 5 + TRAIN + TEST])  # picture 5 keeps one of its three
    world._responses[0] = np.nan
    samples, five = collect(world, "subj01", np.arange(TRAIN)), torch.tensor([5])
    everything = np.ones(VOXELS, np.bool_)
    kept = world.responses("subj01", np.array([5 + 2 * (TRAIN + TEST)]))
    assert np.array_equal(samples.mix(samples.means(five), five, samples.columns(everything)).numpy(), kept)
    assert np.array_equal(samples.averages(everything)[5:6].numpy(), kept)


@pytest.fixture
def spoilt(targets: Targets) -> Targets:
    """Targets of which one holds a value that is no number."""
    images = targets.image_embeds.copy()
    images[7, 0, 0] = np.inf
    return replace(targets, image_embeds=images)


def test_targets_that_are_no_numbers_are_refused_first(world: SmallWorld, spoilt: Targets, tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"semantic targets of nsd_id 7 \(subj01\) hold values that are not finite"):
        fit_branches(world, "subj01", spoilt, tmp_path, branches=("semantic",), steps=2, options=OPTIONS)


def test_targets_that_no_first_look_found_stop_training_by_name(world: SmallWorld, spoilt: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "start", lambda *_: None)
    with pytest.raises(TrainingDiverged, match=r"semantic branch .* because the targets of nsd_id 7 hold values"):
        fit_branches(world, "subj01", spoilt, tmp_path, branches=("semantic",), steps=200, options=OPTIONS)


def test_a_gradient_that_is_not_finite_keeps_the_last_checkpoint(
    world: SmallWorld, targets: Targets, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss alone would not tell: its gradient overflows first."""
    calls, plain = [0], Structural.loss

    def overflowing(self, predicted, target, options, mixing=None):
        calls[0] += predicted[0].requires_grad
        loss = plain(self, predicted, target, options, mixing)
        return loss + (0 * predicted[0].sum()).sqrt() if calls[0] == 8 and predicted[0].requires_grad else loss

    with monkeypatch.context() as patched:
        patched.setattr(Structural, "loss", overflowing)
        with pytest.raises(TrainingDiverged, match=r"stopped at step 8: its loss is .* but the gradient is not finite.*shown nsd_id .*--restart and a lower"):
            fit_branches(world, "subj01", targets, tmp_path, steps=STEPS, seed=5, options=OPTIONS)
    kept = torch.load(checkpoint(tmp_path, "structural"), weights_only=True)  # noqa: TID251 - our own
    assert kept["state"]["done"] == 6
    assert all(bool(value.isfinite().all()) for value in kept["weights"].values())
    fit_branches(world, "subj01", targets, tmp_path, steps=STEPS, seed=5, options=OPTIONS)
    same(whole, tmp_path)


def test_memory_that_runs_out_halves_what_is_shown_at_once(
    world: SmallWorld, targets: Targets, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch stays as large: its parts' gradients are summed, and the structural loss is the same mean."""
    said, shown, plain = list[str](), set[int](), Structural.loss

    def narrow(self, predicted, target, options, mixing=None):
        if predicted[0].requires_grad and len(predicted[0]) > 4:
            raise torch.OutOfMemoryError
        shown.add(len(predicted[0]))
        return plain(self, predicted, target, options, mixing)

    monkeypatch.setattr(Structural, "loss", narrow)
    no_chance = replace(OPTIONS, structural=OPTIONS.structural.model_copy(update={"dropout": 0.0, "block_dropout": 0.0}))
    fit_branches(world, "subj01", targets, tmp_path / "short", branches=("structural",), steps=6, options=no_chance, notice=said.append)
    monkeypatch.setattr(Structural, "loss", plain)
    fit_branches(world, "subj01", targets, tmp_path / "ample", branches=("structural",), steps=6, options=no_chance)
    assert 4 in shown
    halved = [line for line in said if "do not fit" in line]
    assert [line.split(" ", 1)[0] for line in halved] == ["16", "8"]
    assert "going on with 4, batches of 16 as before" in halved[1]
    short, ample = (load_file(tmp_path / name / files.WEIGHTS) for name in ("short", "ample"))
    assert all(torch.allclose(short[name].float(), ample[name].float(), atol=2e-3) for name in short)


def test_a_disk_without_room_is_said_before_anything_is_trained(world: SmallWorld, targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(Run, "loop", lambda *_, **__: pytest.fail("it trained first"))
    with pytest.raises(OutputError, match=r"training needs .* MB more in .* are free there"):
        fit_branches(world, "subj01", targets, tmp_path, steps=2, options=OPTIONS)


# number formats, subjects, processes


def test_bfloat16_learns_what_float32_learns(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    losses = {}
    for precision in ("no", "bf16"):
        options = replace(OPTIONS, precision=precision, mixco=0.0)
        losses[precision] = fit_branches(
            world, "subj01", targets, tmp_path / precision, branches=("structural",), steps=40, options=options
        ).record.held_out_loss_structural
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.1)
    assert losses["bf16"] != losses["no"]


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(RequestError, match="fp16 needs a CUDA GPU, but training runs on cpu"):
        Machine("cpu", "fp16")


def test_two_subjects_share_a_trunk(world: SmallWorld, targets: Targets, whole: Path, tmp_path: Path) -> None:
    """Each step draws one of them; both input layers and the one trunk learn."""
    objective, manifest = OBJECTIVES["semantic"], files.read_manifest(whole)
    samples, voxels = collect(world, "subj01", targets.nsd_ids), files.read(whole).semantic
    pairs = tuple(pair(samples, voxels, targets, 0.2, seed) for seed in (0, 1))
    first, second = (branches.fresh(objective, manifest, seed) for seed in (0, 1))
    second.stem = torch.nn.Sequential(second.stem[0], *first.stem[1:])
    second.blocks, second.to_image, second.to_text = first.blocks, first.to_image, first.to_text
    lesson, learner = Lesson(objective, pairs, targets), Learner(first, second)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    Run(lesson, learner, Plan(OPTIONS, 8, 0, "two"), Machine()).loop(tmp_path)
    branches.finish(lesson, learner, OPTIONS)
    drawn = {draw(pairs, 16, 0, objective.number, step, 1).subject for step in range(8)}
    assert drawn == {0, 1}
    changed = {name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])}
    assert {"subjects.0.stem.0.weight", "subjects.1.stem.0.weight", "subjects.0.blocks.0.body.0.weight"} <= changed
    assert torch.equal(first.to_text.weight, second.to_text.weight)
    assert not torch.equal(first.repair_image.gain, second.repair_image.gain)


def test_a_frozen_trunk_stays(world: SmallWorld, targets: Targets, whole: Path, tmp_path: Path) -> None:
    objective, parts = OBJECTIVES["structural"], files.read(whole)
    module = branches.fresh(objective, parts.manifest, 0)
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name == "stem.0.weight"
    before = {name: value.clone() for name, value in module.named_parameters()}
    one = pair(collect(world, "subj01", targets.nsd_ids), parts.spatial, targets, 0.2, 0)
    Run(Lesson(objective, (one,), targets), Learner(module), Plan(OPTIONS, 4, 0, "frozen"), Machine()).loop(tmp_path)
    assert [name for name, value in module.named_parameters() if not torch.equal(value, before[name])] == ["stem.0.weight"]


@pytest.mark.slow
def test_two_processes_learn_from_a_batch_what_one_learns(tmp_path: Path) -> None:
    """Each is shown a half of it; their gradients' mean is the whole batch's."""
    script = str(Path(__file__).with_name("small_training.py"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, str(tmp_path / "two"), "share"]
    said = subprocess.run(launcher, check=True, timeout=300, capture_output=True, text=True).stdout
    assert said.count("structural branch: ") == 1  # one of them speaks
    assert said.count("structural step 8 of 8") == 1
    assert files.read_manifest(tmp_path / "two").record.device == "2 x cpu"
    small_training.share(tmp_path / "one")
    curves = [[[float(n) for n in line.split(",")] for line in curve(tmp_path / n, "structural").read_text().splitlines()[1:]] for n in ("one", "two")]
    assert np.allclose(curves[0], curves[1], rtol=1e-4)
    one, two = (load_file(tmp_path / name / files.WEIGHTS) for name in ("one", "two"))
    shifts = ("upsample.0.bias", "body.2.bias", "body.5.bias", "past.bias")  # a GroupNorm follows, so their gradient is rounding alone, which Adam magnifies
    apart = {name: float((one[name].float() - two[name].float()).abs().max()) for name in one if not name.endswith(shifts)}
    assert len(apart) > len(one) / 2
    assert max(apart.values()) < 5e-4, apart


def test_the_curve_goes_to_tensorboard_too(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit_branches(world, "subj01", targets, tmp_path, branches=("structural",), steps=8, options=OPTIONS, tensorboard=True)
    events = EventAccumulator(str(tmp_path / TENSORBOARD / "structural")).Reload()
    written = [(event.step, event.value) for event in events.Scalars("held_out_loss")]
    lines = [line.split(",") for line in curve(tmp_path, "structural").read_text().splitlines()[1:]]
    assert written == [(int(line[0]), pytest.approx(float(line[2]), rel=1e-6)) for line in lines]


def test_the_cost_counts_what_is_trained(world: SmallWorld, targets: Targets, whole: Path) -> None:
    havir, said = Havir.load(whole), []
    fit(world, "subj01", targets, whole.parent / "said", steps=2, options=OPTIONS)
    for branch, module in (("structural", havir.structural_generator), ("semantic", havir.semantic_extractor)):
        told = cost.cost([havir.manifest], OPTIONS, branch, [TRAIN * 3])
        assert told.parameters == sum(p.numel() for p in module.parameters())
        assert told.training_bytes > 16 * told.parameters
        assert told.checkpoint_bytes == 16 * told.parameters
        said.append(str(told))
        both = cost.cost([havir.manifest] * 2, OPTIONS, branch, [TRAIN * 3, 5])
        own = module.stem[0].weight.numel() + (module.stem[0].bias is not None) * len(module.stem[0].weight)
        assert both.parameters == told.parameters + own  # the trunk once
        assert both.weights_bytes == 2 * told.weights_bytes
        assert both.memory_bytes - told.memory_bytes == 4 * own + 5 * 4 * module.stem[0].in_features
    assert said[0].startswith("structural branch: 0.0 million parameters; about ")
    assert told.memory_bytes == TRAIN * 3 * (VOXELS - SPATIAL - 10) * 4 + 4 * told.parameters
