"""Preparing that is killed, stopped, interrupted by another or left without room: nothing is lost, and one sentence says what happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import pytest
from small_nsd import BETAS, Tree
from small_prepared import STORE, content, prepare, read

from havir_explorer.cli import command
from havir_explorer.data import prepared, preparing, storing
from havir_explorer.data.prepared import Record
from havir_explorer.errors import DataInvalid, OutputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAVIR_CACHE", str(tmp_path / "cache"))


def killed(tree: Tree, *events: int, workers: int = 1) -> None:
    """Prepare once for every event, killed at it."""
    script = Path(__file__).with_name("killed.py")
    mark = {"HAVIR_TEST_TREE": str(tree.root)}
    subprocess.run([sys.executable, script, "prepare", tree.root, str(workers), *map(str, events)], check=True, timeout=120, env=os.environ | mark)


def test_a_killed_prepare_goes_on_to_the_same_bytes(damaged: Tree) -> None:
    prepare(damaged)
    expected = content(damaged.root / STORE)
    shutil.rmtree(damaged.root / STORE)
    killed(damaged, 1, 4, 8, 6, 9)  # in the voxels, in session 1, before its record, in its moments, in session 2
    left = content(damaged.root / STORE)
    assert list(Record.model_validate_json(left[prepared.RECORD]).sessions) == [1]
    assert len([name for name in left if name.endswith(".part")]) == 1
    assert read(damaged).any(), "whatever is there can be read"
    prepare(damaged)
    assert content(damaged.root / STORE) == expected


@pytest.mark.slow
def test_several_workers_write_the_same_bytes_and_leave_none_behind_when_killed(damaged: Tree) -> None:
    expected = prepare(damaged)
    first = content(damaged.root / STORE)
    shutil.rmtree(damaged.root / STORE)
    killed(damaged, 3, 4, workers=2)  # at the empty record, and at that of the first session done
    end = time.monotonic() + 20
    while orphans := [p for p in psutil.process_iter() if _environ(p).get("HAVIR_TEST_TREE") == str(damaged.root)]:
        assert time.monotonic() < end, f"still running: {orphans}"
        time.sleep(0.1)
    assert prepare(damaged, workers=2) == expected
    assert content(damaged.root / STORE) == first


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.mark.parametrize("convention", ["b3", "brain-diffuser"])
def test_a_finished_store_that_cannot_be_written_is_ready(
    damaged: Tree, convention: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = prepare(damaged, convention)
    for name in ("room", "alone", "save", "save_record"):
        monkeypatch.setattr(storing, name, lambda *_: pytest.fail("something was written"))
    assert prepare(damaged, convention) == record
    assert command(["prepare", "--dataset", str(damaged.root), "--convention", convention]) == 0
    assert f"all of it is in {damaged.root / STORE}" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_sessions_whose_originals_are_gone_are_not_forgotten_with_the_record(damaged: Tree, harm: str) -> None:
    prepare(damaged)
    (damaged.root / BETAS / "betas_session02.hdf5").unlink()
    record, left = damaged.root / STORE / prepared.RECORD, content(damaged.root / STORE)
    record.write_text("{") if harm == "cut" else record.unlink()
    with pytest.raises(DataInvalid, match=r"holds session 2 of subj01 without a store\.json that can be read, and its original is gone, .* put that file back"):
        prepare(damaged)
    record.write_bytes(left[prepared.RECORD])
    assert content(damaged.root / STORE) == left


def test_files_are_on_the_disk_before_they_have_their_names(damaged: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append("fsync") or fsync(file))
    monkeypatch.setattr(Path, "replace", lambda part, target: done.append("replace") or replace(part, target))
    prepare(damaged)
    assert done == ["fsync", "replace"] * (len(done) // 2)
    assert len(done) > 10


def test_a_worker_that_the_system_ends_is_a_sentence(damaged: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, *_: object) -> Future[None]:
            future: Future[None] = Future()
            future.set_exception(BrokenProcessPool("ended"))
            return future

        def shutdown(self, **_: object) -> None:
            pass

    monkeypatch.setattr(preparing, "ProcessPoolExecutor", Ended)
    with pytest.raises(OutputError, match="ended from outside, as for lack of memory; run again with fewer --workers: finished sessions stay"):
        prepare(damaged, workers=2)


def test_workers_leave_ctrl_c_to_the_process_that_started_them(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[int, object] = {}
    monkeypatch.setattr(signal, "signal", heard.__setitem__)
    preparing._follow_parent()
    assert heard == {signal.SIGINT: signal.SIG_IGN}


def test_no_room_and_no_permission_are_found_before_the_start(damaged: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    responses = damaged.nsd(damaged.root / "cache").measured("subj01")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OutputError, match=r"needs 0\.0 GB in .*prepared.*, where 0\.0 GB are free; make room"):
        preparing.plan(responses, "int16")
    shutil.rmtree(damaged.root / "prepared")
    (damaged.root / "prepared").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"prepared store cannot be written: .*prepared.* where you may not, make a folder of your own with links"):
        preparing.plan(responses, "int16")


def test_two_runs_do_not_write_one_store(damaged: Tree) -> None:
    plan = preparing.plan(damaged.nsd(damaged.root / "cache").measured("subj01"), "int16")

    def meanwhile(_share: float, _phrase: str) -> None:
        with pytest.raises(OutputError, match=r"another havir prepare is writing .*prepared.subj01"):
            preparing.prepare(plan)

    before = read(damaged)
    stale = preparing.plan(damaged.nsd(damaged.root / "cache").measured("subj01"), "int16")
    preparing.delete_originals(plan, preparing.prepare(plan, progress=meanwhile))
    with pytest.raises(OutputError, match="was written by another run meanwhile; run the same command again"):
        preparing.prepare(stale)
    np.testing.assert_array_equal(read(damaged), before, "what the other run had prepared and deleted the originals of")


def test_a_full_disk_keeps_what_is_finished(damaged: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = preparing.plan(damaged.nsd(damaged.root / "cache").measured("subj01"), "int16")
    save, left = np.save, [4]

    def full(file: object, array: np.ndarray) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        save(file, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"prepared store cannot be written: .* \(No space left on device\); make room, then run the same command again"):
        preparing.prepare(plan)
    monkeypatch.undo()
    assert preparing.plan(damaged.nsd(damaged.root / "cache").measured("subj01"), "int16").todo == (2,)
