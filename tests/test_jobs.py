"""The worker: newest wins, cancelling is quick and touches nobody else, and one fault does not end it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from havir_explorer.errors import DeviceOutOfMemory, HavirError, OutputError, RequestError
from havir_explorer.jobs import Event, Job, Worker
from havir_explorer.records import Reconstruction, Request, Settings, Step

WAIT = 10  # seconds; only a broken worker needs them


def reconstruction(request: Request) -> Reconstruction:
    picture = np.full((8, 8, 3), request.trial, np.uint8)
    return Reconstruction(request, picture, picture, picture, "generated", True, False, (), (), 3, 0.5)


class Runner:
    """A fake pipeline that a test moves on by hand: each step waits for a permit."""

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.calls: list[tuple[int, int]] = []

    def __call__(self, request, *, on_step=None):
        for index in range(1, self.steps + 1):
            self.entered.release()
            assert self.permits.acquire(timeout=WAIT)
            self.calls.append((request.trial, index))
            on_step(Step("diffuse", index, self.steps))
        return reconstruction(request)

    def reach(self) -> None:
        assert self.entered.acquire(timeout=WAIT)

    def let(self, count: int) -> None:
        self.permits.release(count)


class Diary:
    """Collects a job's events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def states(self) -> list[str]:
        return list(dict.fromkeys(e.state for e in self.events))


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
        return reconstruction(request)

    worker = Worker(run=picky)
    jobs = []
    for trial in range(1, 5):
        jobs.append(worker.submit((Request(trial=trial),), Diary()))
        assert jobs[-1].wait(WAIT)
    assert [j.state for j in jobs] == ["failed", "failed", "failed", "done"]
    assert str(jobs[0].error) == "subj01 has 40 trials; asked for trial 99"
    assert isinstance(jobs[1].error, HavirError)
    assert "IndexError: list index out of range" in str(jobs[1].error)
    assert isinstance(jobs[2].error, DeviceOutOfMemory)
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


class Memory:
    def __init__(self, full: bool = False) -> None:
        self.kept: dict[str, Reconstruction] = {}
        self.full = full

    def get(self, request):
        return self.kept.get(request.key)

    def put(self, result):
        if self.full:
            msg = "cannot write the result: no space left on the disk"
            raise OutputError(msg)
        self.kept[result.request.key] = result


def test_a_remembered_result_is_not_computed_again(runner):
    worker, diary = Worker(run=runner, memory=Memory()), Diary()
    runner.let(100)
    for _ in range(2):
        assert worker.submit((Request(trial=5),), diary).wait(WAIT)
    assert len(runner.calls) == runner.steps
    assert [e.cached for e in diary.events if e.result] == [False, True]
    assert worker.submit((replace(Request(trial=5), settings=Settings(seed=1)),), diary).wait(WAIT)
    assert len(runner.calls) == 2 * runner.steps
    worker.close()


def test_a_full_disk_costs_a_notice_not_the_picture(runner):
    worker, diary = Worker(run=runner, memory=Memory(full=True)), Diary()
    runner.let(100)
    job = worker.submit((Request(),), diary)
    assert job.wait(WAIT)
    assert job.state == "done"
    assert len(job.results) == 1
    assert [e.notice for e in diary.events if e.result] == ["cannot write the result: no space left on the disk"]
    worker.close()


def test_an_empty_job_and_a_closed_worker_are_refused(runner):
    worker = Worker(run=runner)
    with pytest.raises(ValueError, match="at least one request"):
        worker.submit((), Diary())
    job = worker.submit((Request(),), Diary())
    runner.reach()
    worker.close()
    runner.let(1)
    assert job.wait(WAIT)
    assert job.state == "cancelled"
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit((Request(),), Diary())


def test_every_job_is_first_said_to_be_queued_though_a_worker_takes_it_at_once(monkeypatch):
    told: dict[int, list[str]] = {}
    lock = threading.Lock()

    def slow(event: Event) -> None:
        with lock:
            told.setdefault(event.job, []).append(event.state)
        if event.state == "done":
            time.sleep(0.002)

    def quick(request, *, on_step=None):
        on_step(Step("diffuse", 1, 1))
        return reconstruction(request)

    announce = Job.announce

    def late(job: Job) -> None:
        if threading.current_thread().name.startswith("submitter"):
            time.sleep(0.002)  # the worker has taken the job that is announced here
        announce(job)

    monkeypatch.setattr(Job, "announce", late)
    worker = Worker(run=quick)
    jobs: list[Job] = []

    def submit() -> None:
        for trial in range(40):
            jobs.append(worker.submit((Request(trial=trial),), slow, interrupt=False))
            if trial % 2:
                jobs[-1].wait(WAIT)

    threads = [threading.Thread(target=submit, name=f"submitter {i}") for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert all(job.wait(WAIT) for job in jobs)
    worker.close()
    assert len(told) == len(jobs) == 80
    for states in told.values():
        assert states[0] == "queued"
        assert states.count("queued") == 1
    assert {job.state for job in jobs} <= {"done", "cancelled"}
    assert any(job.state == "done" for job in jobs)


def test_two_workers_share_one_device_and_the_one_that_waits_can_be_cancelled(runner):
    others = Runner(steps=1)
    first, second = Worker(run=runner), Worker(run=others)
    running = first.submit((Request(trial=1),), Diary())
    runner.reach()
    waiting = second.submit((Request(trial=2),), Diary())
    assert not others.entered.acquire(timeout=0.3), "two requests are computed at once"
    waiting.cancel()
    assert waiting.wait(WAIT)
    assert waiting.state == "cancelled"
    assert running.state == "running"
    last = second.submit((Request(trial=3),), Diary())
    others.let(1)
    runner.let(runner.steps)
    assert last.wait(WAIT)
    assert running.wait(WAIT)
    assert (running.state, last.state) == ("done", "done")
    assert [trial for trial, _ in others.calls] == [3]
    first.close()
    second.close()


def test_a_fault_gives_the_device_back(runner):
    def faulty(request, *, on_step=None):
        raise MemoryError

    first, second = Worker(run=faulty), Worker(run=runner)
    runner.let(100)
    assert first.submit((Request(),), Diary()).wait(WAIT)
    job = second.submit((Request(),), Diary())
    assert job.wait(WAIT)
    assert job.state == "done"
    first.close()
    second.close()


def test_no_thread_before_the_first_job(runner):
    before = threading.active_count()
    worker = Worker(run=runner)
    assert threading.active_count() == before
    worker.close()
