"""A job: newest wins, cancelling is quick and touches nobody else, and one fault does not end the worker."""

from __future__ import annotations

import threading

import pytest
import torch
from fake_runner import WAIT, Diary, Runner, reconstruction

from havir_explorer.errors import DeviceOutOfMemory, HavirError, RequestError
from havir_explorer.jobs import Event, Worker
from havir_explorer.records import Request


@pytest.fixture
def runner():
    return Runner()


@pytest.fixture
def worker(runner):
    worker = Worker(run=runner)
    yield worker
    worker.close()
    runner.let(1000)


def test_a_job_reports_its_steps_and_results_in_order(worker, runner):
    diary = Diary()
    runner.let(100)
    job = worker.submit((Request(trial=1), Request(trial=2)), diary)
    assert job.wait(WAIT)
    assert job.state == "done"
    assert diary.states == ["queued", "running", "done"]
    assert [(e.index, e.step.index) for e in diary.events if e.step] == [(i, k) for i in (0, 1) for k in (1, 2, 3, 4)]
    assert [e.result.request.trial for e in diary.events if e.result] == [1, 2]
    assert [r.request.trial for r in job.results] == [1, 2]
    assert all(e.job == job.id and e.count == 2 for e in diary.events)


def test_cancelled_before_its_first_step_it_never_runs(worker, runner):
    first, second = Diary(), Diary()
    running = worker.submit((Request(trial=1),), first)
    runner.reach()
    waiting = worker.submit((Request(trial=2),), second, interrupt=False)
    waiting.cancel()
    assert waiting.state == "cancelled"
    assert waiting.wait(0)
    assert running.state == "running", "cancelling a waiting job must not touch the running one"
    runner.let(100)
    assert running.wait(WAIT)
    assert running.state == "done"
    assert second.states == ["queued", "cancelled"]
    assert {trial for trial, _ in runner.calls} == {1}


def test_cancelled_in_mid_run_it_stops_within_one_step(worker, runner):
    diary = Diary()
    job = worker.submit((Request(trial=1), Request(trial=2)), diary)
    runner.reach()
    runner.let(1)
    runner.reach()  # step 1 reported, step 2 under way
    job.cancel()
    assert job.state == "cancelling"
    runner.let(1)
    assert job.wait(WAIT)
    assert job.state == "cancelled"
    assert runner.calls == [(1, 1), (1, 2)], "the step under way may finish; no other may start"
    assert diary.states == ["queued", "running", "cancelling", "cancelled"]
    assert [e.step.index for e in diary.events if e.step] == [1]
    assert job.results == ()


def test_cancelling_twice_or_after_the_end_changes_nothing(worker, runner):
    diary = Diary()
    job = worker.submit((Request(),), diary)
    runner.reach()
    job.cancel()
    job.cancel()
    runner.let(1)
    assert job.wait(WAIT)
    job.cancel()
    assert [e.state for e in diary.events] == ["queued", "running", "cancelling", "cancelled"]


def test_a_result_that_arrives_after_cancel_is_dropped():
    started, finish = threading.Event(), threading.Event()

    def stubborn(request, *, on_step=None):
        started.set()
        finish.wait(WAIT)
        return reconstruction(request)

    diary = Diary()
    worker = Worker(run=stubborn)
    job = worker.submit((Request(),), diary)
    assert started.wait(WAIT)
    job.cancel()
    finish.set()
    assert job.wait(WAIT)
    assert job.state == "cancelled"
    assert not [e for e in diary.events if e.result]
    worker.close()


def test_newest_wins_over_waiting_and_running(worker, runner):
    diaries = [Diary() for _ in range(3)]
    first = worker.submit((Request(trial=1),), diaries[0])
    runner.reach()
    second = worker.submit((Request(trial=2),), diaries[1])
    third = worker.submit((Request(trial=3),), diaries[2])
    assert first.state == "cancelling"
    assert second.state == "cancelled"
    runner.let(100)
    assert third.wait(WAIT)
    assert first.state == "cancelled"
    assert third.state == "done"
    assert {trial for trial, _ in runner.calls} == {1, 3}


def test_without_interrupt_the_running_job_finishes_first(worker, runner):
    diary = Diary()
    first = worker.submit((Request(trial=1),), diary)
    runner.reach()
    second = worker.submit((Request(trial=2),), diary, interrupt=False)
    runner.let(100)
    assert second.wait(WAIT)
    assert first.state == second.state == "done"


def test_a_failure_is_told_and_the_next_job_runs():
    def picky(request, *, on_step=None):
        if request.trial == 1:
            msg = "subj01 has 40 trials; asked for trial 99"
            raise RequestError(msg)
        if request.trial == 2:
            msg = "list index out of range"
            raise IndexError(msg)
        if request.trial == 3:
            raise MemoryError
        if request.trial == 4:
            raise torch.OutOfMemoryError
        return reconstruction(request)

    worker = Worker(run=picky)
    jobs = []
    for trial in range(1, 6):
        jobs.append(worker.submit((Request(trial=trial),), Diary()))
        assert jobs[-1].wait(WAIT)
    assert [j.state for j in jobs] == [*["failed"] * 4, "done"]
    assert str(jobs[0].error) == "subj01 has 40 trials; asked for trial 99"
    assert isinstance(jobs[1].error, HavirError)
    assert "IndexError: list index out of range" in str(jobs[1].error)
    assert isinstance(jobs[2].error, DeviceOutOfMemory)
    assert isinstance(jobs[3].error, DeviceOutOfMemory)
    worker.close()


def test_a_faulty_listener_does_not_end_the_worker(worker, runner, caplog):
    def broken(event: Event) -> None:
        msg = "the widget is gone"
        raise KeyError(msg)

    runner.let(100)
    job = worker.submit((Request(),), broken)
    assert job.wait(WAIT)
    assert job.state == "done"
    assert "the widget is gone" in caplog.text
    diary = Diary()
    again = worker.submit((Request(),), diary)
    assert again.wait(WAIT)
    assert diary.events[-1].state == "done"


def test_a_listener_may_cancel_its_own_job(worker, runner):
    jobs = []

    def impatient(event: Event) -> None:
        if event.step:
            jobs[0].cancel()

    jobs.append(worker.submit((Request(),), impatient))
    runner.let(100)
    assert jobs[0].wait(WAIT)
    assert jobs[0].state == "cancelled"
    assert len(runner.calls) == 1
