"""What the device and the number of processes mean for a training: memory that runs out, disks, shares of a batch, who speaks, and what is left as it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_training import OPTIONS, fit_branches, small_targets
from small_world import SmallWorld

from havir_explorer.decode import branches, cost, files, machine, run
from havir_explorer.decode.cost import Cost, Pace, check_disk
from havir_explorer.decode.edges import PixelEdges
from havir_explorer.decode.machine import Machine
from havir_explorer.decode.objectives import Semantic, Structural
from havir_explorer.decode.run import Run, checkpoint, checkpoint_bytes
from havir_explorer.decode.targets import Targets
from havir_explorer.errors import DeviceOutOfMemory, OutputError, RequestError, TrainingDiverged

SHORTAGES = (torch.OutOfMemoryError(), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return SmallWorld()


@pytest.fixture(scope="module")
def targets(world: SmallWorld) -> Targets:
    return small_targets(world)


def failing(fault: BaseException):
    def fail(*_: object, **__: object) -> None:
        raise fault

    return fail


# memory


@pytest.mark.parametrize("shortage", SHORTAGES, ids=lambda fault: type(fault).__name__)
def test_a_picture_that_does_not_fit_alone_is_a_sentence(shortage, world, targets, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Structural, "loss", failing(shortage))
    with pytest.raises(DeviceOutOfMemory, match="one picture at a time does not fit into the memory of cpu"):
        fit_branches(world, "subj01", targets, tmp_path, steps=2, options=OPTIONS)


def test_what_edges_in_pixels_need_is_said_first(world, targets, tmp_path) -> None:
    said = list[str]()

    def stop(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt

    edges = PixelEdges(lambda latents: latents, lambda nsd_ids: torch.zeros(1), needs=5 * 10**9)
    for weight in (1.0, 0.0):
        with pytest.raises(KeyboardInterrupt):
            fit_branches(world, "subj01", targets, tmp_path, steps=2, options=replace(OPTIONS, pixel_edges=weight), edges=edges, notice=stop)
    assert [line.count("about 5.00 GB on the device") for line in said] == [1, 0]


def test_other_faults_are_not_taken_for_a_shortage(world, targets, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Structural, "loss", failing(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ") as caught:
        fit_branches(world, "subj01", targets, tmp_path, steps=2, options=OPTIONS)
    assert not isinstance(caught.value, DeviceOutOfMemory)


@pytest.mark.parametrize(
    ("where", "name", "words"),
    [
        (torch.optim.AdamW, "step", "a step of the structural branch's optimiser"),
        (Run, "held_out_loss", "a look at the structural branch's held-out pictures"),
        (branches, "finish", "the structural branch's repair"),
    ],
)
def test_memory_that_runs_out_elsewhere_is_a_sentence(where, name, words, world, targets, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(where, name, failing(torch.OutOfMemoryError()))
    with pytest.raises(DeviceOutOfMemory, match=f"{words} does not fit into the memory of cpu: choose smaller sizes"):
        fit_branches(world, "subj01", targets, tmp_path, steps=2, options=OPTIONS)


def test_a_smaller_share_says_that_fewer_are_contrasted(world, targets, tmp_path, monkeypatch) -> None:
    plain, said = Semantic.loss, list[str]()

    def narrow(self, predicted, *rest):
        if predicted[0].requires_grad and len(predicted[0]) > 8:
            raise torch.OutOfMemoryError
        return plain(self, predicted, *rest)

    monkeypatch.setattr(Semantic, "loss", narrow)
    fit_branches(world, "subj01", targets, tmp_path, branches=("semantic",), steps=2, options=OPTIONS, notice=said.append)
    assert any(line.endswith("going on with 8, batches of 16 as before, though only 8 are contrasted with each other") for line in said)


def test_the_best_weights_are_held_once(world, targets, tmp_path, monkeypatch) -> None:
    plain, held = Run._copy, list[int]()
    monkeypatch.setattr(Run, "_copy", lambda self: (held.append(len(self.best)), plain(self))[1])
    fit_branches(world, "subj01", targets, tmp_path, branches=("structural",), steps=12, options=OPTIONS)
    assert len(held) > 1
    assert set(held) == {0}


# disk and time


def test_a_checkpoint_that_will_be_replaced_is_not_asked_for_again(tmp_path, monkeypatch) -> None:
    branch, billion = "structural", 10**9
    told = Cost(branch, 1, 0, 0, checkpoint_bytes=8 * billion, weights_bytes=billion)
    checkpoint(tmp_path, branch).write_bytes(bytes(64))
    assert checkpoint_bytes(tmp_path, (branch, "semantic")) == 64
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * billion))
    with pytest.raises(OutputError, match=r"training needs 17\.00 GB more"):
        check_disk(tmp_path, [told])
    check_disk(tmp_path, [told], 8 * billion)


def test_the_time_left_is_told_again_with_looks_and_checkpoints(monkeypatch) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    pace = Pace("semantic", replace(OPTIONS, batch=10, check_every=50, save_every=100), said.append)
    for step in range(1, 301):
        now[0] += 0.1 if step % 100 else 20.1
        pace.step(1000 - step)
    looks = "looks at held-out pictures and checkpoints"
    assert said == [
        f"semantic branch: 0.1 s a step, 100 pictures a second; the 977 steps left take about 98 s, and {looks} besides",
        f"semantic branch: 0.3 s a step, 33 pictures a second; the 897 steps left take about 4 min, counting {looks}",
    ]


def test_the_record_counts_the_time_before_a_stop_too(world, targets, tmp_path, monkeypatch) -> None:
    now, steps = [0.0], [0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])

    def hear(share: float, line: str) -> None:
        now[0] += 10
        steps[0] += 1
        if steps[0] == 8:  # two steps after the last checkpoint
            raise KeyboardInterrupt

    asked = {"branches": ("structural",), "steps": 12, "options": OPTIONS, "progress": hear}
    with pytest.raises(KeyboardInterrupt):
        fit_branches(world, "subj01", targets, tmp_path, **asked)
    now[0] += 1000
    assert fit_branches(world, "subj01", targets, tmp_path, **asked).record.seconds == 50 + 50


# number formats and processes


def test_a_number_format_that_the_device_lacks_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(machine, "Accelerator", failing(ValueError("bf16 needs a supported device")))
    with pytest.raises(RequestError, match=r"cpu cannot train in precision bf16 \(bf16 needs a supported device\); choose another --precision"):
        Machine("cpu", "bf16")


def test_a_half_precision_that_leaves_out_every_step_stops(world, targets, tmp_path, monkeypatch) -> None:
    scales = iter([2.0**16, 2.0**-13, 2.0**-14])
    monkeypatch.setattr(Machine, "scaler", property(lambda _: SimpleNamespace(get_scale=lambda: next(scales), state_dict=dict)))
    with pytest.raises(TrainingDiverged, match=r"stopped at step 3: its loss is .* but the gradient is not finite.*or without mixed precision"):
        fit_branches(world, "subj01", targets, tmp_path, steps=5, options=OPTIONS)


def test_processes_wait_for_the_one_that_encodes(monkeypatch) -> None:
    asked = list[timedelta]()
    monkeypatch.setattr(machine, "PartialState", lambda cpu, timeout: asked.append(timeout) or SimpleNamespace(is_main_process=cpu))
    assert machine.leads("cpu")
    assert not machine.leads("cuda")
    assert min(asked) >= timedelta(days=1)


def test_a_batch_that_processes_cannot_share_evenly_is_refused(world, targets, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Machine, "count", property(lambda _: 3))
    with pytest.raises(RequestError, match="3 processes cannot share batches of 16 pictures evenly; choose a --batch that is a multiple of 3"):
        fit_branches(world, "subj01", targets, tmp_path, steps=2, options=OPTIONS)


def test_several_processes_are_said_to_contrast_less(world, targets, tmp_path, monkeypatch) -> None:
    said = list[str]()

    def stop(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt

    monkeypatch.setattr(Machine, "count", property(lambda _: 4))
    for names in (("structural",), ("semantic",)):
        with pytest.raises(KeyboardInterrupt):
            fit_branches(world, "subj01", targets, tmp_path, branches=names, steps=2, options=OPTIONS, notice=stop)
    assert "contrasts" not in said[0]
    assert "4 processes are shown 4 pictures of a batch each, and the semantic branch contrasts only these with each other; --batch 64 contrasts 16" in said[1]


def test_one_process_speaks_and_writes(world, targets, tmp_path, monkeypatch) -> None:
    said = list[object]()
    monkeypatch.setattr(Machine, "rank", property(lambda _: 1))
    hear = lambda *words: said.append(words)  # noqa: E731
    fit_branches(world, "subj01", targets, tmp_path, branches=("structural",), steps=2, options=OPTIONS, notice=hear, progress=hear)
    assert not said
    assert not any(path.is_file() for path in Path(tmp_path).rglob("*"))


def test_what_is_trained_is_left_as_it_is_by_the_same_run_alone(world: SmallWorld, targets: Targets, tmp_path: Path) -> None:
    def left(steps: int = 2, *, resume: bool = True) -> bool:
        said: list[str] = []
        asked = {"branches": ("structural",), "steps": steps, "seed": 5, "options": OPTIONS, "resume": resume}
        fit_branches(world, "subj01", targets, tmp_path, notice=said.append, **asked)
        return said == [f"structural: trained already, by the same options, in {tmp_path}; --restart trains anew"]

    assert not left()
    written = (tmp_path / files.WEIGHTS).stat().st_mtime_ns
    assert left()
    assert (tmp_path / files.WEIGHTS).stat().st_mtime_ns == written
    assert not left(resume=False)
    assert not left(steps=3)
    assert not left()
    (tmp_path / files.WEIGHTS).unlink()
    assert not left()
