"""Workers: what they remember, how they begin and end, and how they share one device."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from fake_runner import WAIT, Diary, Runner, reconstruction

from havir_explorer.errors import OutputError
from havir_explorer.jobs import Event, Job, Worker
from havir_explorer.records import Reconstruction, Request, Settings, Step


@pytest.fixture
def runner():
    return Runner()


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
