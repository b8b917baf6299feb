"""One job at a time owns the device: jobs wait, run, stop within one step, and tell what happened; nothing here touches a widget.

A job is a tuple of requests (the full brain and the masked one, say) run one after the other. Newest wins: a submitted job cancels the
ones still waiting and, unless asked not to, the one that runs. Stopping is cooperative: the flag is looked at whenever the pipeline
reports a step, so nothing is killed and nothing half-done is kept.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from havir_explorer.errors import Cancelled, DeviceOutOfMemory, HavirError, is_shortage
from havir_explorer.records import Reconstruction, Request, Step

State = Literal["queued", "running", "cancelling", "cancelled", "done", "failed"]
FINAL: frozenset[State] = frozenset({"cancelled", "done", "failed"})

_log = logging.getLogger(__name__)
_DEVICE = threading.Lock()
"""Held while a request is computed: every app has a worker of its own, and they share one device."""
_LOOK = 0.05
"""Seconds between two looks at the stop flag while a job waits for the device."""


class Run(Protocol):
    """What :func:`havir_explorer.pipeline.run` looks like to a worker."""

    def __call__(self, request: Request, *, on_step: Callable[[Step], None] | None = None) -> Reconstruction:
        """Draw one picture; an exception raised by ``on_step`` stops it."""


class Memory(Protocol):
    """What :class:`havir_explorer.store.Store` looks like to a worker."""

    def get(self, request: Request) -> Reconstruction | None:
        """Return what is remembered of a request, if anything."""

    def put(self, reconstruction: Reconstruction) -> None:
        """Remember a result; a HavirError where that fails."""


@dataclass(frozen=True, eq=False)
class Event:
    """One piece of news about a job.

    Parameters
    ----------
    job : int
        Its number.
    state : {'queued', 'running', 'cancelling', 'cancelled', 'done', 'failed'}
        Of the job when the news was sent.
    index, count : int
        Request ``index`` (0-based) of ``count`` is being worked on.
    step : Step or None
        Where that request stands.
    result : Reconstruction or None
        That request, finished; sent once for each request.
    cached : bool
        True when ``result`` was remembered and not computed.
    error : HavirError or None
        Why a failed job failed.
    notice : str
        A sentence about something that went wrong without spoiling the result (it could not be remembered).
    """

    job: int
    state: State
    index: int = 0
    count: int = 1
    step: Step | None = None
    result: Reconstruction | None = None
    cached: bool = False
    error: HavirError | None = None
    notice: str = ""


Listener = Callable[[Event], None]
Report = Callable[[Step], None]
Check = Callable[[], None]
"""Raises Cancelled once the job is to stop."""
Answer = Callable[[Request, Report, Check], tuple[Reconstruction, bool, str]]


class Job:
    """Requests handed to a worker; made by :meth:`Worker.submit`.

    Attributes
    ----------
    id : int
        Unique within the process and rising.
    requests : tuple of Request
    results : tuple of Reconstruction
        Those finished so far, in the order of ``requests``.
    state : {'queued', 'running', 'cancelling', 'cancelled', 'done', 'failed'}
    error : HavirError or None
    """

    _ids = itertools.count(1)

    def __init__(self, requests: tuple[Request, ...], on_event: Listener) -> None:
        self.id = next(self._ids)
        self.requests = requests
        self.results: tuple[Reconstruction, ...] = ()
        self.state: State = "queued"
        self.error: HavirError | None = None
        self._listener = on_event
        self._announced = False
        self._stop = threading.Event()
        self._finished = threading.Event()
        # Held while news is delivered, so that two threads cannot swap "cancelling" and "cancelled"; re-entrant, so a listener may cancel.
        self._lock = threading.RLock()

    def cancel(self) -> None:
        """Stop this job: at once if it waits, within one step if it runs, not at all if it has ended. No other job is touched."""
        with self._lock:
            if self.state == "queued":
                self.announce()
                self._stop.set()
                self._move("cancelled")
            elif self.state == "running":
                self._stop.set()
                self._move("cancelling")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job has ended, at most ``timeout`` seconds; return whether it has."""
        return self._finished.wait(timeout)

    def announce(self) -> None:
        """Tell the listener, once, that the job waits; the worker's part.

        Whoever comes first says it, the thread that submits or the one that takes the job, so that it is always the first news of a job.
        """
        with self._lock:
            if self.state == "queued" and not self._announced:
                self._announced = True
                self._tell(Event(self.id, "queued", 0, len(self.requests)))

    def work(self, answer: Answer) -> None:
        """Run every request through ``answer`` and end in a final state, whatever happens; the worker's part."""
        try:
            self._work(answer)
        except Cancelled:
            self._move("cancelled")
        except Exception as error:  # noqa: BLE001 - the thread must outlive any fault of one request
            if self._stop.is_set():
                self._move("cancelled")
            else:
                self._move("failed", error=_in_words(error))

    def _work(self, answer: Answer) -> None:
        with self._lock:
            self._check()
            self.announce()
            self._check()  # a listener may cancel at once
            self._move("running")
        for index, request in enumerate(self.requests):
            self._check()
            result, cached, notice = answer(request, self._reporter(index), self._check)
            with self._lock:
                self._check()
                self.results = (*self.results, result)
                self._tell(Event(self.id, self.state, index, len(self.requests), result=result, cached=cached, notice=notice))
        with self._lock:
            self._check()
            self._move("done", index=len(self.requests) - 1)

    def _reporter(self, index: int) -> Report:
        def report(step: Step) -> None:
            with self._lock:
                self._check()
                self._tell(Event(self.id, "running", index, len(self.requests), step=step))
            self._check()

        return report

    def _check(self) -> None:
        if self._stop.is_set():
            msg = f"job {self.id} was cancelled"
            raise Cancelled(msg)

    def _move(self, state: State, *, index: int = 0, error: HavirError | None = None) -> None:
        with self._lock:
            if self.state in FINAL:
                return
            self.state, self.error = state, error
            self._tell(Event(self.id, state, index, len(self.requests), error=error))
            if state in FINAL:
                self._finished.set()

    def _tell(self, event: Event) -> None:
        try:
            self._listener(event)
        except Exception:  # noqa: BLE001 - a listener's fault must not end the worker, which serves others too
            _log.exception("a listener of job %d failed", self.id)


def _pipeline() -> Run:
    # Deferred because it loads torch: a worker may be made long before anything runs.
    from havir_explorer.pipeline import run

    return run


class Worker:
    """A thread that runs requests, one at a time; in the whole process only one worker computes at any moment, and the others wait.

    Parameters
    ----------
    run : callable, optional
        ``run(request, on_step=...)``; :func:`havir_explorer.pipeline.run` when left out. Tests and other back ends pass their own.
    memory : Store, optional
        Asked before a request is run and told afterwards.
    """

    def __init__(self, run: Run | None = None, memory: Memory | None = None) -> None:
        self._run = run
        self._memory = memory
        self._waiting: list[Job] = []
        self._current: Job | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self._news = threading.Condition()

    def submit(self, requests: tuple[Request, ...], on_event: Listener, *, interrupt: bool = True) -> Job:
        """Queue requests and return at once.

        Parameters
        ----------
        requests : tuple of Request
            Run in this order; the first failure ends the job.
        on_event : callable
            Called with each :class:`Event`, from the worker's thread or from the one that submits or cancels.
        interrupt : bool
            Also cancel the job that runs now (a slider has moved on); False lets it finish first.

        Returns
        -------
        Job

        Raises
        ------
        ValueError
            No requests.
        RuntimeError
            The worker was closed.
        """
        if not requests:
            msg = "a job needs at least one request; got none"
            raise ValueError(msg)
        job = Job(requests, on_event)
        with self._news:
            if self._closed:
                msg = "this worker was closed; make another one"
                raise RuntimeError(msg)
            stale, self._waiting = self._waiting, [job]
            running = self._current
        for old in stale:
            old.cancel()
        if interrupt and running is not None:
            running.cancel()
        job.announce()
        self._start()
        return job

    def cancel(self) -> None:
        """Cancel the job that runs and those that wait; nothing happens where there are none."""
        with self._news:
            stale, self._waiting = self._waiting, []
            running = self._current
        for job in (*stale, *((running,) if running else ())):
            job.cancel()

    def close(self) -> None:
        """Cancel everything and let the thread end after the current step."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self.cancel()

    def _start(self) -> None:
        with self._news:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="havir-worker", daemon=True)
                self._thread.start()
            self._news.notify_all()

    def _next(self) -> Job | None:
        with self._news:
            self._current = None
            while not self._waiting and not self._closed:
                self._news.wait()
            if self._closed:
                return None
            self._current = self._waiting.pop(0)
            return self._current

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            job.work(self._answer)

    def _answer(self, request: Request, on_step: Report, check: Check) -> tuple[Reconstruction, bool, str]:
        if self._memory is not None and (known := self._memory.get(request)) is not None:
            return known, True, ""
        if self._run is None:
            on_step(Step("load"))
            self._run = _pipeline()
        with _device(on_step, check):
            result = self._run(request, on_step=on_step)
        return result, False, self._remember(result)

    def _remember(self, result: Reconstruction) -> str:
        if self._memory is None:
            return ""
        try:
            self._memory.put(result)
        except HavirError as error:  # a full disk must not cost the user the picture
            return str(error)
        return ""


@contextmanager
def _device(on_step: Report, check: Check) -> Iterator[None]:
    """Hold the device; while another worker has it, say so, and ask ``check``, so that a job that waits can be cancelled."""
    if not _DEVICE.acquire(blocking=False):
        on_step(Step("wait"))
        while not _DEVICE.acquire(timeout=_LOOK):
            check()
    try:
        check()
        yield
    finally:
        _DEVICE.release()


def _in_words(error: Exception) -> HavirError:
    if isinstance(error, HavirError):
        return error
    _log.error("a request failed", exc_info=error)
    wrapped = HavirError(f"the run stopped on a fault of this package, not of your input ({type(error).__name__}: {error}); the log has the details")
    if is_shortage(error):
        msg = "memory ran out while the picture was drawn or scored; close other notebooks, or load the model in half precision (HAVIR_DTYPE=float16)"
        wrapped = DeviceOutOfMemory(f"{msg}, then ask again")
    wrapped.__cause__ = error
    return wrapped
